"""TensorBoard's event files of a run, in its folder."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ript_ray.tracking.metrics_log import MetricPoint, over_axes
from ript_ray.tracking.tracker import RunStatus

logger = logging.getLogger(__name__)


class TensorBoardTracker:
    """Writes points as scalars, under the names and on the axes that they have in MLflow.

    It writes directly: tensorboardX's own writer has a thread and a queue, which would block training for good once a
    full disk has ended that thread.
    """

    def __init__(self, folder: Path, earlier: Sequence[MetricPoint] = ()):
        """Write the event files anew: an event cannot be taken back, and a resumed run may make updates again.

        Args:
            folder: Folder of the event files; what it holds is replaced.
            earlier: Points of earlier processes.
        """
        self._error: str | None = None
        self._writer: Any = None
        try:
            self._writer = _open(folder)
        except OSError as error:
            self._give_up(error)
        for point in earlier:
            self.log(point)

    def log(self, point: MetricPoint) -> None:
        """Write a point."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._error:  # what follows a torn event cannot be read
            return
        try:
            for name, step, value in over_axes(point):
                summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
                self._writer.write_event(Event(wall_time=point.timestamp_ms / 1000, step=step, summary=summary))
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def log_files(self, paths: Sequence[Path]) -> None:
        """Leave files where they are: in the run's folder, beside the event files."""

    def close(self, status: RunStatus) -> str | None:
        """Close the files; returns why they are not complete, or None."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self._give_up(error)
        return self._error

    def _give_up(self, error: OSError) -> None:
        """A disk that is full must not end a run."""
        if self._error is None:
            self._error = f"TensorBoard's event files end early ({error}); a resumed run writes them anew"
            logger.warning("tracking: %s", self._error)


def _open(folder: Path) -> Any:
    from tensorboardX.event_file_writer import EventsWriter

    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    logger.info("tracking: TensorBoard, %s", folder)
    return EventsWriter(str(folder / "events"))
