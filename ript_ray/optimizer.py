"""Which parameters AdamW lets decay."""

from collections.abc import Iterable

from torch import nn


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices decay; biases, normalisation weights and embeddings do not, as the authors have it."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in parameters:
        decays = parameter.ndim >= 2 and not name.endswith("emb.weight")
        (decayed if decays else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
