"""How much does key-value caching speed up QueST's sampling, and how much does recording context tokens save?

Question: how much processor time does a query take (sampling the prior's tokens alone, and all of `act`) with cached
    keys and values, compared with recomputing the whole sequence for every token as the authors' code does? Are the
    tokens the same? How large are a decision and a group with recorded context tokens, and with images?
Method: the published MetaWorld policy (one camera, 128 x 128) with random weights and one thread, as in an actor. Both
    methods sample from the same generators, alternating, `repeats` times; processor time of the thread is measured, so
    that other processes hardly matter. Sizes are those of the arrays that `act` receives and records.
Expected: the same tokens, and log-probabilities equal up to rounding. A speedup that grows with K, from 1.5 for one
    rollout to 2 for 16 on one core: with few rows, both methods are bound by reading 44 MB of weights for each of 8
    tokens; with more rows, recomputing processes 52 positions instead of 10. A decision is 16 times smaller than its
    image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.progress import track

from experiments.benchmarks.timed import in_turns, print_table, spread
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.presets import SPECS, published
from ript_ray.policies.quest.skill_prior import SampledTokens, SkillPrior, score
from ript_ray.types import Arrays

INSTRUCTION = "drawer open"


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        rollouts: Numbers of rollouts per query, K.
        repeats: Queries per point and method.
        group_rollouts: Rollouts of the group whose size is computed.
        group_decisions: Decisions per rollout; an episode of 500 steps has 63.
    """

    rollouts: tuple[int, ...] = (1, 8, 16)
    repeats: int = 25
    group_rollouts: int = 8
    group_decisions: int = 63


@torch.no_grad()
def sample_uncached(
    prior: SkillPrior, context_BLD: torch.Tensor, generators: Sequence[np.random.Generator], top_k: int
) -> SampledTokens:
    """Sample like `SkillPrior.sample` at temperature 1, but recompute the whole sequence for every token."""
    uniforms_BU = torch.from_numpy(np.stack([rng.random(prior.num_tokens) for rng in generators]))
    tokens_BU = torch.full((len(context_BLD), 1), prior.start_token)
    logits = []
    for position in range(prior.num_tokens):
        inputs = prior.add_positional_emb(prior.tok_emb(tokens_BU))
        hidden = prior.decoder(torch.cat([context_BLD, inputs], dim=1))
        logits.append(prior.head(prior.lnf(hidden[:, context_BLD.shape[1] :]))[:, -1])
        best_BK, candidates_BK = logits[-1].topk(top_k)
        cumulative_BK = best_BK.double().softmax(dim=-1).cumsum(dim=-1)
        targets_B1 = (uniforms_BU[:, position] * cumulative_BK[:, -1]).unsqueeze(-1)
        choice_B1 = torch.searchsorted(cumulative_BK, targets_B1, right=True).clamp(max=top_k - 1)
        tokens_BU = torch.cat([tokens_BU, candidates_BK.gather(-1, choice_B1)], dim=1)
    return SampledTokens(tokens_BU[:, 1:], torch.stack(logits, dim=1), candidates_BUK=None)


def observations(num_rollouts: int) -> Arrays:
    """Return random observations of MetaWorld's camera and sensor."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_rollouts, 128, 128, 3), dtype=np.uint8)
    return {"corner_rgb": images, "robot_states": rng.normal(size=(num_rollouts, 8)).astype(np.float32)}


def generators(num_rollouts: int) -> list[np.random.Generator]:
    """Return one generator per rollout, with the same seeds every time."""
    return [np.random.default_rng(row) for row in range(num_rollouts)]


def measure(policy: QuestPolicy, num_rollouts: int, repeats: int) -> tuple[str, ...]:
    """Return a row of the first table."""
    prior, top_k = policy.policy_prior, policy.settings.top_k
    observed, texts = observations(num_rollouts), [INSTRUCTION] * num_rollouts
    with torch.no_grad():
        context = policy.context_tokens({name: torch.from_numpy(array) for name, array in observed.items()}, texts)

    def cached() -> SampledTokens:
        return prior.sample(context, generators(num_rollouts), top_k=top_k, temperature=1.0)

    def uncached() -> SampledTokens:
        return sample_uncached(prior, context, generators(num_rollouts), top_k)

    def act() -> object:
        return policy.act(observed, texts, generators(num_rollouts))

    cached_ms, uncached_ms, act_ms = (
        1000 * spread(samples_s)[1] for samples_s in in_turns((cached, uncached, act), repeats)
    )
    ours, reference = cached(), uncached()
    are_same = torch.equal(ours.tokens_BU, reference.tokens_BU)
    scores = [score(sampled.logits_BUV, sampled.tokens_BU) for sampled in (ours, reference)]
    return (
        f"{num_rollouts}",
        f"{uncached_ms:.0f}",
        f"{cached_ms:.0f}",
        f"{uncached_ms / cached_ms:.2f}",
        "yes" if are_same else "NO",
        f"{(scores[0] - scores[1]).abs().max():.0e}",
        f"{act_ms:.0f}",
        f"{act_ms / num_rollouts:.1f}",
    )


def sizes_of(policy: QuestPolicy, num_rollouts: int, num_decisions: int) -> list[tuple[str, ...]]:
    """Return the rows of the second table."""
    observed = observations(num_rollouts)
    decisions = policy.act(observed, [INSTRUCTION] * num_rollouts, generators(num_rollouts))
    scored = decisions.log_probs_BU.nbytes + decisions.valid_BU.nbytes
    sampled = decisions.record["tokens"].nbytes + scored
    sizes = {
        "context tokens": decisions.record["context"].nbytes + sampled,
        "image and state": sum(array.nbytes for array in observed.values()) + sampled,
    }
    return [
        (name, f"{size / num_rollouts:,.0f}", f"{size * num_decisions / 1e6:.2f}", f"{size / min(sizes.values()):.1f}")
        for name, size in sizes.items()
    ]


def main(options: Options) -> None:
    """Run the benchmark and print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = published("metaworld", (INSTRUCTION,)).build(SPECS["metaworld"])
    rows = [measure(policy, count, options.repeats) for count in track(options.rollouts, "points")]
    print_table(
        f"Processor time per query in ms, median of {options.repeats}",
        ("K", "uncached", "cached", "speedup", "same tokens", "log-probs", "act", "act / K"),
        rows,
    )
    print_table(
        f"Size of a group of {options.group_rollouts} rollouts with {options.group_decisions} decisions each",
        ("recorded", "bytes per decision", "MB per group", "relative size"),
        sizes_of(policy, options.group_rollouts, options.group_decisions),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
