"""Configuration files: strict reading, and files of earlier versions."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ript_ray.config.experiment import Experiment
from ript_ray.config.serialization import SCHEMA, flatten, from_json, read_experiment, to_json
from ript_ray.errors import CheckpointError
from ript_ray.policies.quest.config import QuestConfig
from ript_ray.runs.model_dir import Provenance, load_model

FIXTURES = Path(__file__).parents[2] / "fixtures"
SCHEMA_1 = FIXTURES / "schema1"
SCHEMA_2 = FIXTURES / "schema2" / "experiment.json"


@dataclass(frozen=True)
class Motor:
    power: int
    gears: int = field(default=5, metadata={"before": 1})


@dataclass(frozen=True)
class Car:
    motor: Motor
    color: str = field(default="red", metadata={"before": "black"})


@dataclass(frozen=True)
class CarWithDoors(Car):
    num_doors: int = 4


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_field_that_is_newer_than_the_file_takes_its_value_from_before(tmp_path: Path) -> None:
    path = write(tmp_path / "car.json", {"schema": SCHEMA, "motor": {"power": 3}})
    assert from_json(path, Car, "a car") == Car(Motor(3, gears=1), color="black")
    assert Car(Motor(3)) == Car(Motor(3, gears=5), color="red"), "new values take today's defaults"


def test_a_newer_field_without_a_value_from_before_makes_an_older_file_refused_by_the_fields_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "car.json"
    path.write_text(to_json(Car(Motor(3))))
    with pytest.raises(CheckpointError, match=r"car\.json does not describe a car: missing num_doors"):
        from_json(path, CarWithDoors, "a car")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema": SCHEMA + 1, "motor": {"power": 3}}, f"it has schema {SCHEMA + 1}, .* reads schemas 1 to {SCHEMA}"),
        ({"schema": "2", "motor": {"power": 3}}, "it has schema '2'"),
        ({"motor": {"power": 3, "gear": 2}}, r"unknown motor\.gear \(did you mean gears\?\)"),
        ({"motor": {}}, r"missing motor\.power"),
        ({"motor": {"power": "3"}}, "valid integer"),
        ([3], r"car\.json cannot be read: it is JSON, but no object"),
    ],
)
def test_an_invalid_file_is_refused_with_the_reason(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_json(write(tmp_path / "car.json", content), Car, "a car")


def experiment_json() -> dict[str, Any]:
    return json.loads(to_json(Experiment("name", ("reach-v3",))))


def test_an_experiment_is_read_as_it_was_written(tmp_path: Path) -> None:
    experiment = Experiment("name", ("reach-v3",))
    path = write(tmp_path / "experiment.json", experiment_json())
    assert read_experiment(path) == experiment


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["ppo"].pop("clip_low"), r"missing ppo\.clip_low"),
        (lambda content: content["policy"].pop("kind"), r"policy\.kind must be one of .*quest.*, not None"),
        (lambda content: content["policy"].update(kind="os:system"), r"policy\.kind 'os:system' is unknown"),
        (lambda content: content["benchmark"].update(kind="metawrld"), r"did you mean metaworld\?"),
        (lambda content: content["policy"].update(prior_widht=3), r"unknown policy\.prior_widht \(did you mean prior"),
        (lambda content: content["policy"].update(top_k=-1), r"policy\.top-k must be at least 0, not -1"),
    ],
)
def test_an_experiment_with_an_invalid_section_is_refused_by_name(tmp_path: Path, change: Change, message: str) -> None:
    content = experiment_json()
    change(content)
    with pytest.raises(CheckpointError, match=message):
        read_experiment(write(tmp_path / "experiment.json", content))


def test_an_experiment_of_schema_1_is_read_as_what_it_states() -> None:
    path = SCHEMA_1 / "run" / "config.json"
    stated = json.loads(path.read_text())
    kinds = {"benchmark": "metaworld", "policy": "quest", "sft": "quest"}
    expected = {**stated, **{name: {"kind": kind, **stated[name]} for name, kind in kinds.items()}}
    read = json.loads(to_json(read_experiment(path)))
    assert read.pop("schema") == SCHEMA
    assert flatten(read).items() >= flatten(expected).items()


def test_a_model_of_schema_1_is_read_as_what_it_states(tmp_path: Path) -> None:
    shutil.copytree(SCHEMA_1 / "model", tmp_path / "model")
    stated = json.loads((tmp_path / "model" / "model.json").read_text())
    model = load_model(tmp_path / "model")
    assert isinstance(model.card.policy, QuestConfig)
    settings = json.loads(json.dumps(asdict(model.card.policy)))
    assert flatten(settings).items() >= flatten(stated["interface"]["settings"]).items()
    assert settings["kind"] == "quest"
    environment = model.card.environment
    assert (environment.action_dim, environment.state_dims) == (1, {"state": 2})
    assert (model.card.name, model.card.tasks) == ("QueST for the line", ("left", "right"))
    assert model.card.provenance == Provenance(**stated["provenance"])
    model.build()


def test_experiments_of_schema_2_stay_readable() -> None:
    try:
        experiment = read_experiment(SCHEMA_2)
    except CheckpointError as error:
        pytest.fail(
            f"Experiments that earlier versions wrote cannot be read any more: {error}\n"
            "A new field needs the value that reproduces the earlier behavior: "
            'field(default=NEW, metadata={"before": OLD}). A field that was renamed or removed needs a new SCHEMA and '
            "an upgrade in read_experiment. Never rewrite the fixture: it stands for the users' runs."
        )
    stated = json.loads(SCHEMA_2.read_text())
    read = json.loads(to_json(experiment))
    del stated["schema"]
    assert flatten(read).items() >= flatten(stated).items(), "a stated value is read as another one"


def test_flattened_settings_have_dotted_names() -> None:
    assert flatten({"ppo": {"clip_low": 0.2}, "seed": 0}) == {"ppo.clip_low": 0.2, "seed": 0}
