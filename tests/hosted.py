"""Environments for processes of their own; imports neither torch nor Ray, so that these start in half a second."""

import contextlib
import logging
import os
import time
from pathlib import Path

import numpy as np

logger = logging.getLogger("ript_ray.tests.hosted")


class Walk:
    """Solved two metres to the right. The task may say that something happens in the third step."""

    def __init__(self, task: str) -> None:
        self.task = task

    def reset(self, initial_state) -> None:
        (self.position,) = initial_state
        self.num_steps = 0

    def step(self, action) -> bool:
        self.num_steps += 1
        if self.num_steps == 3:
            self.happen()
        self.position += float(action[0])
        return self.position >= 2.0

    def happen(self) -> None:
        match self.task:
            case "dies":
                os.kill(os.getpid(), 9)
            case "raises":
                raise ValueError("the gripper is stuck")
            case "warns":
                logger.warning("contact is soft")
            case "hangs":
                print("hangs", flush=True)
                time.sleep(3600)
            case meeting if meeting.startswith("meets in "):
                self.meet(Path(meeting.removeprefix("meets in ")))

    def meet(self, folder: Path) -> None:
        """Wait for the other environment of two: it never comes if it steps after this one."""
        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while len(list(folder.iterdir())) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("the other environment does not step")
            time.sleep(0.01)

    def observe(self):
        return {"position": np.array([self.position], np.float32), "process": np.array([os.getpid()])}

    def render(self, camera: str):
        raise ValueError(camera)

    def close(self) -> None:
        if self.task == "clings":
            raise RuntimeError("the window stays open")


def fail_to_build(task: str) -> Walk:
    raise FileNotFoundError(2, "no such scene", task)


class Line:
    """The line of `tests.fakes`; in the middle of a group, one process of all dies or hangs once."""

    def __init__(self, fault: str, mark: Path) -> None:
        self.fault, self.mark = fault, mark
        self.num_steps = 0

    def reset(self, initial_state) -> None:
        self.position, self.goal = initial_state

    def step(self, action) -> bool:
        self.num_steps += 1
        if self.num_steps == 20:
            with contextlib.suppress(FileExistsError):  # another process was first
                self.mark.touch(exist_ok=False)
                self.fail()
        self.position += 0.2 * float(action[0])
        return abs(self.position - self.goal) < 0.1

    def fail(self) -> None:
        match self.fault:
            case "SIGKILL":
                os.kill(os.getpid(), 9)
            case "SIGKILL of the actor":
                os.kill(os.getppid(), 9)
        time.sleep(3600)

    def observe(self):
        return {"state": np.array([self.position, self.goal], dtype=np.float32)}

    def render(self, camera: str):
        raise ValueError(camera)

    def close(self) -> None: ...


def make_line(fault: str, mark: Path, task: str) -> Line:
    return Line(fault, mark)
