"""How much does an update of OpenVLA-OFT compute, compared with the authors' way?

Question: how many floating-point operations (FLOPs) are the forward passes of an update, per decision of its batch?
Method: the authors score one decision at a time and compute all of it anew in each of N iterations, with what nobody
    reads: the last block of each vision tower, and the language model's logits. Ours batches decisions, leaves that
    out and, if decisions fit into `ppo.encoding-cache-bytes`, encodes their images once per update. torch's counter
    counts the matrix products that run: of the 7 B on torch's meta device, from one pass times the number of passes;
    of the tiny checkpoint likewise and, to confirm it, in updates of the real learner, which are timed, too (uncounted,
    with their gradients, in processor time of one thread). A rollout needs one more pass in every way.
Expected: on the tiny checkpoint 4 times less in one iteration and 12 times in four; 1.3 and 3.5 times if its 32,064
    logits, which are two thirds of it, are left out of the authors'. At 7 B, 1.02 times less in one iteration and 1.12
    in twenty: nine tenths are the language model's pass over patches and prompt. It goes through the layers whose
    adapter is trained, so every optimizer step changes it, and nothing of it can be kept.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import track
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.timed import print_table
from ript_ray.config.rl import PPO
from ript_ray.policies.openvla_oft.architecture import Architecture, read_architecture
from ript_ray.policies.openvla_oft.checkpoint import load_openvla_oft
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.policies.openvla_oft.inputs import NUM_TOKENS, Inputs
from ript_ray.policies.openvla_oft.lora import add_lora, new_config
from ript_ray.policies.openvla_oft.model import OpenVLAOFT
from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy
from ript_ray.rl.learner import Learner
from ript_ray.types import Arrays, Group, Rollout, Version

INSTRUCTION = "open the middle drawer of the cabinet"
IMAGE_SIZE = 256


@dataclass(frozen=True)
class Options:
    """Sizes of the benchmark.

    Attributes:
        checkpoint: Folder with the tiny checkpoint.
        suite: Whose statistics the checkpoint has.
        iterations: Numbers of iterations, N.
        group_size: Rollouts of a group.
        rollout_decisions: Decisions of a rollout.
    """

    checkpoint: Path = Path(__file__).parents[2] / "tests" / "fixtures" / "openvla_oft" / "checkpoint"
    suite: str = "libero_goal"
    iterations: tuple[int, ...] = (1, 4, 20)
    group_size: int = 4
    rollout_decisions: int = 2


@dataclass(frozen=True)
class Way:
    """A way to score the decisions of an update.

    Attributes:
        name: As it stands in the table.
        ppo: What it sets.
        reads_all: Whether it computes what nobody reads.
    """

    name: str
    ppo: Mapping[str, Any]
    reads_all: bool = False


WAYS = (
    Way("authors'", {"micro_batch_decisions": 1, "encoding_cache_bytes": 0}, reads_all=True),
    Way("uncached", {"encoding_cache_bytes": 0}),
    Way("cached", {}),
)


class CountedPolicy(OpenVLAOFTPolicy):
    """Counts the FLOPs of its forward passes while `counts` is true."""

    counts = False
    flops = 0

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Score decisions; encoding them is part of it where they come without their encodings."""
        with self._counting():
            return super().log_probs(record)

    def encode(self, record: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode images."""
        with self._counting():
            return super().encode(record)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        if not self.counts:
            yield
            return
        self.counts = False
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no other on the CPU
            yield
        self.flops += counter.get_total_flops()
        self.counts = True


@dataclass(frozen=True)
class Parts:
    """FLOPs of one pass over a decision, by part.

    Attributes:
        images: The vision towers and the projector.
        language: The language model and the heads.
        unread_blocks: The last blocks of the towers.
        logits: The language model's logits.
    """

    images: int
    language: int
    unread_blocks: int
    logits: int

    def of_update(self, way: Way, num_iterations: int) -> int:
        """Return the FLOPs of an update, per decision."""
        num_encodings = num_iterations if "encoding_cache_bytes" in way.ppo else 1
        unread = num_iterations * (self.unread_blocks + self.logits) if way.reads_all else 0
        return num_encodings * self.images + num_iterations * self.language + unread


def compute_what_nobody_reads(model: OpenVLAOFT) -> None:
    """Add what the authors' code computes, and nothing depends on, to every pass from here on."""

    def run(module: nn.Module, output: torch.Tensor) -> None:
        module(output)

    language = model.vla.language_model
    language.model.register_forward_hook(lambda _, inputs, output: run(language.lm_head, output.last_hidden_state))
    for tower in (model.vla.vision_backbone.featurizer, model.vla.vision_backbone.fused_featurizer):
        last_run, last = tower.blocks[-2], tower.blocks[-1]
        last_run.register_forward_hook(lambda _, inputs, output, last=last: run(last, output))


def count(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return a result, and the FLOPs it took."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


@torch.no_grad()
def parts_of(architecture: Architecture, num_tokens: int) -> Parts:
    """Count one pass over one decision on torch's meta device."""
    settings = OpenVLAOFTConfig()
    with torch.device("meta"):
        model = OpenVLAOFT(architecture)
        add_lora(model.vla, new_config(rank=settings.lora_rank, alpha=settings.lora_alpha), is_loaded=True)
        size = architecture.dino.image_size
        pixels = torch.zeros(1, 6 * architecture.num_cameras, size, size)
        state = torch.zeros(1, architecture.proprio_dim)
        prompt = torch.zeros(1, num_tokens, dtype=torch.long)

        def language(patches: torch.Tensor) -> torch.Tensor:
            context = model.context(patches, state, prompt, torch.full((1,), num_tokens))
            return model.heads(model.slots(model.encode(context)))[0]

        patches, images = count(lambda: model.embed_images(pixels))
        words = count(lambda: language(patches))[1]
        compute_what_nobody_reads(model)
        all_images, all_words = count(lambda: model.embed_images(pixels))[1], count(lambda: language(patches))[1]
    return Parts(images, words, all_images - images, all_words - words)


def new_policy(options: Options, way: Way) -> CountedPolicy:
    """Build the policy of the tiny checkpoint, with a new adapter."""
    torch.manual_seed(0)
    config = OpenVLAOFTConfig(checkpoint=options.checkpoint, suite=options.suite, precision="float32")
    inputs = Inputs.read(options.checkpoint, suite=options.suite, cameras=config.cameras, sensors=config.sensors)
    model = load_openvla_oft(options.checkpoint, dtype=torch.float32)
    add_lora(model.vla, new_config(rank=config.lora_rank, alpha=config.lora_alpha))
    if way.reads_all:
        compute_what_nobody_reads(model)
    return CountedPolicy(config, model, inputs)


def new_group(options: Options) -> Group:
    """Let the policy act on noise; every second rollout is a success."""
    policy, rng, rollouts = new_policy(options, WAYS[-1]), np.random.default_rng(0), []
    num_rows = options.rollout_decisions
    dims = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
    for number in range(options.group_size):
        images = (num_rows, IMAGE_SIZE, IMAGE_SIZE, 3)
        seen: Arrays = {camera: rng.integers(256, size=images, dtype=np.uint8) for camera in policy.settings.cameras}
        seen |= {name: rng.uniform(-1, 1, (num_rows, dim)).astype(np.float32) for name, dim in dims.items()}
        decisions = policy.act(seen, [INSTRUCTION] * num_rows, [np.random.default_rng(row) for row in range(num_rows)])
        scores = decisions.log_probs_BU, decisions.valid_BU
        rollouts.append(Rollout(number % 2 == 0, 8 * num_rows, decisions.record, *scores))
    return Group(0, Version(0), tuple(rollouts))


def measure(options: Options, way: Way, num_iterations: int, group: Group) -> list[str]:
    """Return GFLOP and milliseconds of an update, per decision: of two updates, one counted and one timed."""
    policy = new_policy(options, way)
    ppo = PPO(num_iterations=num_iterations, minibatch_rollouts=options.group_size, **way.ppo)
    learner, durations_s = Learner(lambda: policy, ppo, seed=0, num_threads=1), []
    for policy.counts in (True, False):
        learner.receive(group)
        started = time.thread_time()
        assert learner.update([0]).error is None
        durations_s.append(time.thread_time() - started)
    num_decisions = options.group_size * options.rollout_decisions
    return [f"{policy.flops / num_decisions / 1e9:,.2f}", f"{1000 * durations_s[1] / num_decisions:,.0f}"]


def ratios(parts: Parts, way: Way, num_iterations: int) -> list[str]:
    """Return the FLOPs of an update, and how many times less they are than the authors'.

    The ratios are of all, of all but logits, and of all with the pass of the rollout as well.
    """
    theirs, ours = (parts.of_update(each, num_iterations) for each in (WAYS[0], way))
    logits = num_iterations * parts.logits
    their_rollout, rollout = (parts.of_update(each, 1) for each in (WAYS[0], way))
    return [
        f"{ours / 1e9:,.2f}",
        f"{theirs / ours:.2f}",
        f"{(theirs - logits) / (ours - logits * way.reads_all):.2f}",
        f"{(theirs + their_rollout) / (ours + rollout):.2f}",
    ]


def main(options: Options) -> None:
    """Run the benchmark and print the tables."""
    group = new_group(options)
    num_tokens = int(group.rollouts[0].record[NUM_TOKENS][0])
    tiny = parts_of(read_architecture(options.checkpoint), num_tokens)
    full = parts_of(Architecture(), num_tokens)
    print_table(
        "One pass over a decision, GFLOP",
        ("model", "images", "language and heads", "unread blocks", "unread logits"),
        [
            [name, *(f"{part / 1e9:,.2f}" for part in vars(parts).values())]
            for name, parts in (("tiny", tiny), ("7 B", full))
        ],
    )
    points = [(number, way) for number in options.iterations for way in WAYS]
    columns = ("N", "way", "GFLOP", "times less", "no logits", "rollout")
    print_table(
        "Forward passes of an update at 7 B, per decision",
        columns,
        [[f"{number}", way.name, *ratios(full, way, number)] for number, way in points],
    )
    print_table(
        "The same of the tiny checkpoint, counted and timed in real updates, too",
        (*columns, "counted", "ms"),
        [
            [f"{number}", way.name, *ratios(tiny, way, number), *measure(options, way, number, group)]
            for number, way in track(points, "updates")
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
