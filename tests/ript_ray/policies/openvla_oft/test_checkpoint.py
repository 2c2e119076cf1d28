"""The published files load strictly, safely and where asked, and what is saved has their layout."""

import json
import pickle
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from ript_ray.errors import CheckpointError, RiptError, StorageError
from ript_ray.policies.openvla_oft.checkpoint import (
    UNUSED_ADAPTER_ENTRY,
    load_adaptor,
    load_openvla_oft,
    load_scale_head,
)
from ript_ray.policies.openvla_oft.export import save_adaptor, save_scale_head
from ript_ray.policies.openvla_oft.lora import add_lora, new_config
from ript_ray.policies.openvla_oft.model import OpenVLAOFT
from ript_ray.policies.openvla_oft.versions import EXTRA, TESTED, require_versions
from ript_ray.storage.hashed_dir import sha256_of
from tests.commands import ROOT
from tests.oft_fixture import CHECKPOINT
from tests.openvla_oft_fixture import ADAPTOR, SCALE_HEAD, context, new_model, shared_model

SECOND_SHARD = "model-00002-of-00002.safetensors"


@torch.no_grad()
def means(model: OpenVLAOFT) -> torch.Tensor:
    return model.heads(model.slots(model.encode(context(model, [0], ["task"]))))[0]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def test_everything_is_loaded_in_the_type_asked_for_and_frozen_and_the_folder_is_only_read() -> None:
    before = hashes(CHECKPOINT) | hashes(ADAPTOR)
    model = load_openvla_oft(CHECKPOINT)
    load_scale_head(model, SCALE_HEAD)
    load_adaptor(model, ADAPTOR)
    values = [*model.parameters(), *model.buffers()]
    assert all(value.device.type == "cpu" for value in values)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert not any(value.requires_grad for value in values)
    assert not any(module.training for module in model.modules())
    assert hashes(CHECKPOINT) | hashes(ADAPTOR) == before


def test_an_adapter_that_was_not_trained_changes_nothing() -> None:
    model = new_model("base")
    before = means(model)
    add_lora(model.vla, new_config(rank=3, alpha=16))
    torch.testing.assert_close(means(model), before, rtol=0, atol=0)


def test_a_saved_adaptor_has_the_published_layout_and_opens_again_here_and_in_peft(tmp_path: Path) -> None:
    model, folder = shared_model("lora_all"), tmp_path / "openvla_lora_step_000001"
    save_adaptor(model, folder, base="tiny")
    ours, theirs = load_file(folder / "adapter_model.safetensors"), load_file(ADAPTOR / "adapter_model.safetensors")
    assert {*ours} == {*theirs} - {UNUSED_ADAPTER_ENTRY}
    assert {*read(folder / "adapter_config.json")} <= {*read(ADAPTOR / "adapter_config.json")}
    heads, published = (torch.load(path / "openvla_headers.pt") for path in (folder, ADAPTOR))
    assert {key: [*entries] for key, entries in heads.items()} == {key: [*value] for key, value in published.items()}
    again = new_model("base")
    load_adaptor(again, folder)
    torch.testing.assert_close(means(again), means(model), rtol=0, atol=0)
    opened = load_openvla_oft(CHECKPOINT, dtype=torch.float32)
    opened.action_head = model.action_head
    peft.PeftModel.from_pretrained(opened.vla, folder)
    torch.testing.assert_close(means(opened), means(model), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="exists already"):
        save_adaptor(model, folder, base="tiny")


def test_a_saved_scale_head_opens_again(tmp_path: Path) -> None:
    model, path = new_model("base"), tmp_path / "scale_header.pth"
    save_scale_head(model, path)
    before = model.scale_head.state_dict()
    again = load_openvla_oft(CHECKPOINT, dtype=torch.float32)
    load_scale_head(again, path)
    torch.testing.assert_close({**again.scale_head.state_dict()}, {**before}, rtol=0, atol=0)
    with pytest.raises(StorageError, match="exists already"):
        save_scale_head(model, path)


