"""Settings of expert demonstrations."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ript_ray.checks import require_at_least, require_between


@dataclass(frozen=True)
class Demonstrations:
    """Expert demonstrations for the supervised stages.

    Attributes:
        folder: Folder of demonstration files, one per task, as written by `ript-ray demos` or QueST's authors; if not
            given, scripted experts are recorded at the start. Contexts may come from the same demonstrations
            (sampling.context-source demos).
        num_per_task: Training demonstrations per task, at least 1. Source: paper, section 5.1.
        selection: Which demonstrations of a file: first (the first num-per-task) or spread (evenly spaced from first
            to last). Without a folder, the first successes are recorded. Source: QueST's few-shot experiments: spread
            on LIBERO, first on MetaWorld.
        num_held_out: Held-out demonstrations per task, at least 0: the supervised stages report their error on them
            but do not train on them. Source: ours.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, 0 to 1, in units of half the
            action range. Source: QueST's MetaWorld data has 0.2.
        max_attempts: Consecutive failed attempts after which recording a task is given up, at least 1; failed
            attempts are dropped. Source: ours.
        max_memory_bytes: If the demonstrations of a folder exceed this size, their images are read from the files when
            they are needed, at least 0. Changes no result. Source: ours.
    """

    folder: Path | None = None
    num_per_task: int = 50
    selection: Literal["first", "spread"] = "first"
    num_held_out: int = 0
    action_noise: float = 0.2
    max_attempts: int = 20
    max_memory_bytes: int = field(default=4 * 2**30, metadata={"before": 4 * 2**30})

    def __post_init__(self) -> None:
        require_at_least("demos.num-per-task", self.num_per_task, 1)
        require_at_least("demos.num-held-out", self.num_held_out, 0)
        require_between("demos.action-noise", self.action_noise, 0.0, 1.0)
        require_at_least("demos.max-attempts", self.max_attempts, 1)
        require_at_least("demos.max-memory-bytes", self.max_memory_bytes, 0)
