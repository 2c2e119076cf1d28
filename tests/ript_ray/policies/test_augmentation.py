import colorsys

import numpy as np
import pytest
import torch
from ript_ray.data.augmentation import augment, turn_hue


def pictures(num: int = 4, size: int = 12) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


def changed(seed: int = 1, **changes: float) -> torch.Tensor:
    settings = {"color": 0.3, "color_share": 0.9, "shift": 2, **changes}
    return augment(pictures(), np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hue_turns_as_in_the_standard_library(turn: float) -> None:
    colours = [*np.random.default_rng(0).random((50, 3)).tolist(), [0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]

    def turned(red: float, green: float, blue: float) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)

    given = torch.tensor(colours).T.reshape(1, 3, -1, 1)
    expected = torch.tensor([turned(*colour) for colour in colours]).T.reshape(1, 3, -1, 1)
    torch.testing.assert_close(turn_hue(given, turn), expected, atol=1e-5, rtol=0)


def test_nothing_changes_where_nothing_is_to_and_the_input_never_does() -> None:
    given = pictures()
    assert torch.equal(augment(given, np.random.default_rng(1), color=0.0, color_share=0.9, shift=0), given)
    assert torch.equal(augment(given, np.random.default_rng(1), color=0.3, color_share=0.0, shift=0), given)
    augment(given, np.random.default_rng(1), color=0.3, color_share=1.0, shift=2)
    assert torch.equal(given, pictures())


def test_the_same_generator_gives_the_same_pictures_and_another_one_others() -> None:
    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))
    assert changed().dtype == torch.uint8
    assert changed().shape == pictures().shape


def test_pictures_move_by_whole_pixels_each_its_own_way_and_repeat_their_edges() -> None:
    given = pictures(num=60)
    moved = augment(given, np.random.default_rng(1), color=0.0, color_share=0.0, shift=2)
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


def test_about_the_share_of_pictures_changes_its_colours() -> None:
    given = pictures(num=300, size=4)
    moved = augment(given, np.random.default_rng(1), color=0.3, color_share=0.9, shift=0)
    share = (moved != given).flatten(1).any(1).float().mean()
    assert 0.85 < share < 0.95


class Drawn:
    """A generator whose draws are given: every picture changes, by these factors, in this order."""

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
def test_colours_change_by_the_factors_that_were_drawn_in_the_order_that_was_drawn(drawn: Drawn, changes) -> None:
    expected = pictures().numpy() / 255
    for change, factor in changes:
        expected = change(expected, factor)
    found = augment(pictures(), drawn, color=0.5, color_share=1.0, shift=0).numpy()
    np.testing.assert_allclose(found, expected * 255, atol=0.51)
