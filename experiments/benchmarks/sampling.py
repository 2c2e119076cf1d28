"""What do cached keys and values gain when QueST acts, and what does recording context tokens save?

Question: how much processor time does a query take (the prior's tokens alone, and all of `act`) with keys and values
    cached, against running the whole sequence again for every token as the authors' code does; are the tokens the
    same; how many bytes do a decision and a group weigh with context tokens, and would with pictures?
Method: the published MetaWorld policy (one camera, 128 x 128) with random weights, one thread as an actor has. Both
    ways draw from the same generators, in turn, `repeats` times; processor time of the thread, so that busy
    neighbours count for little. Bytes are those of the arrays that `act` is given and records.
Expected: the same tokens, and log-probabilities to within rounding. A gain that grows with K, from 1.5 for one rollout
    to 2 for 16 on one core: with few rows both ways are bound by reading 44 MB of weights for each of 8 tokens; with
    more rows running again costs what its 52 positions cost, against 10. A decision weighs a sixteenth of its picture.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.progress import track
from timed import print_table, spread

from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.presets import published
from ript_ray.policies.quest.skill_prior import SampledTokens, SkillPrior, score
from ript_ray.types import Arrays

INSTRUCTION = "drawer open"


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        rollouts: Numbers of rollouts that a query decides for, K.
        repeats: Queries per point and way.
        group_rollouts: Rollouts of the group that is weighed.
        group_decisions: Decisions of each of them: an episode of 500 steps has 63.
    """

    rollouts: tuple[int, ...] = (1, 8, 16)
    repeats: int = 25
    group_rollouts: int = 8
    group_decisions: int = 63


@torch.no_grad()
def sample_again(
    prior: SkillPrior, context_BLD: torch.Tensor, generators: Sequence[np.random.Generator], top_k: int
) -> SampledTokens:
    """Draw as `SkillPrior.sample` does at temperature 1, but run the whole sequence again for every token."""
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
    """What the camera and the sensor of MetaWorld give, random."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (num_rollouts, 128, 128, 3), dtype=np.uint8)
    return {"corner_rgb": pictures, "robot_states": rng.normal(size=(num_rollouts, 8)).astype(np.float32)}


def generators(num_rollouts: int) -> list[np.random.Generator]:
    """The same ones every time."""
    return [np.random.default_rng(row) for row in range(num_rollouts)]


def milliseconds(ways: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median processor time of each way, taken in turn; the first turn is not counted."""
    durations: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + repeats):
        for way, taken in zip(ways, durations, strict=True):
            started = time.thread_time()
            way()
            taken.append(time.thread_time() - started)
    return [1000 * spread(taken[1:])[1] for taken in durations]


def measure(policy: QuestPolicy, num_rollouts: int, repeats: int) -> tuple[str, ...]:
    """A row of the first table."""
    prior, top_k = policy.policy_prior, policy.settings.top_k
    seen, texts = observations(num_rollouts), [INSTRUCTION] * num_rollouts
    with torch.no_grad():
        context = policy.context_tokens({name: torch.from_numpy(array) for name, array in seen.items()}, texts)

    def cached() -> SampledTokens:
        return prior.sample(context, generators(num_rollouts), top_k=top_k, temperature=1.0)

    def again() -> SampledTokens:
        return sample_again(prior, context, generators(num_rollouts), top_k)

    def act() -> object:
        return policy.act(seen, texts, generators(num_rollouts))

    cached_ms, again_ms, act_ms = milliseconds((cached, again, act), repeats)
    ours, theirs = cached(), again()
    are_same = torch.equal(ours.tokens_BU, theirs.tokens_BU)
    scores = [score(sampled.logits_BUV, sampled.tokens_BU) for sampled in (ours, theirs)]
    return (
        f"{num_rollouts}",
        f"{again_ms:.0f}",
        f"{cached_ms:.0f}",
        f"{again_ms / cached_ms:.2f}",
        "yes" if are_same else "NO",
        f"{(scores[0] - scores[1]).abs().max():.0e}",
        f"{act_ms:.0f}",
        f"{act_ms / num_rollouts:.1f}",
    )


def weigh(policy: QuestPolicy, num_rollouts: int, num_decisions: int) -> list[tuple[str, ...]]:
    """Rows of the second table."""
    seen = observations(num_rollouts)
    decisions = policy.act(seen, [INSTRUCTION] * num_rollouts, generators(num_rollouts))
    scored = decisions.log_probs_BU.nbytes + decisions.valid_BU.nbytes
    sampled = decisions.record["tokens"].nbytes + scored
    sizes = {
        "context tokens": decisions.record["context"].nbytes + sampled,
        "picture and state": sum(array.nbytes for array in seen.values()) + sampled,
    }
    return [
        (name, f"{size / num_rollouts:,.0f}", f"{size * num_decisions / 1e6:.2f}", f"{size / min(sizes.values()):.1f}")
        for name, size in sizes.items()
    ]


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = published("metaworld", (INSTRUCTION,)).new_policy()
    rows = [measure(policy, count, options.repeats) for count in track(options.rollouts, "points")]
    print_table(
        f"Processor time of a query in ms, medians of {options.repeats}",
        ("K", "run again", "cached", "gain", "same tokens", "log-probs", "act", "per rollout"),
        rows,
    )
    print_table(
        f"What travels: a group of {options.group_rollouts} rollouts of {options.group_decisions} decisions",
        ("recorded", "bytes per decision", "MB per group", "times"),
        weigh(policy, options.group_rollouts, options.group_decisions),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
