"""How fast are the authors' sampling and update of QueST, on the same weights and decisions?

Question: how much more processor time do the authors take to sample the skill tokens of K rollouts, one rollout at a
    time (as their runner does) and all in one batch, and for a forward and backward pass over recorded decisions?
Method: a checkout of https://github.com/pairlab/QueST is imported, which RIPT-VLA trains; its prior gets our weights.
    The published MetaWorld sizes with random weights, one thread; contexts are given to both, so the camera's part is
    left out. Decisions are those of `num_tasks` tasks. Ways in turn; processor time; minimum, median and maximum of
    ratios within a round. Their package needs `pip install positional-encodings`.
Expected: the same log-probabilities up to rounding; 10 times as fast as one by one, 2.5 times as fast as in a batch.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from experiments.benchmarks.timed import extremes, in_turns, print_table
from ript_ray.checks import require
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.presets import SPECS, published
from ript_ray.policies.quest.skill_prior import score

MODULE = "quest.algos.quest_modules.skill_gpt"


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        authors: The checkout.
        num_rollouts: Rollouts of a query, K.
        num_decisions: Decisions of a pass.
        num_tasks: Their tasks.
        rounds: Rounds, each of which takes every way in turn.
    """

    authors: Path
    num_rollouts: int = 16
    num_decisions: int = 240
    num_tasks: int = 3
    rounds: int = 5


Ratios = Sequence[float]


def import_prior(checkout: Path) -> Any:
    """Import the authors' module of the prior.

    Raises:
        ConfigError: It is not there.
    """
    path = checkout / (MODULE.replace(".", "/") + ".py")
    require(path.is_file(), f"{path} does not exist: the checkout of QueST must be given")
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module(MODULE)
    finally:
        sys.path.remove(str(checkout))


def their_prior(checkout: Path, policy: QuestPolicy) -> Any:
    """Build the authors' prior with the weights of a policy's."""
    ours, settings = policy.policy_prior, policy.settings
    prior = import_prior(checkout).SkillGPT(
        action_dim=policy.autoencoder.action_head.out_features,
        start_token=ours.start_token,
        vocab_size=ours.head.out_features,
        block_size=ours.num_tokens,
        n_layer=settings.prior_layers,
        n_head=settings.prior_heads,
        n_embd=settings.prior_width,
        attn_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        beam_size=settings.top_k,
        temperature=settings.temperature,
        device="cpu",
    )
    names = prior.state_dict().keys()
    prior.load_state_dict({name: value for name, value in ours.state_dict().items() if name in names})
    return prior.eval()


def measure(options: Options) -> Iterator[tuple[str, Ratios]]:
    """Compare both ways of sampling and of an update; yields what is compared, and the authors' time over ours."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = published("metaworld", ("drawer open",)).build(SPECS["metaworld"])
    ours, theirs, settings = policy.policy_prior, their_prior(options.authors, policy), policy.settings
    tasks = torch.randn(options.num_tasks, settings.prior_width)
    rows = torch.arange(options.num_decisions) % options.num_tasks
    contexts = torch.stack([tasks[rows], torch.randn(options.num_decisions, settings.prior_width)], dim=1)
    tokens = torch.randint(0, ours.start_token, (options.num_decisions, ours.num_tokens))
    inputs = torch.cat([torch.full_like(tokens[:, :1], ours.start_token), tokens[:, :-1]], dim=1)
    query = contexts[: options.num_rollouts]
    generators = [np.random.default_rng(row) for row in range(options.num_rollouts)]

    def update(log_probs: Callable[[], torch.Tensor], prior: torch.nn.Module) -> torch.Tensor:
        for parameter in prior.parameters():
            parameter.grad = None
        loss = -log_probs().sum()
        loss.backward()
        return loss.detach()

    def our_update() -> torch.Tensor:
        return update(lambda: ours.log_probs(contexts, tokens), ours)

    def their_update() -> torch.Tensor:
        return update(lambda: score(theirs(inputs, contexts), tokens), theirs)

    torch.testing.assert_close(our_update(), their_update(), rtol=1e-5, atol=0.0)
    with torch.no_grad():
        sampled = _ratios(
            lambda: ours.sample(query, generators, top_k=settings.top_k, temperature=settings.temperature),
            lambda: [theirs.get_indices_top_k(row, ours.start_token) for row in query.split(1)],
            lambda: theirs.get_indices_top_k(query, ours.start_token),
            rounds=options.rounds,
        )
    yield f"tokens of {options.num_rollouts} rollouts, one by one / ours", sampled[0]
    yield f"tokens of {options.num_rollouts} rollouts, in a batch / ours", sampled[1]
    yield "forward and backward pass / ours", _ratios(our_update, their_update, rounds=options.rounds)[0]


def _ratios(ours: Callable[[], object], *others: Callable[[], object], rounds: int) -> list[Ratios]:
    """Return the time of each other way over that of ours in every round."""
    ours_s, *others_s = in_turns((ours, *others), rounds)
    return [[theirs / own for theirs, own in zip(each, ours_s, strict=True)] for each in others_s]


def main(options: Options) -> None:
    """Run the benchmark and print the table."""
    rows = [(what, *(f"{figure:.2f}" for figure in extremes(ratios))) for what, ratios in measure(options)]
    print_table(f"The authors' processor time over ours, {options.rounds} rounds", ("", "min", "median", "max"), rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
