"""Every position of the language model attends to every other one, and to nothing that only fills up a row."""

import torch
from transformers import LlamaForCausalLM

from ript_ray.policies.openvla_oft.architecture import Language
from ript_ray.policies.openvla_oft.language import attend_to_all, new_language_model

SIZES = Language(16, 32, 2, 2, 2, vocab_size=8, pad_token_id=0)
NUM_POSITIONS = 7


def new_llama() -> LlamaForCausalLM:
    """Weights large enough that positions matter to each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_language_model(SIZES).eval()
    for parameter in model.parameters():
        parameter.data *= 10.0 if parameter.ndim > 1 else 1.0
    return model


def made_up() -> tuple[torch.Tensor, torch.Tensor]:
    embeddings = torch.randn(1, NUM_POSITIONS, SIZES.hidden_size, generator=torch.Generator().manual_seed(0))
    return embeddings, torch.ones(1, NUM_POSITIONS, dtype=torch.bool)


@torch.no_grad()
def test_moving_a_late_position_moves_an_early_hidden_state() -> None:
    model, (embeddings, is_token) = new_llama(), made_up()
    moved = embeddings.clone()
    moved[:, -1] += 1.0
    (before, _), (after, _) = (attend_to_all(model, given, is_token) for given in (embeddings, moved))
    assert (after - before)[:, 0].abs().max() > 1e-2
    causal = [model.model(inputs_embeds=given).last_hidden_state for given in (embeddings, moved)]
    torch.testing.assert_close(*[hidden[:, 0] for hidden in causal])  # what Llama does without our mask


@torch.no_grad()
def test_a_second_pass_attends_to_the_first_and_to_itself_but_changes_nothing_in_it() -> None:
    model, (embeddings, is_token) = new_llama(), made_up()
    _, earlier = attend_to_all(model, embeddings[:, :4], is_token[:, :4])
    kept = [(keys.clone(), values.clone()) for keys, values in earlier]

    def second(moved: int) -> torch.Tensor:
        later = embeddings[:, 4:].clone()
        later[:, moved] += 1.0
        return attend_to_all(model, later, is_token, earlier)[0]

    assert (second(2) - second(0))[:, 1].abs().max() > 1e-2
    torch.testing.assert_close([*earlier], kept, rtol=0, atol=0)
    assert not torch.allclose(second(1), attend_to_all(model, embeddings[:, 4:], is_token[:, 4:])[0], atol=1e-2)


@torch.no_grad()
def test_positions_that_fill_up_a_row_have_no_effect() -> None:
    model, (embeddings, is_token) = new_llama(), made_up()
    filled = torch.cat([embeddings[:, :3], torch.full((1, 2, SIZES.hidden_size), 9.0), embeddings[:, 3:]], dim=1)
    is_filled = torch.tensor([[True] * 3 + [False] * 2 + [True] * 4])
    alone, _ = attend_to_all(model, embeddings, is_token)
    together, _ = attend_to_all(model, filled, is_filled)
    torch.testing.assert_close(together[is_filled], alone[0], rtol=0, atol=1e-5)
