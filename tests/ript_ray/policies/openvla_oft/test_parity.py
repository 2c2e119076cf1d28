"""Parity with the released OpenVLA-OFT and RIPT-VLA. Expected values: the authors' code on a CPU, in float32.

Small scales amplify the rounding of means: log-probabilities are compared with ours in float64, where no processor's
rounding adds to that of the fixture (up to 4.97e-5).
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ript_ray.policies.openvla_oft.distributions import DISTRIBUTIONS, LOG_SCALE_RANGE
from ript_ray.policies.openvla_oft.lora import TRAINED, lora_parameters
from ript_ray.policies.openvla_oft.model import OpenVLAOFT
from ript_ray.rl.loss import clipped_surrogate
from tests.openvla_oft_fixture import Case, context, expected, meta, new_model, pixels, shared_model

CASES: tuple[Case, ...] = ("base", "lora_all", "lora_llm_only")
TOLERANCE = 5e-5
"""Absolute, of activations and log-probabilities; the fixture advises it."""


def assert_near(ours: torch.Tensor, theirs: NDArray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=tolerance)


@torch.no_grad()
def slots(model: OpenVLAOFT, form: str, *, padding: int = 0) -> torch.Tensor:
    read = context(model, [0, 1, 2], ["task"] * 3, padding=padding)
    return model.slots_in_one_pass(read) if form == "single" else model.slots(model.encode(read))


def test_the_pixels_of_these_tests_are_the_published_ones() -> None:
    assert_near(pixels()[:, :, ::8, ::8], expected()["pixel_values_stride8"], 1e-6)
    assert_near(pixels().double().sum((2, 3)), expected()["pixel_values_sum"], 1e-2)


@pytest.mark.parametrize("case", CASES)
def test_images_and_state_are_embedded_as_published(case: Case) -> None:
    model = shared_model(case)
    with torch.no_grad():
        assert_near(model.embed_images(pixels()), expected()[f"{case}/projected_patches"])
        proprio = torch.from_numpy(expected()["proprio_normalized"])
        assert_near(model.proprio_projector(proprio), expected()[f"{case}/proprio_token"])


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("form", ["single", "split"])
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_means_and_scales_are_the_published_ones(case: Case, form: str, padding: int) -> None:
    model = shared_model(case)
    hidden = slots(model, form, padding=padding)
    assert_near(hidden, expected()[f"{case}/{form}/action_hidden"])
    with torch.no_grad():
        mean, log_scale = model.heads(hidden)
    assert_near(mean, expected()[f"{case}/{form}/mu"])
    assert_near(log_scale, expected()[f"{case}/{form}/log_b"])


@pytest.mark.parametrize("case", CASES)
def test_the_log_probabilities_of_their_samples_are_the_published_ones(case: Case) -> None:
    model = new_model(case).double()
    mean, log_scale = model.heads(slots(model, "split"))
    sample = torch.from_numpy(expected()[f"{case}/sample/normalized"])
    assert meta()["log_scale_clip"] == [*LOG_SCALE_RANGE]
    per_entry = DISTRIBUTIONS["laplace"].log_prob(mean, log_scale.clamp(*LOG_SCALE_RANGE), sample)
    assert_near(per_entry, expected()[f"{case}/sample/log_prob_per_dim"])
    assert_near(per_entry.sum(-1), expected()[f"{case}/sample/log_prob_per_step"])


@pytest.mark.parametrize("case", CASES)
def test_neither_causal_attention_nor_the_other_form_would_pass_for_it(case: Case) -> None:
    single, split = (shared_model(case).heads(slots(shared_model(case), form))[0] for form in ("single", "split"))
    causal = torch.from_numpy(expected()[f"{case}/single_causal_WRONG/mu"])
    assert (single - causal).abs().max() > 100 * TOLERANCE
    assert (single - split).abs().max() > 100 * TOLERANCE


def trained(model: OpenVLAOFT) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
    """The parameters that RIPT-VLA trains, and lets train."""
    lora = {name: value for name, value in lora_parameters(model.vla).items() if name.startswith(TRAINED)}
    head = {f"action_head.{name}": value for name, value in model.action_head.named_parameters()}
    for parameter in (*lora.values(), *head.values()):
        parameter.requires_grad_(True)
    return {f"base_model.model.{name}": value for name, value in lora.items()}, head


def norm(parameters: dict[str, torch.nn.Parameter]) -> float:
    return float(torch.stack([value.grad.norm() for value in parameters.values() if value.grad is not None]).norm())


def ppo_log_probs(model: OpenVLAOFT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """New and old log-probabilities of the fixture's five queries, advantage and weight of each, in one batch."""
    settings, episodes = meta()["ppo"], range(2)
    rows = [row for indices in settings["episode_obs_index"] for row in indices]
    lengths = [len(indices) for indices in settings["episode_obs_index"]]
    tasks = [settings["episode_task"][episode] for episode in episodes for _ in range(lengths[episode])]
    actions, old = (
        torch.from_numpy(np.concatenate([expected()[f"ppo/ep{episode}/{name}"] for episode in episodes]))
        for name in ("actions_normalized", "old_log_prob")
    )
    with torch.no_grad():
        encoded = model.encode(context(model, rows, tasks))
    mean, log_scale = model.heads(model.slots(encoded))
    new = DISTRIBUTIONS["laplace"].log_prob(mean, log_scale.clamp(*LOG_SCALE_RANGE), actions)
    repeats = torch.tensor(lengths)
    advantages = torch.from_numpy(expected()["ppo/advantages"]).repeat_interleave(repeats)
    return new, old, advantages, (1 / (repeats * settings["gradient_accumulation_steps"])).repeat_interleave(repeats)


