"""Settings of the demonstrations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ript_ray.checks import require_at_least, require_between


@dataclass(frozen=True)
class Demonstrations:
    """Expert demonstrations for the supervised stages.

    Attributes:
        folder: Folder of demonstration files, one per task, as `ript-ray demos` or QueST's authors write them; unless
            given, scripted experts are recorded at the start.
        num_per_task: Demonstrations per task that are trained on, at least 1. Source: paper, section 5.1.
        selection: Which of a file's demonstrations: first (the first so many) or spread (evenly from first to last,
            as the authors choose few). Without a folder the first so many successes are recorded.
        num_held_out: Demonstrations per task that no stage trains on, at least 0: the error of the supervised stages
            is measured on them, too. Source: ours.
        action_noise: Standard deviation of Gaussian noise on the expert's actions, in [0, 1] of the action
            range's half. Source: QueST's MetaWorld data has 0.2.
        max_attempts: Failed attempts are dropped; give up on a task after this many in a row, at least 1.
            Source: ours.
    """

    folder: Path | None = None
    num_per_task: int = 50
    selection: Literal["first", "spread"] = "first"
    num_held_out: int = 0
    action_noise: float = 0.2
    max_attempts: int = 20

    def __post_init__(self) -> None:
        require_at_least("demos.num-per-task", self.num_per_task, 1)
        require_at_least("demos.num-held-out", self.num_held_out, 0)
        require_between("demos.action-noise", self.action_noise, 0.0, 1.0)
        require_at_least("demos.max-attempts", self.max_attempts, 1)
