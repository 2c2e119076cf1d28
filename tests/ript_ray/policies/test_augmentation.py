import colorsys
from typing import Any, cast

import numpy as np
import pytest
import torch

from ript_ray.policies.augmentation import augment, turn_hue
from ript_ray.policies.supervised import Augmentation


def images(num: int = 4, size: int = 12) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


def changed(seed: int = 1, **changes: Any) -> torch.Tensor:
    return augment(images(), np.random.default_rng(seed), Augmentation(**changes))


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hue_turns_as_in_the_standard_library(turn: float) -> None:
    colors = [*np.random.default_rng(0).random((50, 3)).tolist(), [0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]

    def turned(red: float, green: float, blue: float) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)

    given = torch.tensor(colors).T.reshape(1, 3, -1, 1)
    expected = torch.tensor([turned(*color) for color in colors]).T.reshape(1, 3, -1, 1)
    torch.testing.assert_close(turn_hue(given, turn), expected, atol=1e-5, rtol=0)


def test_disabled_augmentation_changes_nothing_and_the_input_is_never_modified() -> None:
    given = images()
    for nothing in (Augmentation(color=0.0, color_share=0.9, shift=0), Augmentation(color_share=0.0, shift=0)):
        assert torch.equal(augment(given, np.random.default_rng(1), nothing), given)
    augment(given, np.random.default_rng(1), Augmentation(color_share=1.0))
    assert torch.equal(given, images())


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))
    assert changed().dtype == torch.uint8
    assert changed().shape == images().shape


def test_each_image_shifts_by_whole_pixels_of_its_own_and_repeats_its_edges() -> None:
    given = images(num=60)
    moved = augment(given, np.random.default_rng(1), Augmentation(color=0.0, color_share=0.0))
    ways = set()
    for before, after in zip(given.numpy(), moved.numpy(), strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
        ways |= {
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(padded[down : down + 12, right : right + 12], after)
        }
    assert len(ways) > 15
    assert {down for down, _ in ways} == {right for _, right in ways} == set(range(5))


def test_about_color_share_of_the_images_change_color() -> None:
    given = images(num=300, size=4)
    moved = augment(given, np.random.default_rng(1), Augmentation(shift=0))
    share = (moved != given).flatten(1).any(1).float().mean()
    assert 0.85 < share < 0.95


class Drawn:
    """A generator whose draws are given: every image changes, by these factors, in this order."""

    def __init__(self, brightness: float, contrast: float, saturation: float, order: tuple[int, ...] = (0, 1, 2, 3)):
        self._factors, self._order = np.array([brightness, contrast, saturation]), np.array(order)

    def random(self, size: int) -> np.ndarray:
        return np.zeros(size)

    def uniform(self, low: float, high: float, size: int | None = None) -> np.ndarray | float:
        assert (low, high) == ((0.5, 1.5) if size else (-0.5, 0.5))
        return self._factors if size else 0.0

    def permutation(self, size: int) -> np.ndarray:
        assert size == 4
        return self._order


def brighter(x: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(x * factor, 0, 1)


def grey(x: np.ndarray) -> np.ndarray:
    return (x @ [0.2989, 0.587, 0.114])[..., None]


def with_contrast(x: np.ndarray, factor: float) -> np.ndarray:
    mean = grey(x).mean((1, 2, 3), keepdims=True)
    return np.clip(mean + factor * (x - mean), 0, 1)


def with_saturation(x: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(grey(x) + factor * (x - grey(x)), 0, 1)


@pytest.mark.parametrize(
    ("drawn", "changes"),
    [
        (Drawn(1.4, 1.0, 1.0), [(brighter, 1.4)]),
        (Drawn(1.0, 0.6, 1.0), [(with_contrast, 0.6)]),
        (Drawn(1.0, 1.0, 0.5), [(with_saturation, 0.5)]),
        (Drawn(1.3, 1.4, 1.2), [(brighter, 1.3), (with_contrast, 1.4), (with_saturation, 1.2)]),
        (Drawn(1.3, 1.4, 1.2, (2, 3, 1, 0)), [(with_saturation, 1.2), (with_contrast, 1.4), (brighter, 1.3)]),
    ],
)
def test_colors_change_by_the_drawn_factors_in_the_drawn_order(drawn: Drawn, changes) -> None:
    expected = images().numpy() / 255
    for change, factor in changes:
        expected = change(expected, factor)
    found = augment(
        images(), cast(np.random.Generator, drawn), Augmentation(color=0.5, color_share=1.0, shift=0)
    ).numpy()
    np.testing.assert_allclose(found, expected * 255, atol=0.51)
