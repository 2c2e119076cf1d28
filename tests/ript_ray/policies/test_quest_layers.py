"""QueST's layers leave out what nobody reads and share what rows have in common; the results are those of all of it."""

import pytest
import torch
from torch import nn

from ript_ray.policies.quest.layers import CausalTransformer, SharedPrefixes, decode_chunk
from tests.conftest import tiny_quest

WIDTH = 16


@pytest.fixture
def transformer() -> CausalTransformer:
    torch.manual_seed(0)
    layers = CausalTransformer(width=WIDTH, num_heads=2, num_layers=3, feedforward=32, dropout=0.0)
    return layers.double().eval()


def gradients_of(module: nn.Module, output: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [*torch.autograd.grad((output * weights).sum(), [*module.parameters()])]


@pytest.mark.parametrize("num_read", [1, 3, 5])
def test_reading_the_last_positions_gives_what_reading_all_gives(transformer: CausalTransformer, num_read: int) -> None:
    x = torch.randn(4, 5, WIDTH, dtype=torch.float64)
    some, every = transformer(x, num_read=num_read), transformer(x)[:, -num_read:]
    torch.testing.assert_close(some, every)
    torch.testing.assert_close(gradients_of(transformer, some), gradients_of(transformer, every))


@pytest.mark.parametrize(("prefix_length", "rows"), [(1, [0, 1, 0, 0, 1, 2]), (3, [2, 1, 0]), (1, [0])])
def test_shared_prefixes_give_outputs_and_gradients_of_whole_sequences(
    transformer: CausalTransformer, prefix_length: int, rows: list[int]
) -> None:
    prefixes = torch.randn(3, prefix_length, WIDTH, dtype=torch.float64)
    following = torch.randn(len(rows), 4, WIDTH, dtype=torch.float64)
    rows_B = torch.tensor(rows)
    whole = transformer(torch.cat([prefixes[rows_B], following], dim=1))[:, -2:]
    shared = transformer.continue_from(SharedPrefixes(prefixes, rows_B), following, num_read=2)
    torch.testing.assert_close(shared, whole)
    torch.testing.assert_close(gradients_of(transformer, shared), gradients_of(transformer, whole))


@pytest.mark.parametrize("is_one_task", [True, False])
def test_decisions_of_any_tasks_are_scored_as_if_each_had_a_task_of_its_own(is_one_task: bool) -> None:
    prior = tiny_quest().policy_prior.double()
    context = torch.randn(6, 2, 16, dtype=torch.float64)
    if is_one_task:
        context[:, 0] = context[0, 0]
    tokens = torch.randint(0, 9, (6, prior.num_tokens))
    together = prior.logits(context, tokens)
    alone = torch.cat([prior.logits(context[[row]], tokens[[row]]) for row in range(6)])
    torch.testing.assert_close(together, alone)
    prior.train()  # without dropout: only the way of computing changes
    torch.testing.assert_close(prior.logits(context, tokens), together)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_chunk_is_decoded_as_by_torch(is_training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, 0.0, activation="gelu", batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoder(layer, 2).double().train(is_training)
    queries = torch.randn(1, 8, WIDTH, dtype=torch.float64)
    codes = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(8, dtype=torch.float64)
    theirs = decoder(queries.expand(3, -1, -1), codes, tgt_mask=mask, tgt_is_causal=True)
    ours = decode_chunk(decoder, queries, codes)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients_of(decoder, ours), gradients_of(decoder, theirs))


def test_dropout_tells_the_rows_of_a_batch_apart() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, 0.5, activation="gelu", batch_first=True, norm_first=True)
    decoder = nn.TransformerDecoder(layer, 1).train()
    first, second = decode_chunk(decoder, torch.randn(1, 8, WIDTH), torch.zeros(2, 2, WIDTH))
    assert not torch.equal(first, second)
