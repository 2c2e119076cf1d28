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
from ript_ray.rl.gradient_buckets import BUCKET_BYTES, GradientBuckets
from ript_ray.rl.learner import Learner, UpdateReport
from ript_ray.rl.protocols import Components
from ript_ray.rl.row_exchange import SharedGroup
from tests.conftest import line_parts, tiny_quest
from tests.fakes import CHUNK, TinyChunkPolicy
from tests.ript_ray.rl.test_encodings import DoublingPolicy
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


class WidePolicy(TinyChunkPolicy):
    """Its gradients fill two buckets."""

    def __init__(self) -> None:
        super().__init__("laplace")
        self.wide = nn.Parameter(torch.ones(BUCKET_BYTES // torch.float32.itemsize))

    def trainable(self) -> dict[str, nn.Parameter]:
        return {**super().trainable(), "wide": self.wide}

    def log_probs(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return super().log_probs(record) + (self.wide[:CHUNK] - 1.0)


# At these rates rounding errors do not grow: Adam divides tiny gradients by their own magnitude.
SETTINGS = {"minibatch_rollouts": 7, "learning_rate": 1e-4, "max_grad_norm": 1e-2}
PARTS: dict[str, Components] = {
    "tokens": line_parts(tiny_quest, **SETTINGS),
    "laplace": line_parts(lambda: TinyChunkPolicy("laplace"), **SETTINGS),
    "routed": line_parts(RoutedPolicy, **{**SETTINGS, "minibatch_rollouts": 1}),
    "encodings": line_parts(DoublingPolicy, **SETTINGS, encoding_cache_bytes=100),
    "micro-batches": line_parts(
        tiny_quest, **SETTINGS, micro_batch_decisions=2, loss_average="rollout", recompute_log_probs=True
    ),
}
PARTS["parallel passes"] = line_parts(WidePolicy, **SETTINGS, parallel_passes=3)
PARTS["wide"] = line_parts(
    WidePolicy, **{**SETTINGS, "minibatch_rollouts": 100, "num_iterations": 1}, micro_batch_decisions=40
)
NUM_BUCKETS = {"wide": 2, "parallel passes": 2}
DURING_BACKWARD = {"wide": 1}
NUM_GROUPS = 5


def learn(parts: Components, learner: Learner, *, rank: int = 0, size: int = 1) -> tuple[np.ndarray, UpdateReport]:
    """Learn from groups of which the first learner has none, and one learner a single one, unless it is alone."""
    homes = [min(index, size - 1) or size - 1 for index in range(NUM_GROUPS)]
    for group, home in zip(make_groups(parts.build_policy(), NUM_GROUPS), homes, strict=True):
        if home == rank:
            learner.receive(group)
        else:
            learner.receive_outline(SharedGroup(group, home).outline)
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
    during_backward: list[bool] = []
    reduce = ProcessGroupGloo.allreduce  # type: ignore[attr-defined]

    def counting(*arguments):
        during_backward.append(torch._C._current_graph_task_id() != -1)
        return reduce(*arguments)

    ProcessGroupGloo.allreduce = counting  # type: ignore[attr-defined]
    connections = psutil.Process().net_connections("tcp")
    hosts = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    answers.put((rank, *learn(parts, learner, rank=rank, size=size), during_backward, hosts))


def learn_together(kind: str, size: int) -> Sequence[tuple[int, np.ndarray, UpdateReport, list[bool], set[str]]]:
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
    ("kind", "size"),
    [
        ("tokens", 2),
        ("laplace", 3),
        ("routed", 2),
        ("routed", 3),
        ("encodings", 2),
        ("micro-batches", 2),
        ("parallel passes", 2),
        ("wide", 2),
    ],
)
def test_several_learners_match_one_to_1e_6_with_one_all_reduce_per_step_and_bucket(kind: str, size: int) -> None:
    parts = PARTS[kind]
    alone = Learner(parts.build_policy, parts.ppo, seed=parts.seed, num_threads=1)
    weights, report = learn(parts, alone)
    found = learn_together(kind, size)
    for _, their_weights, their_report, during_backward, hosts in found:
        assert hosts == {"127.0.0.1"}, "learners listen where they are told to, and nowhere else"
        np.testing.assert_allclose(their_weights, weights, atol=1e-6)
        np.testing.assert_array_equal(their_weights, found[0][1], err_msg="learners must stay bit-identical")
        assert their_report.loss == pytest.approx(report.loss, abs=1e-6)
        assert their_report.grad_norm == pytest.approx(report.grad_norm, rel=1e-4)
        assert their_report.first_approx_kl == pytest.approx(report.first_approx_kl, abs=1e-6)
        num_recomputations = int(parts.ppo.recompute_log_probs)
        num_buckets = NUM_BUCKETS.get(kind, 1)
        assert len(during_backward) == report.num_optimizer_steps * num_buckets + num_recomputations
        num_early = DURING_BACKWARD.get(kind, 0)
        assert sum(during_backward) == report.num_optimizer_steps * num_early, "the last takes metrics along"


def test_buckets_are_sent_in_one_order_whichever_gradients_come_first() -> None:
    num_entries = BUCKET_BYTES // torch.float32.itemsize
    parameters = [nn.Parameter(torch.ones(num_entries)) for _ in range(3)]
    sent: list[int] = []

    def double(tensors: Sequence[torch.Tensor]):
        sent.append(sum(tensor.numel() for tensor in tensors))
        return lambda: [tensor.mul_(2) for tensor in tensors]

    metrics = torch.ones(4)
    buckets = GradientBuckets(parameters, double)
    parameters[1].sum().backward()  # of the second bucket
    assert sent == [], "a learner with the first bucket's gradient would send that first"
    parameters[0].sum().backward()
    buckets.finish(metrics)
    assert sent == [num_entries, num_entries, 4 + 3 + num_entries]
    assert [None if each.grad is None else float(each.grad[0]) for each in parameters] == [2.0, 2.0, None]
    assert metrics.tolist() == [2.0] * 4
