"""Optimizer loop of one supervised stage, which resumes exactly after any step."""

import contextlib
import itertools
import math
from collections.abc import Generator, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ript_ray.errors import CheckpointError, DivergenceError
from ript_ray.optim import cosine, decay_groups, moments_of, put_moments
from ript_ray.policies.supervised import LossFn, SupervisedStage, WindowBatch, WindowReader
from ript_ray.sft.interrupts import deferred_interrupts
from ript_ray.types import Arrays

RNG_STATE = "torch_generator"
"""Name of the state of torch's generator, the source of dropout."""

FINAL_SHARE = 0.1
"""Final learning rate as a fraction of the peak. Source: QueST, 1e-5 of 1e-4."""


class SupervisedTrainer:
    """Trainer of one stage: AdamW, its schedule, and the order of the windows.

    Attributes:
        step: Steps taken so far.
        is_between_steps: Whether weights and state are those after `step`; not after an error within a step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        loss_fn: LossFn,
        reader: WindowReader,
        *,
        settings: SupervisedStage,
        seed: int,
    ):
        """Prepare the stage; seeds torch's global generator.

        Args:
            parameters: The parameters to train, by name.
            loss_fn: The loss to minimize.
            reader: Reads what the loss is computed of, ahead of the steps.
            settings: Steps or epochs, and the optimizer's settings.
            seed: Seed of the order, of dropout and of augmentation.
        """
        self.step = 0
        self.is_between_steps = True
        self._parameters = dict(parameters)
        self._loss_fn = loss_fn
        self._reader = reader
        self._settings = settings
        self._seed = seed
        self._num_windows = len(reader.windows)
        self._batch_size = min(settings.batch_size, self._num_windows)
        self._steps_per_epoch = math.ceil(self._num_windows / self._batch_size)
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._parameters.items(), settings.weight_decay), lr=settings.learning_rate
        )
        torch.manual_seed(seed)  # dropout

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self._settings.num_steps or (self._settings.num_epochs or 0) * self._steps_per_epoch

    def steps(self) -> Generator[float, None, None]:
        """Take the remaining steps and yield the loss of each. An interrupt waits until the step is done.

        Close the generator to stop early: it may have threads that read ahead.

        Raises:
            DivergenceError: A loss or a gradient is not finite.
            RiptError: What a step reads is corrupt.
        """
        order = itertools.islice(self._batches(), self.step, self.num_steps)
        with contextlib.closing(self._reader.batches(order)) as batches:
            for batch in batches:
                with deferred_interrupts():  # half a step cannot be saved: weights, moments and generator must fit
                    self.is_between_steps = False
                    loss = self._take_step(batch)
                    self.step += 1
                    self.is_between_steps = True
                yield loss

    def state(self) -> Arrays:
        """Return a copy of all that the next step depends on besides the weights."""
        return {**moments_of(self._optimizer, self._parameters), RNG_STATE: torch.get_rng_state().numpy().copy()}

    def restore(self, step: int, state: Arrays) -> None:
        """Resume after `step`; the parameters must already hold the matching weights.

        Raises:
            CheckpointError: The state does not fit.
        """
        moments = {name: array for name, array in state.items() if name != RNG_STATE}
        if RNG_STATE not in state or not 0 <= step <= self.num_steps:
            raise CheckpointError(f"this is not the state of a stage of {self.num_steps} steps after step {step}")
        put_moments(self._optimizer, self._parameters, moments)
        try:
            torch.set_rng_state(torch.from_numpy(np.array(state[RNG_STATE])))
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"the state of torch's generator is invalid: {error}") from error
        self.step = step

    def _take_step(self, batch: WindowBatch) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss = self._loss_fn(batch, np.random.default_rng((self._seed, self.step)))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise DivergenceError(
                f"step {self.step + 1}: loss {loss.item():g}, gradient norm {norm.item():g}: not finite; "
                "lower the stage's learning-rate"
            )
        self._optimizer.step()
        return loss.item()

    def _batches(self) -> Iterator[torch.Tensor]:
        """Yield the rows of each step: drawn with replacement if steps are counted, in permutations if epochs are."""
        order = np.random.default_rng(self._seed)
        while True:
            if self._settings.num_steps:
                yield torch.from_numpy(order.integers(self._num_windows, size=self._batch_size))
            else:
                yield from torch.from_numpy(order.permutation(self._num_windows)).split(self._batch_size)

    def _learning_rate(self) -> float:
        """Return the learning rate, which changes with each step if steps are counted, else with each epoch."""
        settings = self._settings
        done = self.step / self.num_steps
        if settings.num_epochs:
            done = min(1.0, (self.step // self._steps_per_epoch) / (settings.schedule_epochs or settings.num_epochs))
        return cosine(1.0, FINAL_SHARE, done) * settings.learning_rate
