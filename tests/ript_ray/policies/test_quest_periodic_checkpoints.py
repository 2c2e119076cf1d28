"""The files that QueST's training saves every few epochs: eleven keys, of which only the model is read."""

import collections
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ript_ray.cli.convert import ImportMetadata, import_checkpoint
from ript_ray.errors import CheckpointError
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.upstream_checkpoint import read_upstream_checkpoint
from ript_ray.runs.model_dir import from_pretrained
from tests.quest_fixture import TASKS, formula_policy
from tests.ript_ray.policies.test_quest_checkpoints import Payload

OMEGACONF = {"base": ("ContainerMetadata", "Metadata"), "listconfig": ("ListConfig",), "nodes": ("AnyNode",)}
"""The classes that a list of OmegaConf 2.3 names, by module."""


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Classes that pickle names as OmegaConf's; the package itself is not installed."""
    classes: dict[str, type] = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for module, names in OMEGACONF.items():
        fake = types.ModuleType(f"omegaconf.{module}")
        for name in names:
            classes[name] = type(name, (), {"__module__": fake.__name__})
            setattr(fake, name, classes[name])
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return classes


def made(cls: type, **attributes: Any) -> Any:
    value = cls()
    value.__dict__.update(attributes)
    return value


def list_config(omegaconf: dict[str, type], *values: float) -> Any:
    """A list of numbers with the attributes that OmegaConf pickles."""
    flags = {"ref_type": Any, "object_type": None, "optional": True, "flags": None, "flags_root": False}
    more = {"key_type": int, "element_type": Any, "resolver_cache": collections.defaultdict(dict)}
    nodes = [made(omegaconf["AnyNode"], _metadata=made(omegaconf["Metadata"], **flags), _val=value) for value in values]
    metadata = made(omegaconf["ContainerMetadata"], **{**flags, **more, "object_type": list})
    return made(omegaconf["ListConfig"], _metadata=metadata, _parent=None, _content=nodes)


def periodic_content(policy: QuestPolicy, betas: Any) -> dict[str, Any]:
    """What QueST's training saves: two optimizers and schedulers, the other numbers, and the configuration."""
    optimizer = torch.optim.AdamW(policy.policy_prior.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=1e-5)
    torch.stack([value.sum() for value in policy.policy_prior.parameters()]).sum().backward()
    optimizer.step()
    moments = optimizer.state_dict()
    moments["param_groups"][0]["betas"] = betas
    return {
        "model": policy.state_dict(),
        "optimizers": [moments, moments],
        "schedulers": [schedule.state_dict()] * 2,
        "scaler": {},
        "epoch": 90,
        "stage": 1,
        "steps": 1234,
        "wandb_id": "1a2b3c",
        "experiment_dir": "experiments/metaworld/ML45_PRISE/quest",
        "experiment_name": "metaworld_ML45_PRISE_quest",
        "config": {"algo": {"name": "quest", "lr": 1e-4}, "seed": 0, "training": {"resume": False, "cut": None}},
    }


def test_only_the_model_of_a_periodic_file_is_imported_and_the_other_keys_are_named(
    omegaconf: dict[str, type], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {name: value.clone() for name, value in formula_policy("metaworld").state_dict().items()}
    content = periodic_content(formula_policy("metaworld"), list_config(omegaconf, 0.9, 0.999))
    content["model"] = expected
    assert len(content) == 11
    torch.save(content, tmp_path / "multitask_model_epoch_0090.pth")
    with caplog.at_level(logging.INFO, "ript_ray"):
        import_checkpoint(
            tmp_path / "multitask_model_epoch_0090.pth",
            tmp_path / "model",
            variant="metaworld",
            metadata=ImportMetadata(instructions=TASKS),
        )
    assert all(name in caplog.text for name in content.keys() - {"model"})
    imported = from_pretrained(tmp_path / "model").state_arrays()
    assert imported.keys() == expected.keys()
    assert all(torch.equal(torch.from_numpy(imported[name]), value) for name, value in expected.items())


@pytest.mark.parametrize(("stage", "warns"), [(0, True), (1, False)])
def test_a_file_of_the_stage_before_the_prior_is_named_as_such(
    stage: int, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "stage": stage}, tmp_path / "early.pth")
    read_upstream_checkpoint(tmp_path / "early.pth")
    assert ("its prior is not trained" in caplog.text) == warns


def test_a_configuration_in_place_of_a_weight_is_refused(omegaconf: dict[str, type], tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1), "b": list_config(omegaconf, 0.9)}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="contains b where named tensors are expected"):
        read_upstream_checkpoint(tmp_path / "odd.pth")


def test_a_periodic_file_is_refused_and_not_run_if_a_key_besides_the_model_names_other_code(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "config": Payload(tmp_path / "marker")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth was refused without executing anything: it calls"):
        read_upstream_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "marker").exists()
