"""Several data-parallel learners take the same optimizer steps as one."""

import multiprocessing
from collections.abc import Mapping, Sequence

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.distributed import ProcessGroupGloo

from ript_ray.rl.data_parallel import Rendezvous
from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.protocols import Components
from tests.conftest import line_parts, tiny_quest
from tests.fakes import CHUNK, TinyChunkPolicy
from tests.ript_ray.rl.test_learner_oracle import make_groups


class RoutedPolicy(TinyChunkPolicy):
    """Some parameters have a gradient only where a learner's rows hold the first decision of an episode; one never."""

    def __init__(self) -> None:
        super().__init__("laplace")
        self.first = nn.Parameter(torch.ones(CHUNK))
        self.never = nn.Parameter(torch.ones(2, 2))

    def trainable(self) -> dict[str, nn.Parameter]:
        return {"first": self.first, "never": self.never, **super().trainable()}

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        log_probs_NU = super().log_probs(record)
        is_first_N = record["state"][:, 0] == 0.0
        if is_first_N.any():
            log_probs_NU = log_probs_NU + torch.where(is_first_N.unsqueeze(-1), self.first - 1.0, 0.0)
        return log_probs_NU


# At these rates rounding errors do not grow: Adam divides tiny gradients by their own magnitude.
SETTINGS = {"minibatch_rollouts": 7, "learning_rate": 1e-4, "max_grad_norm": 1e-2}
PARTS: dict[str, Components] = {
    "tokens": line_parts(tiny_quest, **SETTINGS),
    "laplace": line_parts(lambda: TinyChunkPolicy("laplace"), **SETTINGS),
    "routed": line_parts(RoutedPolicy, **{**SETTINGS, "minibatch_rollouts": 1}),
    "micro-batches": line_parts(
        tiny_quest, **SETTINGS, micro_batch_decisions=2, loss_average="rollout", recompute_log_probs=True
    ),
}
NUM_GROUPS = 5


def learn(parts: Components, learner: Learner) -> tuple[np.ndarray, UpdateReport]:
    for group in make_groups(parts.build_policy(), NUM_GROUPS):
        learner.receive(group)
    report = learner.update(range(NUM_GROUPS))
    return learner.weights().buffer.view(np.float32).copy(), report


def run_learner(kind: str, rank: int, size: int, meeting: Rendezvous | None, answers: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    parts = PARTS[kind]
    learner = Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)
    if meeting is None:
        meeting = learner.open_store("127.0.0.1")
        answers.put(meeting)
    learner.join(meeting, host="127.0.0.1", rank=rank, size=size, timeout_s=300)
    num_reductions = 0
    reduce = ProcessGroupGloo.allreduce  # type: ignore[attr-defined]

    def counting(*arguments):
        nonlocal num_reductions
        num_reductions += 1
        return reduce(*arguments)

    ProcessGroupGloo.allreduce = counting  # type: ignore[attr-defined]
    connections = psutil.Process().net_connections("tcp")
    hosts = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    answers.put((rank, *learn(parts, learner), num_reductions, hosts))


def learn_together(kind: str, size: int) -> Sequence[tuple[int, np.ndarray, UpdateReport, int, set[str]]]:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    meeting, processes = None, []
    for rank in range(size):
        processes.append(context.Process(target=run_learner, args=(kind, rank, size, meeting, answers), daemon=True))
        processes[-1].start()
        meeting = meeting or answers.get(timeout=300)
    found = sorted((answers.get(timeout=300) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(30)
    return found


@pytest.mark.parametrize(
    ("kind", "size"), [("tokens", 2), ("laplace", 3), ("routed", 2), ("routed", 3), ("micro-batches", 2)]
)
def test_several_learners_match_one_to_1e_6_with_one_all_reduce_per_step(kind: str, size: int) -> None:
    parts = PARTS[kind]
    alone = Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)
    weights, report = learn(parts, alone)
    found = learn_together(kind, size)
    for _, their_weights, their_report, num_reductions, hosts in found:
        assert hosts == {"127.0.0.1"}, "learners listen where they are told to, and nowhere else"
        np.testing.assert_allclose(their_weights, weights, atol=1e-6)
        np.testing.assert_array_equal(their_weights, found[0][1], err_msg="learners must stay bit-identical")
        assert their_report.loss == pytest.approx(report.loss, abs=1e-6)
        assert their_report.grad_norm == pytest.approx(report.grad_norm, rel=1e-4)
        assert their_report.first_approx_kl == pytest.approx(report.first_approx_kl, abs=1e-6)
        num_recomputations = int(parts.ppo.recompute_log_probs)
        assert num_reductions == report.num_optimizer_steps + num_recomputations, "one flat buffer each"
