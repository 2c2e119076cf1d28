"""CLIP's text features of instructions, kept in a file, computed where its weights are on this machine.

A policy that reads them stores those of its instructions with its weights: the file and the language model are needed
where a run begins, and neither to resume nor to evaluate it. Source: QueST, whose LIBERO policies read these features.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save

from ript_envs.contract import require_package
from ript_ray.errors import ConfigError, StorageError, first_few
from ript_ray.storage.atomic import atomic_write, make_directory, os_errors_as_storage_error
from ript_ray.storage.hashed_dir import load_arrays
from ript_ray.types import Arrays

ENCODER = "openai/clip-vit-base-patch32"
"""The language model: its name on the hub. Source: QueST."""

NUM_TOKENS = 25
"""Length that shorter instructions are padded to. Source: QueST."""

logger = logging.getLogger(__name__)


def features_file() -> Path:
    """Return the file of this user's text features, in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "ript-ray", f"{ENCODER.rpartition('/')[2]}.safetensors")


def text_features(instructions: Sequence[str], path: Path, *, encoder: str = ENCODER, download: bool = False) -> Arrays:
    """Return the text features of instructions from a file; those that it lacks are computed, and added to it.

    Args:
        instructions: The instructions.
        path: A safetensors file with a vector under the words of each instruction; it need not exist.
        encoder: See `embed`.
        download: See `embed`.

    Raises:
        CheckpointError: The file is damaged.
        ConfigError: It lacks some, and the language model is not on this machine.
    """
    known = load_arrays(path) if path.exists() else {}
    missing = [text for text in dict.fromkeys(instructions) if text not in known]
    if missing:
        try:
            known |= embed(missing, encoder, download=download)
        except OSError as error:
            raise ConfigError(_advice(missing, path, encoder, error)) from error
        _save(known, path)
    return {text: known[text] for text in instructions}


def embed(texts: Sequence[str], encoder: str = ENCODER, *, download: bool = False) -> Arrays:
    """Compute the text features (512,) of texts, float32 and not normalized, one by one: each has no effect on others.

    Args:
        texts: The texts.
        encoder: The language model: its name on the hub, or a folder with its files.
        download: Whether it may be downloaded if it is not on this machine.

    Raises:
        OSError: The language model is not on this machine, or cannot be downloaded or read.
        MissingPackageError: transformers is not installed.
    """
    require_package("transformers", extra="clip")
    import torch
    import transformers  # takes seconds; only here

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, local_files_only=not download)
    model = transformers.CLIPTextModelWithProjection.from_pretrained(encoder, local_files_only=not download).eval()
    logger.info("text features of %d instructions, by %s", len(texts), encoder)
    found: Arrays = {}
    with torch.no_grad():
        for text in texts:
            tokens = tokenizer(text, padding="max_length", max_length=NUM_TOKENS, return_tensors="pt")
            found[text] = model(**tokens).text_embeds[0].float().numpy()
    return found


def _save(known: Arrays, path: Path) -> None:
    """Write the file; without it, the features will be computed again."""
    try:
        with os_errors_as_storage_error(path):
            make_directory(path.parent)
        atomic_write(path, save(dict(known)))
    except StorageError as error:
        logger.warning("text features are not kept: %s", error)


def _advice(missing: Sequence[str], path: Path, encoder: str, error: OSError) -> str:
    texts = ", ".join(first_few([repr(text) for text in missing]))
    return (
        f"{path} has no text features of {texts}, and {encoder}, which computes them, is not on this machine "
        f"({str(error).splitlines()[0]}). Either download it once (`ript-ray embed-text --download`), or embed on "
        "another machine and name the file (--policy.text-file FILE), or do without a language model "
        "(--policy.task-input hashed; not for published weights)"
    )
