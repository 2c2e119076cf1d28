"""The images that OpenVLA-OFT reads, against TensorFlow 2.15.0 and the published processor."""

from pathlib import Path

import numpy as np
import pytest

from ript_ray.errors import CheckpointError
from ript_ray.policies.openvla_oft.images import (
    PREPROCESSOR_FILE,
    Normalization,
    centre_crop,
    jpeg_round_trip,
    lanczos_resize,
    lanczos_weights,
    pixel_values,
    prepare,
    rotate,
)
from tests.oft_fixture import CHECKPOINT, Change, arrays, changed

PICTURES = "images.npz"


@pytest.mark.parametrize("camera", ["agentview", "wrist"])
def test_rotation_and_jpeg_are_those_of_tensorflow_to_the_bit(camera: str):
    found = jpeg_round_trip(rotate(arrays(PICTURES)[f"raw_{camera}"][0]))
    np.testing.assert_array_equal(found, arrays(PICTURES)[f"rot_jpeg_{camera}"][0])


@pytest.mark.parametrize(("raw", "name"), [("raw_agentview", "full_image"), ("raw_wrist", "wrist_image")])
def test_prepared_images_are_those_of_tensorflow_to_the_bit(raw: str, name: str):
    np.testing.assert_array_equal(prepare(arrays(PICTURES)[raw], 224), arrays(PICTURES)[name][:2])


@pytest.mark.parametrize(("name", "crop"), [("full_image", "crop_full"), ("wrist_image", "crop_wrist")])
def test_the_centre_crop_is_that_of_tensorflow_to_the_bit(name: str, crop: str):
    for image, cropped in zip(arrays(PICTURES)[name], arrays(PICTURES)[crop], strict=True):
        np.testing.assert_array_equal(centre_crop(image), cropped)


def test_pixel_values_are_those_of_the_published_processor():
    normalization, expected = Normalization.read(CHECKPOINT), arrays("expected.npz")
    cameras = [pixel_values(arrays(PICTURES)[name], normalization) for name in ("full_image", "wrist_image")]
    assert all(values.shape == (3, 6, 224, 224) and values.dtype == np.float32 for values in cameras)
    found = np.concatenate(cameras, axis=1)
    np.testing.assert_array_equal(found[:, :, ::8, ::8], expected["pixel_values_stride8"])
    np.testing.assert_allclose(found.sum((2, 3), dtype=np.float64), expected["pixel_values_sum"], rtol=1e-9)
    squares = np.square(found, dtype=np.float64).sum((2, 3))
    np.testing.assert_allclose(squares, expected["pixel_values_sqsum"], rtol=1e-9)


@pytest.mark.parametrize(("num_in", "num_out"), [(256, 224), (128, 224), (48, 28), (224, 224)])
def test_resize_weights_are_lanczos_stretched_where_the_image_shrinks(num_in: int, num_out: int):
    stretch = max(num_in / num_out, 1)
    centres = (np.arange(num_out) + 0.5) * num_in / num_out
    x = (np.arange(num_in) + 0.5 - centres[:, None]) / stretch
    kernel = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    expected = kernel / kernel.sum(1, keepdims=True)
    np.testing.assert_allclose(lanczos_weights(num_in, num_out).toarray(), expected, atol=3e-5)


def test_images_of_any_size_become_squares_and_a_plain_one_stays_plain():
    plain = np.full((96, 128, 3), (0, 100, 255), np.uint8)
    np.testing.assert_array_equal(centre_crop(lanczos_resize(plain, 56)), plain[:56, :56])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("tvf_normalize_params"), "it has no 'tvf_normalize_params'"),
        (lambda content: content.update(image_resize_strategy="letterbox"), "is 'letterbox', not 'resize-naive'"),
        (lambda content: content.update(input_sizes=[[3, 224, 224], [3, 384, 384]]), "input_sizes are "),
        (lambda content: content.update(input_sizes=[]), "input_sizes are "),
        (lambda content: content.update(input_sizes=[[3]]), "does not describe the images"),
        (lambda content: content["tvf_normalize_params"].pop(), "a mean of three numbers for each of 2"),
        (lambda content: content["tvf_normalize_params"][0].update(std=[0.2, 0.0, 0.2]), "must be above 0, not 0.0"),
        (lambda content: content["tvf_normalize_params"][0].update(mean=[0.2, None, 0.2]), "three numbers"),
        (lambda content: content["tvf_normalize_params"][0].update(mean=[10**400, 0, 0]), "does not describe"),
    ],
)
def test_a_preprocessor_that_does_something_else_is_refused(change: Change, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=message):
        Normalization.read(changed(tmp_path, PREPROCESSOR_FILE, change))
