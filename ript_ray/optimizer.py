"""Which parameters AdamW lets decay."""

from collections.abc import Iterable

from torch import nn

from ript_ray.policies.embedding import is_embedding


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices decay; biases, normalisation weights and embeddings do not, as the authors have it.

    Args:
        parameters: Names and parameters. What has fewer than two dimensions is a bias, a scale or a normalisation's
            weight; an embedding is one that `ript_ray.policies.embedding` made.
        weight_decay: AdamW's, of those that decay.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if parameter.ndim >= 2 and not is_embedding(parameter) else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
