"""A policy on its own: weights (safetensors), a card that says what it is and where it is from, hashes of both.

The folder holds no experiment, so it can be passed on; `from_pretrained` reads it, and checkpoints of runs too.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ript_ray.config.serialization import from_json, to_json
from ript_ray.errors import CheckpointError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.policies.quest.policy import TEXT, QuestPolicy
from ript_ray.policies.quest.presets import Interface
from ript_ray.policies.quest.upstream_checkpoint import UpstreamFormat
from ript_ray.runs import checkpoint
from ript_ray.runs.run_dir import RunDir
from ript_ray.storage.hashed_dir import (
    atomic_directory,
    load_arrays,
    require_finite,
    save_arrays,
    sha256_of,
    verify_manifest,
)
from ript_ray.types import Arrays, Stage

WEIGHTS = "policy.safetensors"
CARD = "model.json"
README = "README.md"


@dataclass(frozen=True)
class Provenance:
    """Where weights are from.

    Attributes:
        file: Name of the file they were read from.
        sha256: Its SHA-256, hexadecimal.
        layout: Which of the authors' layouts it has.
    """

    file: str
    sha256: str
    layout: UpstreamFormat


@dataclass(frozen=True)
class Card:
    """What a policy is.

    Attributes:
        name: A word or two for the reader.
        interface: Its settings, and the sizes that its benchmark fixes.
        tasks: Tasks that it was trained on, as far as that is known.
        provenance: Where its weights are from.
    """

    name: str
    interface: Interface
    tasks: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True)
class Model:
    """A policy's card and weights."""

    card: Card
    arrays: Arrays = field(repr=False)

    def __call__(self) -> QuestPolicy:
        """Build the policy.

        Raises:
            CheckpointError: The weights do not fit the card.
        """
        policy = self.card.interface.new_policy()
        policy.load_state_arrays(self.arrays)
        return policy


def from_pretrained(path: str | Path) -> QuestPolicy:
    """The policy of a model folder, a checkpoint, or a run folder (its newest checkpoint), ready to act.

    Raises:
        CheckpointError: There is none, or something of it is missing, damaged or foreign; the message names it.
    """
    folder = Path(path)
    return load_model(folder)() if is_model(folder) else checkpoint.load(checkpoint.find(folder))()


def load_start(path: Path, *, first: Stage) -> tuple[QuestConfig, Arrays]:
    """Settings and weights of the policy that a stage is to start from.

    Args:
        path: A model folder, a checkpoint, or the folder of a run that has finished.
        first: The stage.

    Raises:
        CheckpointError: There is none, something of it is missing, damaged or foreign, the run is still to be
            finished, or it did not train the stage before.
    """
    if is_model(path):
        model = load_model(path)
        return model.card.interface.settings, model.arrays
    found = checkpoint.find(path)
    if found != path and not RunDir(path).results.exists():
        raise CheckpointError(f"{path} has not finished; resume it, or name one of its checkpoints, such as {found}")
    source = checkpoint.load(found)
    last = source.experiment.stages[-1]
    if last.place < first.place - 1:
        before = list(Stage)[first.place - 1]
        raise CheckpointError(f"{path} ends with the stage {last}, but {first} starts from the end of {before}")
    return source.experiment.policy, source.arrays


def is_model(folder: Path) -> bool:
    """Whether a folder claims to hold a policy on its own."""
    return (folder / CARD).is_file()


def save_model(folder: Path, model: Model) -> None:
    """Write a model to a folder, which must not exist.

    Raises:
        CheckpointError: The folder exists, a weight is not finite, or the weights do not fit the card.
        StorageError: The disk does not take it; nothing is left of the attempt.
    """
    require_finite(model.arrays)
    policy = model()
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
    return Model(from_json(folder / CARD, Card, "a model"), load_arrays(folder / WEIGHTS))


def _readme(model: Model, policy: QuestPolicy, weights_sha256: str) -> str:
    card, settings = model.card, model.card.interface.settings
    texts = [name.removeprefix(TEXT) for name in model.arrays if name.startswith(TEXT)]
    known = {"features": texts, "index": list(settings.instructions)}.get(settings.task_input)
    rows = {
        "architecture": "QueST: skill autoencoder and autoregressive prior over its tokens (Mete et al. 2024)",
        "parameters": f"{sum(value.numel() for value in policy.parameters()):,}",
        "entries": f"{len(policy.state_dict())}",
        "cameras": ", ".join(settings.cameras) or "none",
        "sensors": ", ".join(f"{name} ({card.interface.state_dims[name]})" for name in settings.sensors) or "none",
        "actions": f"{card.interface.action_dim} entries, {settings.num_executed} of {settings.chunk_length} executed",
        "tasks": ", ".join(card.tasks) or "not stated",
        "instructions": "any" if known is None else "; ".join(known) or "none: it came without text features",
        "weights from": f"`{card.provenance.file}`, the authors' layout `{card.provenance.layout}`",
        "SHA-256 of that file": f"`{card.provenance.sha256}`",
        f"SHA-256 of `{WEIGHTS}`": f"`{weights_sha256}`",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nlibrary_name: ript-ray\npipeline_tag: robotics\n---\n\n# {card.name}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Every size and setting is in `model.json`; `manifest.json` holds the hashes that are checked on loading:\n\n"
        "    from ript_ray.runs.model_dir import from_pretrained\n\n"
        '    policy = from_pretrained("path/to/this/folder")\n\n'
        "Use and licence of the weights are as with the file they are from.\n"
    )
