"""A policy without an experiment, to be passed on: weights (safetensors), a card, hashes of both.

`from_pretrained` reads such a folder, and checkpoints of runs too.
"""

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, cast

from ript_envs.contract import EnvironmentSpec
from ript_ray.checks import require
from ript_ray.config.experiment import POLICIES, Experiment
from ript_ray.config.serialization import Content, from_json, to_json
from ript_ray.errors import CheckpointError
from ript_ray.policies.base import Policy, PolicyConfig
from ript_ray.runs import checkpoint
from ript_ray.runs.run_dir import RunDir
from ript_ray.runs.saved_policy import SavedPolicy
from ript_ray.storage.hashed_dir import (
    atomic_directory,
    load_arrays,
    require_finite,
    save_arrays,
    sha256_of,
    verify_manifest,
)
from ript_ray.types import Arrays

WEIGHTS = "policy.safetensors"
CARD = "model.json"
README = "README.md"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provenance:
    """Where weights are from.

    Attributes:
        file: Name of the file they were read from.
        sha256: Its SHA-256, hexadecimal.
        layout: Which of the upstream formats it has.
    """

    file: str
    sha256: str
    layout: str


@dataclass(frozen=True)
class Card:
    """Description of a policy.

    Attributes:
        name: A word or two for the reader.
        policy: Its configuration.
        environment: What it reads and how it acts: the environments that it was trained in.
        tasks: Tasks that it was trained on; empty if unknown.
        provenance: Where its weights are from.
    """

    name: str
    policy: Annotated[PolicyConfig, POLICIES]
    environment: EnvironmentSpec
    tasks: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True)
class Model:
    """A policy's card and weights."""

    card: Card
    arrays: Arrays = field(repr=False)

    def build(self) -> Policy:
        """Build the policy.

        Raises:
            CheckpointError: The weights do not fit the card.
        """
        self.card.policy.check_arrays(self.card.environment, self.arrays)
        policy = self.card.policy.build(self.card.environment)
        policy.load_state_arrays(self.arrays)
        return policy


def from_pretrained(path: str | Path) -> Policy:
    """Return the policy of a model folder, a checkpoint, or a run (its newest valid checkpoint), ready to act.

    Raises:
        CheckpointError: There is none, or part of it is missing, damaged or foreign; the message names it.
    """
    folder = Path(path)
    return load_model(folder).build() if is_model(folder) else checkpoint.load_latest(folder).build()


def initial_policy(experiment: Experiment) -> SavedPolicy:
    """Return the policy that an experiment starts from: the one that `start_from` names, or a newly built one.

    Raises:
        RiptError: The first stage needs a policy and none is named, or it is missing, damaged, or does not fit.
    """
    if experiment.start_from is None:
        first, order = experiment.stages[0], experiment.all_stages
        missing = [stage for stage in order[: order.index(first)] if stage not in experiment.policy.finished_stages()]
        require(
            not missing,
            f"start-from must name what the stage {first} starts from: a model folder, a checkpoint, or a run's "
            f"folder; without it, nothing gives the result of {', '.join(missing)}",
        )
        return SavedPolicy.initial(experiment).with_instructions()
    policy = load_start(experiment.start_from, experiment)
    logger.info("starting from %s", experiment.start_from)
    return policy.with_instructions()


def load_start(path: Path, experiment: Experiment) -> SavedPolicy:
    """Return the policy that an experiment is to start from, with the weights of another one.

    Args:
        path: A model folder, a checkpoint, or the folder of a run that has finished.
        experiment: The experiment; its first stage needs a policy that the stage before has trained.

    Raises:
        CheckpointError: There is none, part of it is missing, damaged or foreign, the run has not finished, it did not
            train the stage before, or its weights do not fit or mean something else.
    """
    if is_model(path):
        model = load_model(path)
        return _fitting(path, model.card.policy, SavedPolicy(experiment, model.arrays))
    found = checkpoint.find(path)
    if found != path and not RunDir(path).results.exists():
        raise CheckpointError(f"{path} has not finished; resume it, or name one of its checkpoints, such as {found}")
    saved = checkpoint.load(found)
    _require_stage_before(path, saved.experiment, experiment)
    return _fitting(path, saved.experiment.policy, SavedPolicy(experiment, saved.arrays))


