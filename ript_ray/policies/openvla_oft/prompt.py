"""The prompt of OpenVLA-OFT and the slots of its actions, as tokens.

Source: openvla-oft, `get_vla_action` (openvla_utils.py), `predict_action` and `_prepare_input_for_action_prediction`
(modeling_prismatic.py).
"""

from pathlib import Path

from tokenizers import Tokenizer  # transformers reads the file by it, but takes seconds to import

from ript_ray.errors import CheckpointError
from ript_ray.storage.reading import read_bytes

TOKENIZER_FILE = "tokenizer.json"

START, STOP = "<s>", "</s>"

BOUNDARY = "▁"
"""Llama's mark of a word boundary, by itself, token 29871: in training it stood between prompt and actions."""

PLACEHOLDER = 1
"""Token in the slots of the actions. Any would do: the embeddings there are replaced by zeros."""


def prompt_text(instruction: str) -> str:
    """Return the prompt of an instruction."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class Prompts:
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
        start, self._boundary, self._stop = (self._number(token, path) for token in (START, BOUNDARY, STOP))
        if self._tokenizer.encode("").ids != [start]:
            raise CheckpointError(f"{path} is not the tokenizer of a Llama model: it begins no text with {START}")
        self._known: dict[str, tuple[int, ...]] = {}

    def tokens(self, instruction: str) -> tuple[int, ...]:
        """Return the prompt of an instruction, beginning with <s> and without what `action_tokens` adds."""
        if instruction not in self._known:
            self._known[instruction] = tuple(self._tokenizer.encode(prompt_text(instruction)).ids)
        return self._known[instruction]

    def action_tokens(self, num_slots: int) -> tuple[int, ...]:
        """Return what follows every prompt: a word boundary, a slot per action entry of a chunk (8 * 7), the end.

        The hidden states of the action are those from the boundary to the last slot but one.
        """
        return (self._boundary, *[PLACEHOLDER] * num_slots, self._stop)

    def _number(self, token: str, path: Path) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise CheckpointError(f"{path} is not the tokenizer of a Llama model: it has no token {token!r}")
        return number
