"""The optimisation of one supervised stage, which can stop after any step and go on as if it had not."""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ript_ray.errors import CheckpointError, DivergenceError
from ript_ray.optim import decay_groups, moments_of, put_moments
from ript_ray.policies.supervised import LossFn, SupervisedStage
from ript_ray.types import Arrays

RNG_STATE = "torch_generator"
"""Name of the state of torch's generator, which dropout draws from."""

FINAL_SHARE = 0.1
"""Of the learning rate, at the end of the schedule. Source: QueST, 1e-5 of 1e-4."""


class SupervisedTrainer:
    """One stage under way: AdamW, its schedule, and the order of the windows."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        loss_fn: LossFn,
        *,
        settings: SupervisedStage,
        num_windows: int,
        seed: int,
    ):
        """Begin the stage.

        Args:
            parameters: What trains, by name.
            loss_fn: What it minimises.
            settings: Steps or epochs, and the optimiser's settings.
            num_windows: Windows there are.
            seed: Of the order, of dropout and of augmentation.
        """
        self.step = 0
        self._parameters = dict(parameters)
        self._loss_fn = loss_fn
        self._settings = settings
        self._seed = seed
        self._batch_size = min(settings.batch_size, num_windows)
        self._num_windows = num_windows
        self._steps_per_epoch = math.ceil(num_windows / self._batch_size)
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._parameters.items(), settings.weight_decay), lr=settings.learning_rate
        )
        torch.manual_seed(seed)  # dropout

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole stage."""
        return self._settings.num_steps or (self._settings.num_epochs or 0) * self._steps_per_epoch

    def steps(self) -> Iterator[float]:
        """Take the steps that are left, one per loss that is asked for.

        Raises:
            DivergenceError: A loss or a gradient is not finite.
        """
        for rows in itertools.islice(self._batches(), self.step, self.num_steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self._learning_rate()
            loss = self._loss_fn(rows, np.random.default_rng((self._seed, self.step)))
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.max_grad_norm)
            if not (loss.isfinite() and norm.isfinite()):
                raise DivergenceError(
                    f"step {self.step + 1}: loss {loss.item():g}, gradient norm {norm.item():g}: not finite; "
                    "lower the stage's learning-rate"
                )
            self._optimizer.step()
            self.step += 1
            yield loss.item()

    def state(self) -> Arrays:
        """With the weights, all that the next step depends on."""
        return {**moments_of(self._optimizer, self._parameters), RNG_STATE: torch.get_rng_state().numpy().copy()}

    def restore(self, step: int, state: Arrays) -> None:
        """Go on behind `step`; the parameters must hold the weights of that moment already.

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
            raise CheckpointError(f"the state of torch's generator cannot be used: {error}") from error
        self.step = step

    def _batches(self) -> Iterator[torch.Tensor]:
        """Rows of each step: drawn anew where steps are counted, in passes where epochs are."""
        order = np.random.default_rng(self._seed)
        while True:
            if self._settings.num_steps:
                yield torch.from_numpy(order.integers(self._num_windows, size=self._batch_size))
            else:
                yield from torch.from_numpy(order.permutation(self._num_windows)).split(self._batch_size)

    def _learning_rate(self) -> float:
        """The cosine schedule; it moves with each step where steps are counted, with each epoch where epochs are."""
        settings = self._settings
        done = self.step / self.num_steps
        if settings.num_epochs:
            done = (self.step // self._steps_per_epoch) / settings.num_epochs
        share = FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))
        return share * settings.learning_rate
