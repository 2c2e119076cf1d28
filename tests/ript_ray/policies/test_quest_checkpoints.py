"""Upstream checkpoint files: strict import without code execution, model folders, export."""

import contextlib
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ript_ray.cli.convert import ImportMetadata, export_checkpoint, import_checkpoint
from ript_ray.config.experiment import Experiment
from ript_ray.errors import CheckpointError, ConfigError, StorageError
from ript_ray.policies.quest.policy import QuestPolicy
from ript_ray.policies.quest.presets import Variant
from ript_ray.policies.quest.upstream_checkpoint import read_upstream_checkpoint
from ript_ray.runs import checkpoint
from ript_ray.runs.model_dir import from_pretrained
from ript_ray.runs.saved_policy import SavedPolicy
from tests.commands import RIPT_RAY, run
from tests.conftest import TINY_QUEST
from tests.disk import full_disk
from tests.quest_fixture import FOLDER, TASKS, TOLERANCE, fixture, formula_policy, inputs, spec

LAYOUTS = ("sft", "ript")
TASK = "put the bowl on the plate"


def published_file(layout: str) -> Path:
    return FOLDER / f"quest_libero_{layout}.pth"


@pytest.fixture(scope="module")
def text_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "clip.safetensors"
    vectors = inputs("quest_libero_extra.npz")["task_emb"]
    save_file({TASK: vectors[0].copy(), "open the drawer": vectors[1].copy()}, path)
    return path


@pytest.fixture(scope="module", params=LAYOUTS)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text_features: Path) -> Path:
    """The model folder of a published file."""
    out = tmp_path_factory.mktemp(request.param) / "model"
    metadata = ImportMetadata(tasks=("bowl", "drawer"), text_features=text_features)
    import_checkpoint(published_file(request.param), out, variant="libero", metadata=metadata)
    return out


def layout_of(model: Path) -> str:
    return json.loads((model / "model.json").read_text())["provenance"]["layout"]


def imported_policy(model: Path) -> QuestPolicy:
    policy = from_pretrained(model)
    assert isinstance(policy, QuestPolicy)
    return policy


def test_an_imported_file_gives_the_published_outputs(imported: Path) -> None:
    layout, policy = layout_of(imported), imported_policy(imported)
    theirs = {
        name.removeprefix(f"{layout}/"): array
        for name, array in fixture("quest_pth_expected.npz").items()
        if name.startswith(layout)
    }
    data, arrays = fixture("quest_libero.npz"), inputs("quest_libero_extra.npz")
    tokens, observations = torch.tensor(data["indices"]), {name: torch.tensor(array) for name, array in arrays.items()}
    prior, autoencoder = policy.policy_prior, policy.autoencoder
    with torch.no_grad():
        context = policy.context_tokens(observations, [TASK, "open the drawer"])
        ours = {
            "context": context,
            "logits": prior.logits(context, torch.cat([tokens, tokens[:, :1]], dim=1))[..., ::10],
            "logprob": prior.log_probs(context, tokens),
            "decoded_actions": autoencoder.decode_tokens(tokens),
        }
        codes = autoencoder.tokens(torch.tensor(data["ae_input"]))
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)
    greedy = prior.sample(context, [np.random.default_rng(0)] * 2, top_k=1, temperature=1.0)
    np.testing.assert_array_equal(greedy.tokens_BU, theirs["greedy_tokens"])
    np.testing.assert_array_equal(codes, theirs["ae_indices"])
    state = policy.state_dict()
    sums = [state[name].double().sum().item() for name in spec("libero")]
    np.testing.assert_allclose(sums, theirs["weight_sums"], rtol=1e-12, atol=1e-9)


def test_the_card_states_the_model_and_its_provenance(imported: Path) -> None:
    assert sorted(path.name for path in imported.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.json",
        "policy.safetensors",
    ]
    hashes = json.loads((imported / "manifest.json").read_text())["sha256"]
    provenance = json.loads((imported / "model.json").read_text())["provenance"]
    readme = (imported / "README.md").read_text()
    for part in (
        "20,013,683",
        "agentview_rgb, eye_in_hand_rgb",
        "joint_states (7), ee_pos (3), gripper_states (2)",
        "| tasks | bowl, drawer |",
        TASK,
        provenance["file"],
        provenance["sha256"],
        hashes["policy.safetensors"],
    ):
        assert part in readme


