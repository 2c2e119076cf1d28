"""OpenVLA-OFT's prompts, against the tokens that the published processor made of them."""

import json
from pathlib import Path

import pytest

from ript_ray.errors import CheckpointError
from ript_ray.policies.openvla_oft.prompt import AFTER_SLOTS, BEFORE_SLOTS, TOKENIZER_FILE, LlamaPrompts, prompt_text
from tests.oft_fixture import CHECKPOINT, FOLDER, Change, arrays, changed


def test_prompts_are_the_tokens_that_the_published_processor_makes():
    tasks, expected = json.loads((FOLDER / "meta.json").read_text()), arrays("expected.npz")
    prompts = LlamaPrompts(CHECKPOINT)
    for name in ("task", "task2"):
        assert prompts.tokens(tasks[name]) == tuple(expected[f"prompt_ids/{name}"])
    whole = (*prompts.tokens(tasks["task"]), BEFORE_SLOTS, *[1] * 56, AFTER_SLOTS)
    assert whole == tuple(expected["prompt_ids/full_sequence_single_pass"])
    assert prompts.tokens(tasks["task"].upper()) == prompts.tokens(tasks["task"])
    assert prompt_text("Lift It") == "In: What action should the robot take to lift it?\nOut:"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("model"), "is no tokenizer"),
        (lambda content: content["model"].update(vocab={"<unk>": 0, "<s>": 1}, merges=[]), "token 29871 is not '▁'"),
        (lambda content: content.update(post_processor=None), "begins no text with <s>"),
    ],
)
def test_another_tokenizer_than_llamas_is_refused(change: Change, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=message):
        LlamaPrompts(changed(tmp_path, TOKENIZER_FILE, change))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        LlamaPrompts(tmp_path)
