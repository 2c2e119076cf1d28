"""AdamW helpers: weight-decay groups as in the authors' code, the cosine schedule, saved moments."""

import math

import pytest
import torch
from torch import nn

from ript_ray.config.rl import PPO
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.optim import cosine, decay_groups, moments_of, partition, put_moments
from ript_ray.policies.quest.presets import SPECS, Variant, published
from ript_ray.rl.learner import learning_rate_of

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
    assert isinstance(decayed["params"], list)
    assert isinstance(kept["params"], list)
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


def test_parameters_are_told_apart_by_the_prefixes_of_the_groups_that_are_named() -> None:
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in ("base.a", "head.b", "base.c", "scale")}
    prefixes = {"lora": "base.", "head": "head."}
    assert partition(parameters, (), prefixes) == {"": parameters}
    assert {group: [*part] for group, part in partition(parameters, ("lora",), prefixes).items()} == {
        "": ["head.b", "scale"],
        "lora": ["base.a", "base.c"],
    }
    del parameters["head.b"], parameters["scale"]
    assert partition(parameters, ("lora",), prefixes) == {"lora": parameters}, "no empty group"
    with pytest.raises(ConfigError, match=r"parameter group head: no trainable parameter begins with 'head\.'"):
        partition(parameters, ("head",), prefixes)


def test_the_schedule_scales_the_learning_rates_of_all_groups_alike() -> None:
    ppo = PPO(learning_rate=1e-4, final_learning_rate=5e-5, schedule_updates=4, learning_rates={"head": 1e-5})
    rates = [(learning_rate_of(ppo, update), learning_rate_of(ppo, update, "head")) for update in range(1, 7)]
    assert rates[0] == pytest.approx((1e-4, 1e-5), rel=1e-12)
    assert rates[2] == pytest.approx((7.5e-5, 7.5e-6), rel=1e-12)
    assert rates[5] == pytest.approx((5e-5, 5e-6), rel=1e-12)


def former_rl_schedule(ppo: PPO, update: int) -> float:
    moved = (update - 1) // ppo.schedule_every * ppo.schedule_every
    assert ppo.final_learning_rate is not None
    share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, moved / ppo.schedule_updates)))
    return ppo.final_learning_rate + share * (ppo.learning_rate - ppo.final_learning_rate)


def former_sft_schedule(learning_rate: float, done: float) -> float:
    share = 0.1 + (1.0 - 0.1) * 0.5 * (1.0 + math.cos(math.pi * done))
    return share * learning_rate


def test_the_one_cosine_schedule_equals_both_former_ones_to_the_last_bit() -> None:
    for initial, final, updates, every in ((1e-6, 9e-7, 40, 2), (3e-4, 1e-7, 33, 1), (1e-3, 2e-3, 7, 3)):
        ppo = PPO(learning_rate=initial, final_learning_rate=final, schedule_updates=updates, schedule_every=every)
        for update in range(1, 60):
            assert learning_rate_of(ppo, update) == former_rl_schedule(ppo, update)
    for num_steps in (1, 7, 300, 20_000):
        for step in range(num_steps):
            assert cosine(1.0, 0.1, step / num_steps) * 1e-4 == former_sft_schedule(1e-4, step / num_steps)


def test_a_schedule_without_an_end_is_constant() -> None:
    assert {learning_rate_of(PPO(learning_rate=1e-5), update) for update in range(1, 50)} == {1e-5}


def stepped() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def test_restored_moments_continue_to_the_same_bits_and_are_not_aliased() -> None:
    module, optimizer = stepped()
    moments = moments_of(optimizer, dict(module.named_parameters()))
    other = nn.Linear(3, 2)
    other.load_state_dict(module.state_dict())
    resumed = torch.optim.AdamW(other.parameters(), lr=0.1)
    put_moments(resumed, dict(other.named_parameters()), moments)
    kept = {name: array.copy() for name, array in moments.items()}
    for each, its_optimizer in ((module, optimizer), (other, resumed)):
        its_optimizer.zero_grad()
        each(torch.ones(4, 3)).square().sum().backward()
        its_optimizer.step()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
    assert all((array == moments[name]).all() for name, array in kept.items())


def test_moments_of_a_parameter_without_a_gradient_so_far_are_restored_too() -> None:
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(module.state_dict())
    optimizer, resumed = (torch.optim.AdamW(each.parameters(), lr=0.1) for each in (module, other))
    assert moments_of(optimizer, dict(module.named_parameters())) == {}

    def step(each: nn.Linear, its_optimizer: torch.optim.AdamW, names: tuple[str, ...]) -> None:
        its_optimizer.zero_grad()
        for name in names:
            parameter = each.get_parameter(name)
            parameter.grad = torch.full_like(parameter, 0.5)
        its_optimizer.step()

    step(module, optimizer, ("weight",))
    step(other, torch.optim.AdamW(other.parameters(), lr=0.1), ("weight",))
    put_moments(resumed, dict(other.named_parameters()), moments_of(optimizer, dict(module.named_parameters())))
    for each, its_optimizer in ((module, optimizer), (other, resumed)):
        step(each, its_optimizer, ("weight", "bias"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())


def test_moments_that_do_not_fit_are_named_and_none_is_restored() -> None:
    module, optimizer = stepped()
    parameters = dict(module.named_parameters())
    moments = moments_of(optimizer, parameters)
    moments["exp_avg/bias"] = moments["exp_avg/bias"][:1]
    moments["exp_avg_sq/weight"] = moments["exp_avg_sq/weight"].astype("float64")
    moments["exp_avg/other"] = moments.pop("step/bias")
    fresh = torch.optim.AdamW(parameters.values(), lr=0.1)
    with pytest.raises(CheckpointError) as caught:
        put_moments(fresh, parameters, moments)
    assert str(caught.value).splitlines() == [
        "the optimizer's state does not fit the policy:",
        "  exp_avg_sq/weight has type float64, not float32",
        "  missing step/bias",
        "  unknown exp_avg/other",
        "  and 1 more",
    ]
    assert not fresh.state
    put_moments(fresh, parameters, {})
    assert not fresh.state