def test_one_ppo_minibatch_gives_the_published_loss_gradients_and_step() -> None:
    model = new_model("lora_all").double()
    lora, head = trained(model)
    new, old, advantages, weights = ppo_log_probs(model)
    assert_near(new, expected()["ppo/new_log_prob"])
    loss, _ = clipped_surrogate(
        new.sum(-1),
        old.sum(-1),
        advantages_N=advantages * weights,
        valid_NU=torch.ones(new.shape[:2], dtype=torch.bool),
        clip_low=meta()["ppo"]["clip_low"],
        clip_high=meta()["ppo"]["clip_high"],
        count=torch.tensor(float(new.shape[1])),
    )
    loss.backward()
    theirs = {key.removeprefix("ppo/sum_on_action_dim/"): value for key, value in expected().items()}
    assert loss.item() == pytest.approx(float(theirs["total_loss"]), rel=1e-4)
    assert norm(lora) == pytest.approx(float(theirs["grad_norm_lora"]), rel=1e-3)
    assert norm(head) == pytest.approx(float(theirs["grad_norm_action_head"]), rel=1e-3)
    assert {*expected()["ppo/lora_grad_names"]} == {*lora}
    gradients = {key.removeprefix("ppo/grad/"): value for key, value in expected().items() if "ppo/grad/" in key}
    parameters = lora | head
    for name, value in gradients.items():
        gradient = parameters[name].grad
        assert gradient is not None
        assert_near(gradient, value, 3e-4 * float(np.abs(value).max()))
    check_step(lora, head)


def check_step(lora: dict[str, torch.nn.Parameter], head: dict[str, torch.nn.Parameter]) -> None:
    settings = meta()["ppo"]
    for parameters, limit in ((lora, "grad_clip_lora"), (head, "grad_clip_head")):
        torch.nn.utils.clip_grad_norm_(parameters.values(), settings[limit])
    options = {"betas": tuple(settings["betas"]), "weight_decay": settings["weight_decay"]}
    torch.optim.AdamW([*lora.values(), *head.values()], lr=settings["lr"], **options).step()
    after = {key.removeprefix("ppo/after_adamw/"): value for key, value in expected().items() if "after_adamw" in key}
    assert len(after) == 2
    for name, value in after.items():
        assert_near((lora | head)[name], value, 1e-6)
