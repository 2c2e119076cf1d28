"""Weight decay: as in the authors' code, biases, normalization weights and embeddings are excluded."""

import pytest
import torch
from torch import nn

from ript_ray.optim import decay_groups
from ript_ray.policies.quest.presets import SPECS, Variant, published

UNDECAYED = (nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
"""Source: QueST's optimizers, restricted to the modules it has."""


def authors_undecayed(module: nn.Module) -> set[str]:
    """The published rule, by owning module: every bias, and all parameters of certain modules."""
    return {
        f"{path}.{name}" if path else name
        for path, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
        if name.endswith("bias") or isinstance(owner, UNDECAYED)
    }


@pytest.mark.parametrize(("variant", "num_embeddings"), [("libero", 1), ("metaworld", 2)])
def test_the_published_policies_decay_the_same_parameters_as_the_authors(variant: Variant, num_embeddings: int) -> None:
    with torch.device("meta"):
        policy = published(variant, ("open the drawer",) if variant == "metaworld" else ()).build(SPECS[variant])
    assert sum(isinstance(module, nn.Embedding) for module in policy.modules()) == num_embeddings
    names = {id(value): name for name, value in policy.named_parameters()}
    decayed, kept = decay_groups(policy.named_parameters(), 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {names[id(value)] for value in kept["params"]} == authors_undecayed(policy)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_an_optimizer_step_shrinks_decayed_parameters_only() -> None:
    policy = published("metaworld", ("open the drawer",)).build(SPECS["metaworld"])
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    optimizer = torch.optim.AdamW(decay_groups(policy.named_parameters(), 0.5), lr=0.1)
    for value in policy.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    moved = {name for name, value in policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before) - authors_undecayed(policy)
    torch.testing.assert_close(policy.obs_proj.weight, 0.95 * before["obs_proj.weight"])