def read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def edit_json(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(json.dumps(read(folder / name) | changes))

    return edit


def edit_shard(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return edit


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:1000])

    return edit


class Code:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("executed",)


def pickle_code(folder: Path) -> None:
    torch.save({"module.fc1.weight": Code()}, folder / "proprio_projector--100_checkpoint.pt", pickle_module=pickle)


NORM, HEAD = "language_model.model.norm.weight", "language_model.lm_head.weight"
BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another architecture": (edit_json("config.json", arch_specifier="linear"), "arch_specifier is 'linear'"),
    "other towers": (edit_json("config.json", fixture_vision_dims={}), r"fixture_vision_dims\.featurizer is no object"),
    "odd sizes": (edit_json("config.json", text_config={"hidden_size": "24"}), r"hidden_size must be a number"),
    "a missing shard": (lambda folder: (folder / SECOND_SHARD).unlink(), "is missing"),
    "a damaged shard": (cut(SECOND_SHARD), "cannot be read"),
    "a missing tensor": (edit_shard(SECOND_SHARD, lambda tensors: tensors.pop(HEAD)), f"missing {HEAD}"),
    "an unknown tensor": (
        edit_shard(SECOND_SHARD, lambda tensors: tensors.update(odd=torch.zeros(1))),
        "unknown odd",
    ),
    "a wrong shape": (
        edit_shard(SECOND_SHARD, lambda tensors: tensors.update({HEAD: torch.zeros(3, 4)})),
        r"lm_head\.weight has shape \(3, 4\), not",
    ),
    "integers": (
        edit_shard(SECOND_SHARD, lambda tensors: tensors.update({HEAD: torch.zeros(1, dtype=torch.int64)})),
        "has type I64",
    ),
    "a shard elsewhere": (
        edit_json("model.safetensors.index.json", weight_map={NORM: "../x.safetensors"}),
        "not a file of the folder",
    ),
    "two action heads": (
        lambda folder: shutil.copy(folder / "action_head--100_checkpoint.pt", folder / "action_head--2_checkpoint.pt"),
        "must have one file action_head--STEP",
    ),
    "code": (pickle_code, "refused without executing anything: it calls"),
}


@pytest.mark.parametrize("fault", BAD_CHECKPOINTS)
def test_a_checkpoint_folder_is_refused_by_name_for(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    change, message = BAD_CHECKPOINTS[fault]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        load_openvla_oft(folder)
    assert "executed" not in capsys.readouterr().out


ADAPTER_WEIGHT = "base_model.model.projector.fc1.lora_A.weight"
BAD_ADAPTORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another method": (edit_json("adapter_config.json", use_dora=True), "use_dora is True; only False"),
    "no rank": (edit_json("adapter_config.json", r=None), "r and lora_alpha must be numbers"),
    "another rank": (edit_json("adapter_config.json", r=16), "has shape"),
    "a missing weight": (
        edit_shard("adapter_model.safetensors", lambda tensors: tensors.pop(ADAPTER_WEIGHT)),
        f"missing {ADAPTER_WEIGHT}",
    ),
    "a missing head": (lambda folder: torch.save({"action_header": {}}, folder / "openvla_headers.pt"), "fit|named"),
}


@pytest.mark.parametrize("fault", BAD_ADAPTORS)
def test_an_adaptor_folder_is_refused_by_name_for(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "adaptor"
    shutil.copytree(ADAPTOR, folder)
    change, message = BAD_ADAPTORS[fault]
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        load_adaptor(new_model("base"), folder)


def test_a_version_of_a_library_that_was_not_tested_is_refused() -> None:
    require_versions()
    with pytest.raises(
        RiptError, match=r"needs transformers==4\.40\.1, but it is 5.*pip install 'ript-ray\[openvla\]'"
    ):
        require_versions({"transformers": "==4.40.1"})


def test_the_extra_installs_the_tested_versions() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["openvla"]
    assert {f"{package}{versions}" for package, versions in TESTED.items()} <= {*extra}
    assert {requirement.split("==")[0] for requirement in extra} == {*EXTRA}
