"""At full size, names and shapes are the published ones; nothing is allocated: all is on torch's meta device."""

import functools

import torch

from ript_ray.policies.openvla_oft.architecture import Architecture
from ript_ray.policies.openvla_oft.lora import add_lora, file_name, lora_parameters, new_config
from ript_ray.policies.openvla_oft.model import OpenVLAOFT
from tests.oft_fixture import FOLDER


@functools.cache
def published() -> OpenVLAOFT:
    with torch.device("meta"):
        return OpenVLAOFT(Architecture())


def rows(name: str) -> list[list[str]]:
    return [line.split("\t") for line in (FOLDER / name).read_text().splitlines()]


def test_the_base_model_has_the_982_published_tensors() -> None:
    ours = {name: str(tuple(value.shape)) for name, value in published().vla.state_dict().items()}
    assert ours == dict(rows("state_dict.txt"))
    assert len(ours) == 982
    assert sum(value.numel() for value in published().vla.parameters()) == 7_541_237_184


def test_the_heads_have_the_published_sizes() -> None:
    model = published()
    assert tuple(model.action_head.model.fc1.weight.shape) == (4096, 28672)
    assert tuple(model.proprio_projector.fc1.weight.shape) == (4096, 8)
    assert sum(value.numel() for value in model.scale_head.parameters()) == 167_899_143


def test_lora_adapts_the_439_modules_of_the_authors_adapters() -> None:
    with torch.device("meta"):
        vla = OpenVLAOFT(Architecture()).vla
    add_lora(vla, new_config(rank=32, alpha=16), is_loaded=True)
    ours: dict[str, dict[str, str]] = {}
    for name, value in lora_parameters(vla).items():
        module, part = file_name(name).removesuffix(".weight").rsplit(".", 1)
        ours.setdefault(module, {})[part] = f"{part}{tuple(value.shape)}"
    assert [*ours] == [row[0] for row in rows("lora_targets.txt")]
    assert len(ours) == 439
    for module, kind, *shapes in rows("lora_targets.txt"):
        layer = vla.get_submodule(module.removeprefix("base_model.model."))
        assert type(layer).__name__ == kind
        assert [ours[module]["lora_A"], ours[module]["lora_B"]] == shapes
    assert sum(value.numel() for value in lora_parameters(vla).values()) == 110_828_288
