"""Kinds of processors in one run."""

import logging

from ript_ray.runtime.host import processor_kind

logger = logging.getLogger(__name__)


class ProcessorLog:
    """Logs every kind of processor that differs from the driver's, once."""

    def __init__(self) -> None:
        self._known = {processor_kind()}

    def note(self, slot: int, processor: str) -> None:
        """Take note of the processor of a rollout actor."""
        if processor in self._known:
            return
        self._known.add(processor)
        text = (
            "rollout actor %d has another kind of processor (%s) than the driver (%s): rollouts on it are as good, but "
            "may differ in their last bits, and so may the weights"
        )
        logger.warning(text, slot, processor, processor_kind())
