"""QueST's upstream checkpoint files to model folders and back, strictly and byte for byte; OpenVLA-OFT's adaptors."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from ript_envs.metaworld.benchmark import MetaWorld
from ript_envs.metaworld.tasks import QUEST_TASK_ORDER
from ript_ray.errors import CheckpointError, first_few
from ript_ray.policies.openvla_oft.config import OpenVLAOFTConfig
from ript_ray.policies.quest.config import TEXT, QuestConfig
from ript_ray.policies.quest.presets import SPECS, Variant, published
from ript_ray.policies.quest.upstream_checkpoint import (
    UpstreamFormat,
    read_upstream_checkpoint,
    upstream_format,
    write_upstream_checkpoint,
)
from ript_ray.policies.state_dict import state_dict_mismatches
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import Card, Model, Provenance, from_pretrained, is_model, load_model, save_model
from ript_ray.storage.atomic import require_absent
from ript_ray.storage.hashed_dir import load_arrays, sha256_of
from ript_ray.types import Arrays


@dataclass(frozen=True)
class ImportMetadata:
    """Metadata that an upstream checkpoint file does not contain.

    Attributes:
        tasks: Tasks that the policy was trained on.
        instructions: MetaWorld: the instruction of each learned task vector, in order; unless given, those of the 50
            tasks in the order in which QueST numbers them. LIBERO: none.
        text_features: LIBERO: a safetensors file with the text features of each instruction, under its words.
    """

    tasks: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    text_features: Path | None = None


def import_checkpoint(path: Path, out: Path, *, variant: Variant, metadata: ImportMetadata) -> Model:
    """Write the policy of an upstream checkpoint file as a model folder.

    Raises:
        CheckpointError: The file is missing, foreign or damaged, an entry is missing, unknown or of another shape
            or type, or a weight is not finite.
        ConfigError: The instructions do not go with the variant.
        StorageError: `out` exists or cannot be written.
    """
    require_absent(out)
    config = published(variant, metadata.instructions or _known_instructions(variant))
    file = read_upstream_checkpoint(path)
    if mismatches := state_dict_mismatches(_entries(config, variant), file.tensors):
        for other in get_args(Variant):
            if other != variant and not state_dict_mismatches(_published_entries(other), file.tensors):
                raise CheckpointError(f"{path} is the {other} variant, not {variant}: try --variant {other}")
        problem = f"{path} is not the published policy for {variant}:"
        raise CheckpointError("\n  ".join([problem, *first_few(mismatches)]))
    arrays: Arrays = {name: tensor.contiguous().numpy().copy() for name, tensor in file.tensors.items()}
    texts = load_arrays(metadata.text_features) if metadata.text_features else {}
    arrays.update({TEXT + text: array for text, array in texts.items()})
    provenance = Provenance(path.name, sha256_of(path), file.layout)
    model = Model(Card(f"QueST for {variant}", config, SPECS[variant], metadata.tasks, provenance), arrays)
    save_model(out, model)
    return model


def export_checkpoint(path: Path, out: Path, *, layout: UpstreamFormat | None = None) -> str:
    """Write the policy of a model folder, a checkpoint or a run in the upstream format.

    Args:
        path: Where the policy is.
        out: The file to write; for OpenVLA-OFT, the folder.
        layout: Which format of QueST; if none, that of the file which the policy was imported from, `ript` for a run's.

    Returns:
        The format.

    Raises:
        CheckpointError: There is no valid policy at `path`, or it is none of the published ones.
        StorageError: The file exists or cannot be written.
    """
    require_absent(out)
    if is_model(path):
        model = load_model(path)
        config, arrays, origin = model.card.policy, model.arrays, model.card.provenance.layout
    else:
        saved = checkpoint.load(checkpoint.find(path))
        config, arrays, origin = saved.experiment.policy, saved.arrays, "ript"
    if isinstance(config, OpenVLAOFTConfig):
        return _export_openvla_oft(path, config, out)
    layout = layout or upstream_format(origin)
    entries = {name: array for name, array in arrays.items() if not name.startswith(TEXT)}
    all_published = map(_published_entries, get_args(Variant))
    nearest = min(all_published, key=lambda expected: len(state_dict_mismatches(expected, entries)))
    if mismatches := state_dict_mismatches(nearest, entries):
        problem = f"{path} is none of the published policies, and the authors' code could not read it:"
        raise CheckpointError("\n  ".join([problem, *first_few(mismatches)]))
    write_upstream_checkpoint(out, {name: entries[name] for name in nearest}, layout)
    return layout


def _export_openvla_oft(path: Path, config: OpenVLAOFTConfig, out: Path) -> str:
    """Write adapter and heads in a new folder, as RIPT-VLA saves them, and the scale head as it is published."""
    from ript_ray.policies.openvla_oft.policy import OpenVLAOFTPolicy  # needs the extra `openvla`

    if config.base != "fine-tuned":
        raise CheckpointError(
            f"{path} was trained with policy.base {config.base}: it changed more than an adapter and heads, for which "
            "the authors' code has no files; ript_ray.from_pretrained opens it"
        )
    policy = from_pretrained(path)
    assert isinstance(policy, OpenVLAOFTPolicy)
    policy.save_adaptor(out)
    return "RIPT-VLA's adaptor"


def _known_instructions(variant: Variant) -> tuple[str, ...]:
    return tuple(map(MetaWorld().instruction, QUEST_TASK_ORDER)) if variant == "metaworld" else ()


def _published_entries(variant: Variant) -> dict[str, torch.Tensor]:
    return _entries(published(variant, _known_instructions(variant)), variant)


def _entries(config: QuestConfig, variant: Variant) -> dict[str, torch.Tensor]:
    """Names, shapes and types of a policy's entries, without memory behind them."""
    with torch.device("meta"):
        return dict(config.build(SPECS[variant]).state_dict())
