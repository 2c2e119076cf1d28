"""Several data-parallel learners take the same optimizer steps as one."""

import multiprocessing
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import distributed

from ript_ray.policies.base import Policy
from ript_ray.rl.learner import Learner
from ript_ray.rl.protocols import Components
from ript_ray.rl.rollout import EnvironmentPool, roll_out
from ript_ray.types import Group, RolloutRequest, Version
from tests.conftest import line_parts, line_stream, tiny_quest
from tests.fakes import LineBenchmark, TinyChunkPolicy

BUILDERS: dict[str, Callable[[], Policy]] = {"tokens": tiny_quest, "laplace": lambda: TinyChunkPolicy("laplace")}
NUM_GROUPS = 5


def make_groups(kind: str) -> list[Group]:
    stream, pool, policy = line_stream(), EnvironmentPool(LineBenchmark().make), BUILDERS[kind]()
    requests = [
        RolloutRequest(index, (stream.at(index),) * 4, tuple((9, index, member) for member in range(4)))
        for index in range(NUM_GROUPS)
    ]
    return [roll_out(request, policy, pool, max_steps=12, version=Version(0)) for request in requests]


def parts_of(kind: str) -> Components:
    # At these rates rounding errors do not grow: Adam divides tiny gradients by their own magnitude.
    return line_parts(BUILDERS[kind], minibatch_rollouts=7, learning_rate=1e-4, max_grad_norm=1e-2)


def learn(kind: str, learner: Learner) -> tuple[np.ndarray, float, float]:
    for group in make_groups(kind):
        learner.receive(group)
    report = learner.update(range(NUM_GROUPS))
    return learner.weights().buffer.view(np.float32).copy(), report.loss, report.grad_norm


def run_learner(kind: str, rank: int, size: int, port: int, answers: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    parts = parts_of(kind)
    learner = Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)
    if rank == 0:
        _, port = learner.open_store("127.0.0.1")
        answers.put(port)
    learner.join(("127.0.0.1", port), rank=rank, size=size, timeout_s=300)
    num_reductions = 0
    reduce = distributed.all_reduce

    def counting(*arguments):
        nonlocal num_reductions
        num_reductions += 1
        return reduce(*arguments)

    distributed.all_reduce = counting
    answers.put((rank, *learn(kind, learner), num_reductions))
    distributed.destroy_process_group()


def learn_together(kind: str, size: int) -> Sequence[tuple[int, np.ndarray, float, float, int]]:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    port, processes = 0, []
    for rank in range(size):
        processes.append(context.Process(target=run_learner, args=(kind, rank, size, port, answers), daemon=True))
        processes[-1].start()
        port = port or answers.get(timeout=300)
    found = sorted((answers.get(timeout=300) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(30)
    return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", BUILDERS)
def test_several_learners_match_one_to_1e_6_with_one_all_reduce_per_step(kind: str, size: int) -> None:
    parts = parts_of(kind)
    alone = Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)
    weights, loss, grad_norm = learn(kind, alone)
    found = learn_together(kind, size)
    for _, their_weights, their_loss, their_grad_norm, num_reductions in found:
        np.testing.assert_allclose(their_weights, weights, atol=1e-6)
        np.testing.assert_array_equal(their_weights, found[0][1], err_msg="learners must stay bit-identical")
        assert their_loss == pytest.approx(loss, abs=1e-6)
        assert their_grad_norm == pytest.approx(grad_norm, rel=1e-4)
        assert num_reductions == 2 * 3, "two passes of three minibatches, one flat buffer each"