def _require_stage_before(path: Path, trained: Experiment, experiment: Experiment) -> None:
    order, first, last = experiment.all_stages, experiment.stages[0], trained.stages[-1]
    position = order.index(first)
    if last in order and order.index(last) < position - 1:
        raise CheckpointError(
            f"{path} ends with the stage {last}, but {first} starts from the end of {order[position - 1]}"
        )


def _fitting(path: Path, trained: PolicyConfig, policy: SavedPolicy) -> SavedPolicy:
    """Return a policy, if weights that were trained with another configuration fit its own.

    Raises:
        CheckpointError: They do not, or mean something else, which shapes do not show; the message names the settings.
    """
    wanted = policy.experiment.policy
    names = [field.name for field in fields(cast(Any, wanted))] if trained.kind == wanted.kind else ["kind"]
    differing = [name for name in names if getattr(wanted, name) != getattr(trained, name, None)]
    misfit: CheckpointError | None = None
    try:
        policy.check()
    except CheckpointError as error:
        misfit = error
    telling = differing if misfit else [name for name in differing if name in ("kind", *wanted.semantic_fields)]
    if telling:
        settings = [
            f"policy.{name.replace('_', '-')} is {getattr(trained, name, None)} there, {getattr(wanted, name)} here"
            for name in telling
        ]
        raise CheckpointError(f"{path} does not fit this experiment: {'; '.join(settings)}") from misfit
    if misfit:
        raise misfit
    return policy


def is_model(folder: Path) -> bool:
    """Return whether a folder claims to be a model folder."""
    return (folder / CARD).is_file()


def save_model(folder: Path, model: Model) -> None:
    """Write a model to a folder, which must not exist.

    Raises:
        CheckpointError: The folder exists, a weight is not finite, or the weights do not fit the card.
        StorageError: A file cannot be written; nothing is left behind.
    """
    require_finite(model.arrays)
    policy = model.build()
    with atomic_directory(folder) as unfinished:
        save_arrays(model.arrays, unfinished / WEIGHTS)
        (unfinished / CARD).write_text(to_json(model.card))
        (unfinished / README).write_text(_readme(model, policy, sha256_of(unfinished / WEIGHTS)))


def load_model(folder: Path) -> Model:
    """Read and verify a model folder.

    Raises:
        CheckpointError: A file is missing, damaged or foreign; the message names it.
    """
    if not is_model(folder):
        raise CheckpointError(f"{folder} is not a model of ript-ray: it has no {CARD}")
    verify_manifest(folder, (WEIGHTS, CARD))
    card = from_json(folder / CARD, Card, "a model", {1: _split_interface})
    return Model(card, load_arrays(folder / WEIGHTS))


def _split_interface(content: Content) -> Content:
    """Schema 1 had one kind of policy, and kept its settings with the sizes of its benchmark."""
    interface: dict[str, Any] = content.pop("interface", {})
    settings: dict[str, Any] = interface.get("settings", {})
    environment = {
        "name": "unknown",
        "action_dim": interface.get("action_dim"),
        "state_dims": interface.get("state_dims"),
        "image_shapes": {camera: [settings.get("image_size")] * 2 + [3] for camera in settings.get("cameras", ())},
        "control_hz": 20.0,
        "max_steps": 500,
    }
    return {**content, "policy": {"kind": "quest", **settings}, "environment": environment}


def _readme(model: Model, policy: Policy, weights_sha256: str) -> str:
    card = model.card
    rows = {
        "entries": str(len(model.arrays)),
        "trained by post-training": f"{sum(value.numel() for value in policy.trainable().values()):,} parameters",
        **card.policy.card(card.environment, model.arrays),
        "tasks": ", ".join(card.tasks) or "not stated",
        "weights from": f"`{card.provenance.file}`, upstream format `{card.provenance.layout}`",
        "SHA-256 of that file": f"`{card.provenance.sha256}`",
        f"SHA-256 of `{WEIGHTS}`": f"`{weights_sha256}`",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: ript-ray\npipeline_tag: robotics\n---\n\n# {card.name}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Every size and setting is in `model.json`; `manifest.json` holds the hashes that are checked on loading:\n\n"
        "    from ript_ray import load_policy\n\n"
        '    policy = load_policy("path/to/this/folder")\n\n'
        "Use and licence of the weights are as with the file they are from.\n"
    )
