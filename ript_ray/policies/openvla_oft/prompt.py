"""The prompt of OpenVLA-OFT as tokens, and the tokens around the slots of its actions.

Source: openvla-oft, `get_vla_action` (openvla_utils.py), `predict_action` and `_prepare_input_for_action_prediction`
(modeling_prismatic.py).
"""

import re
import zlib
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer  # transformers reads the file by it, but takes seconds to import

from ript_ray.errors import CheckpointError
from ript_ray.storage.reading import read_bytes

TOKENIZER_FILE = "tokenizer.json"

START = "<s>"

BEFORE_SLOTS, AFTER_SLOTS = 29871, 2
"""Llama's tokens between the prompt and the slots of the actions, a word boundary, and after them, the end."""

FIRST_WORD, NUM_WORDS = 3, 29_000
"""Tokens of hashed words: after Llama's special ones, below `BEFORE_SLOTS`."""

NAMES = {BEFORE_SLOTS: "▁", AFTER_SLOTS: "</s>"}


def prompt_text(instruction: str) -> str:
    """Return the prompt of an instruction."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class Prompts(Protocol):
    """The tokens of prompts."""

    def tokens(self, instruction: str) -> tuple[int, ...]:
        """Return the prompt of an instruction, beginning with <s> and without `BEFORE_SLOTS`."""
        ...


class HashedPrompts:
    """A token per word, chosen by a checksum of the word: for models that were never trained on text."""

    def tokens(self, instruction: str) -> tuple[int, ...]:
        """Return the prompt of an instruction; see `Prompts.tokens`."""
        words = re.findall(r"\w+|[^\w\s]", prompt_text(instruction))
        return (FIRST_WORD - 1, *(FIRST_WORD + zlib.crc32(word.encode()) % NUM_WORDS for word in words))


class LlamaPrompts:
    """The tokens of prompts, by the tokenizer of a checkpoint folder."""

    def __init__(self, folder: Path):
        """Read `tokenizer.json`.

        Raises:
            CheckpointError: It is missing or damaged, or not Llama's.
        """
        path = folder / TOKENIZER_FILE
        content = read_bytes(path)
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except ValueError as error:
            raise CheckpointError(f"{path} is no tokenizer: {error}") from error
        for number, name in NAMES.items():
            if self._tokenizer.token_to_id(name) != number:
                raise CheckpointError(f"{path} is not the tokenizer of a Llama model: token {number} is not {name!r}")
        if self._tokenizer.encode("").ids != [self._tokenizer.token_to_id(START)]:
            raise CheckpointError(f"{path} is not the tokenizer of a Llama model: it begins no text with {START}")
        self._known: dict[str, tuple[int, ...]] = {}

    def tokens(self, instruction: str) -> tuple[int, ...]:
        """Return the prompt of an instruction; see `Prompts.tokens`."""
        if instruction not in self._known:
            self._known[instruction] = tuple(self._tokenizer.encode(prompt_text(instruction)).ids)
        return self._known[instruction]