def test_export_restores_every_tensor_byte_for_byte_in_its_original_format(imported: Path, tmp_path: Path) -> None:
    layout = layout_of(imported)
    assert export_checkpoint(imported, tmp_path / "out.pth") == layout
    theirs = torch.load(published_file(layout), weights_only=True)["model"]
    ours = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(ours) == ["model"]
    assert ours["model"].keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours["model"][name].dtype == tensor.dtype
        assert ours["model"][name].numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name
    with pytest.raises(StorageError, match=r"out\.pth exists already"):
        export_checkpoint(imported, tmp_path / "out.pth")


def test_a_model_acts_on_the_instructions_it_knows_and_names_one_it_does_not(imported: Path) -> None:
    policy, arrays = from_pretrained(imported), inputs("quest_libero_extra.npz")
    rngs = [np.random.default_rng(row) for row in range(2)]
    assert policy.act(arrays, [TASK] * 2, rngs).actions_BCA.shape == (2, 8, 7)
    with pytest.raises(ConfigError, match="no text features of 'put the bowl on a plate'; did you mean 'put the bowl"):
        policy.act(arrays, ["put the bowl on a plate"] * 2, rngs)


def test_a_damaged_model_is_refused_by_name(imported: Path, tmp_path: Path) -> None:
    for name in ("policy.safetensors", "model.json"):
        broken = tmp_path / name
        broken.mkdir()
        for path in imported.iterdir():
            (broken / path.name).hardlink_to(path)
        content = bytearray((imported / name).read_bytes())
        content[len(content) // 2] ^= 1
        (broken / name).unlink()
        (broken / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            from_pretrained(broken)


@pytest.fixture(scope="module")
def metaworld() -> QuestPolicy:
    return formula_policy("metaworld")


def test_a_state_dict_saved_by_torch_is_imported_and_exported(metaworld: QuestPolicy, tmp_path: Path) -> None:
    torch.save({"model": metaworld.state_dict()}, tmp_path / "stage.pth")  # with the metadata of a state dict
    metadata = ImportMetadata(instructions=TASKS)
    import_checkpoint(tmp_path / "stage.pth", tmp_path / "model", variant="metaworld", metadata=metadata)
    assert export_checkpoint(tmp_path / "model", tmp_path / "out.pth", layout="ript") == "ript"
    exported = read_upstream_checkpoint(tmp_path / "out.pth")
    assert exported.layout == "ript"
    for name, tensor in metaworld.state_dict().items():
        assert torch.equal(exported.tensors[name], tensor), name


def test_without_instructions_a_metaworld_policy_knows_all_tasks_in_the_published_order(
    metaworld: QuestPolicy, tmp_path: Path
) -> None:
    torch.save({"model": metaworld.state_dict()}, tmp_path / "stage.pth")
    import_checkpoint(tmp_path / "stage.pth", tmp_path / "model", variant="metaworld", metadata=ImportMetadata())
    policy = imported_policy(tmp_path / "model")
    instructions = policy.settings.instructions
    assert len(instructions) == 50
    assert [instructions.index(text) for text in ("assembly", "drawer open", "window open")] == [0, 18, 49]
    observations = {name: torch.tensor(array) for name, array in inputs("quest_metaworld.npz").items()}
    places = observations.pop("task_id").tolist()
    with torch.no_grad():
        context = policy.context_tokens(observations, [instructions[place] for place in places])
    np.testing.assert_allclose(context, fixture("quest_metaworld.npz")["context"], rtol=0, atol=TOLERANCE)


def spoiled(policy: QuestPolicy) -> dict[str, torch.Tensor]:
    entries = dict(policy.state_dict())
    entries["surplus"] = torch.zeros(1)
    del entries["policy_prior.head.bias"], entries["image_encoders.corner_rgb.block_1.bn1.running_var"]
    entries["obs_proj.weight"] = torch.zeros(3, 3)
    entries["obs_proj.bias"] = entries["obs_proj.bias"].long()
    return entries


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_first_entries_that_do_not_fit_are_shown_and_the_rest_is_counted(
    metaworld: QuestPolicy, tmp_path: Path, prefix: str
) -> None:
    torch.save({"model": {prefix + name: value for name, value in spoiled(metaworld).items()}}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(
            tmp_path / "bad.pth", tmp_path / "out", variant="metaworld", metadata=ImportMetadata(instructions=TASKS)
        )
    assert str(caught.value).splitlines()[1:] == [
        "  obs_proj.weight has shape (3, 3), not (384, 384)",
        "  missing image_encoders.corner_rgb.block_1.bn1.running_var",
        "  unknown surplus",
        "  and 2 more",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_a_file_of_the_other_variant_is_named_as_such(metaworld: QuestPolicy, tmp_path: Path) -> None:
    torch.save({"model": metaworld.state_dict()}, tmp_path / "metaworld.pth")
    cases: tuple[tuple[Path, Variant, Variant], ...] = (
        (tmp_path / "metaworld.pth", "libero", "metaworld"),
        (published_file("ript"), "metaworld", "libero"),
    )
    for path, variant, other in cases:
        with pytest.raises(CheckpointError, match=f"is the {other} variant, not {variant}: try --variant {other}$"):
            import_checkpoint(path, tmp_path / "out", variant=variant, metadata=ImportMetadata())


def test_weights_that_are_not_finite_are_not_imported(metaworld: QuestPolicy, tmp_path: Path) -> None:
    entries = {name: value.clone() for name, value in metaworld.state_dict().items()}
    entries["obs_proj.bias"][3] = torch.nan
    torch.save({"model": entries}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"not finite: obs_proj\.bias"):
        import_checkpoint(
            tmp_path / "bad.pth", tmp_path / "out", variant="metaworld", metadata=ImportMetadata(instructions=TASKS)
        )
    assert not (tmp_path / "out").exists()


STRANGE_CONTENTS = {
    "another key": ({"state_dict": {"a": torch.zeros(1)}}, "the key 'model'"),
    "an unknown key": ({"model": {"a": torch.zeros(1)}, "optimizer": {}}, "keys that .* do not have: optimizer"),
    "no dict": (torch.zeros(1), "the key 'model'"),
    "no entry": ({"model": {}}, "contains no entry where named tensors are expected"),
    "not a tensor": ({"model": {"a": 3, "b": torch.zeros(1)}}, "contains a where named tensors are expected"),
    "two layouts": ({"model": {"module.a": torch.zeros(1), "b": torch.zeros(1)}}, "lack the prefix 'module.': b"),
    "another type of storage": ({"model": {"a": torch.zeros(1).half()}}, "it calls torch HalfStorage"),
}


@pytest.mark.parametrize("case", STRANGE_CONTENTS)
def test_a_file_of_another_kind_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    content, message = STRANGE_CONTENTS[case]
    torch.save(content, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match=message):
        read_upstream_checkpoint(tmp_path / "strange.pth")


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth is missing"):
        read_upstream_checkpoint(tmp_path / "nowhere.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "half.pth").write_bytes(published_file("sft").read_bytes()[:100_000])
    for name in ("old.pth", "text.pth", "half.pth"):
        with pytest.raises(CheckpointError, match=f"{name} is not a file that torch.save wrote"):
            read_upstream_checkpoint(tmp_path / name)


def test_a_file_whose_tensors_are_damaged_is_named(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.arange(4.0)}}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "hole.pth", "w") as hole:
        for entry in whole.infolist():
            if not entry.filename.endswith("data/0"):
                hole.writestr(entry, whole.read(entry))
    with pytest.raises(CheckpointError, match=r"hole\.pth cannot be read"):
        read_upstream_checkpoint(tmp_path / "hole.pth")


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class EvalPayload(Payload):
    def __reduce__(self):
        return eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)


def write_bare_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps({"model": payload}))


def write_torch_file(path: Path, payload: Payload) -> None:
    torch.save({"model": OrderedDict(weight=torch.zeros(1), payload=payload)}, path)


def write_torch_file_with_computed_calls(path: Path, payload: Payload) -> None:
    torch.save({"model": payload}, path, pickle_protocol=4)


def write_old_torch_file(path: Path, payload: Payload) -> None:
    torch.save({"model": payload}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("kind", [Payload, EvalPayload])
@pytest.mark.parametrize(
    "write", [write_bare_pickle, write_torch_file, write_torch_file_with_computed_calls, write_old_torch_file]
)
def test_a_malicious_file_is_refused_and_never_run(
    tmp_path: Path, write, kind: type[Payload], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    write(path, kind(marker))
    with pytest.raises(CheckpointError, match=r"evil\.pth (was refused without executing anything|is not a file)"):
        import_checkpoint(path, tmp_path / "out", variant="libero", metadata=ImportMetadata())
    assert not marker.exists(), "the file was run"
    assert not (tmp_path / "out").exists()
    with contextlib.suppress(RuntimeError):  # torch runs a bare pickle before it notices that it is not a checkpoint
        torch.load(path, weights_only=False)
    assert marker.exists(), "the test's own payload does nothing"


def test_a_file_that_passes_the_allowlist_is_still_checked_by_torch(tmp_path: Path) -> None:
    allowed = b"\x80\x02}(X\x05\x00\x00\x00modelccollections\nOrderedDict\n(Jx\x00\x00\x00tRu."  # OrderedDict(120)
    with zipfile.ZipFile(tmp_path / "odd.pth", "w") as archive:
        archive.writestr("odd/data.pkl", allowed)
        archive.writestr("odd/version", "3\n")
    with pytest.raises(CheckpointError, match=r"odd\.pth cannot be read"):
        read_upstream_checkpoint(tmp_path / "odd.pth")


@pytest.fixture
def trained(tmp_path: Path) -> SavedPolicy:
    experiment = Experiment("small", ("reach-v3",), policy=TINY_QUEST)
    source = SavedPolicy.initial(experiment)
    checkpoint.save(tmp_path / "run" / "checkpoints" / "update-00003", source)
    return source


def test_a_run_is_loaded_as_a_policy_but_not_exported_if_the_authors_code_could_not_read_it(
    trained: SavedPolicy, tmp_path: Path
) -> None:
    for path in (tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "update-00003")):
        loaded = from_pretrained(path).state_arrays()
        assert all(np.array_equal(loaded[name], array) for name, array in trained.arrays.items())
    with pytest.raises(CheckpointError, match="none of the published policies") as caught:
        export_checkpoint(tmp_path / "run", tmp_path / "out.pth")
    assert "unknown lowdim_encoders.state.offset" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 5, "a wall of entries"
    assert not (tmp_path / "out.pth").exists()
    (tmp_path / "there.pth").touch()
    with pytest.raises(StorageError, match=r"there\.pth exists already"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "there.pth")
    with pytest.raises(CheckpointError, match="there is nothing at"):
        from_pretrained(tmp_path / "nowhere")


def test_text_features_of_another_size_are_listed(tmp_path: Path) -> None:
    save_file({"a": np.zeros(512, np.float32), "b": np.zeros(3, np.float32)}, tmp_path / "bad.safetensors")
    metadata = ImportMetadata(text_features=tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"vector of 'b' is float32 \(3,\), not float32 \(512,\)"):
        import_checkpoint(published_file("sft"), tmp_path / "out", variant="libero", metadata=metadata)


def test_a_full_disk_leaves_nothing_of_an_import_or_export(imported: Path, tmp_path: Path) -> None:
    with full_disk(1_000_000):
        with pytest.raises(StorageError):
            import_checkpoint(published_file("sft"), tmp_path / "out", variant="libero", metadata=ImportMetadata())
        with pytest.raises(StorageError):
            export_checkpoint(imported, tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cli
def test_the_commands_import_and_export(tmp_path: Path) -> None:
    result = run(*RIPT_RAY, "import", str(published_file("ript")), "model", "--tasks", "one", "two", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "model: QueST for libero, upstream format ript" in result.stdout
    result = run(*RIPT_RAY, "export", "model", "back.pth", "--layout", "sft", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_upstream_checkpoint(tmp_path / "back.pth").layout == "sft"
