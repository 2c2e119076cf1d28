"""Text features: the real code path of transformers, on a tiny CLIP in the format of the published one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ript_envs.libero.benchmark import Libero
from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, ConfigError
from ript_ray.policies.clip import ENCODER, NUM_TOKENS, embed, features_file, text_features
from ript_ray.policies.quest.presets import published
from ript_ray.runs.model_dir import initial_policy
from tests.commands import RIPT_RAY, run

BOWL, DRAWER = "put the bowl on the plate", "open the drawer"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights with both of its towers, as on the hub, and a tokenizer of letters and one merge."""
    folder = tmp_path_factory.mktemp("clip")
    symbols = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    ends = {"bos_token_id": len(symbols) - 2, "eos_token_id": len(symbols) - 1}
    settings = transformers.CLIPConfig(
        text_config={"vocab_size": len(symbols), "max_position_embeddings": 77, **SMALL, **ends},
        vision_config={"image_size": 8, "patch_size": 8, **SMALL},
        projection_dim=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(settings).save_pretrained(folder)
    return folder


def test_features_are_those_of_the_whole_model_from_padded_tokens_and_not_normalized(clip: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
    tokens = tokenizer([BOWL, DRAWER], padding="max_length", max_length=NUM_TOKENS, return_tensors="pt")
    assert tokens["input_ids"].shape == (2, 25)
    assert tokens["attention_mask"].sum(1).tolist() == [2 + 3 + 1 + 4 + 2 + 1 + 5, 2 + 4 + 1 + 6]
    with torch.no_grad():
        expected = model.get_text_features(**tokens).pooler_output.numpy()
    found = embed([BOWL, DRAWER], str(clip))
    np.testing.assert_allclose(np.stack([found[BOWL], found[DRAWER]]), expected, rtol=0, atol=1e-5)
    assert (found[BOWL].shape, str(found[BOWL].dtype)) == ((512,), "float32")
    assert not np.allclose(found[BOWL], found[DRAWER], atol=1e-2)
    assert abs(np.linalg.norm(found[BOWL]) - 1) > 0.1


def test_features_are_computed_once_and_then_read_from_the_file(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "text.safetensors"
    first = text_features([BOWL], path, encoder=str(clip))
    both = text_features([DRAWER, BOWL], path, encoder=str(clip))
    assert list(both) == [DRAWER, BOWL]
    again = text_features([BOWL, DRAWER], path, encoder="no such model")
    for features in (first, both, load_file(path)):
        np.testing.assert_array_equal(features[BOWL], again[BOWL])


def test_without_the_language_model_the_message_names_the_ways_out(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    save_file({BOWL: np.zeros(512, np.float32)}, path)
    with pytest.raises(ConfigError) as caught:
        text_features([BOWL, DRAWER], path, encoder=str(tmp_path / "nowhere"))
    message = str(caught.value)
    for part in ("'open the drawer'", "embed-text --download", "--policy.text-file FILE", "--policy.task-input hashed"):
        assert part in message
    assert BOWL not in message
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"text\.safetensors cannot be read"):
        text_features([BOWL], path)


def test_features_of_another_length_are_refused_where_a_run_begins(tmp_path: Path) -> None:
    benchmark = Libero(suite="libero_goal")
    path = tmp_path / "text.safetensors"
    save_file({benchmark.instruction(benchmark.tasks[0]): np.zeros(8, np.float32)}, path)
    policy = replace(published("libero"), text_file=path)
    with pytest.raises(CheckpointError, match=r"float32 \(8,\), not float32 \(512,\)"):
        initial_policy(Experiment("name", benchmark.tasks[:1], benchmark=benchmark, policy=policy))


@pytest.mark.cli
def test_what_the_command_embeds_from_the_hubs_local_cache_is_where_a_run_looks_and_stays_with_its_policy(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub" / f"models--{ENCODER.replace('/', '--')}"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0")
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / "0").symlink_to(clip)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    result = run(*RIPT_RAY, "embed-text", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{features_file()}: text features of 112 instructions" in " ".join(result.stdout.split())
    benchmark = Libero(suite="libero_goal")
    experiment = Experiment("name", benchmark.tasks[:2], benchmark=benchmark, policy=published("libero"))
    policy = initial_policy(experiment)
    known = load_file(features_file())
    for text in experiment.instructions:
        np.testing.assert_array_equal(policy.arrays[f"text/{text}"], known[text])
    features_file().unlink()
    assert policy.with_instructions().arrays == policy.arrays
    others = replace(policy, experiment=replace(experiment, tasks=benchmark.tasks[2:]))
    with pytest.raises(ConfigError, match=r"has no text features of .*, and 5 more"):
        others.with_instructions()
