"""Images of LIBERO as OpenVLA-OFT reads them, without TensorFlow.

In order: rotation by 180 degrees, JPEG round trip, Lanczos resize (`prepare`: what a rollout records), then centre crop
and one normalization per vision tower (`pixel_values`: what the network reads). TensorFlow's own results, of version
2.15.0, are reproduced bit for bit.

Source: openvla-oft, `prepare_images_for_vla`, `resize_image_for_policy` and `center_crop_image` (openvla_utils.py), and
`PrismaticImageProcessor` (processing_prismatic.py).
"""

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from PIL import Image

from ript_ray.errors import CheckpointError
from ript_ray.storage.reading import read_object

JPEG_QUALITY = 95
"""Source: the default of TensorFlow's `encode_jpeg`; with it, colors are halved in size (4:2:0)."""

CROP_SIDE = np.sqrt(np.float32(0.9))
"""Side of the centre crop, as a share of the image: 0.9 of its area. Source: openvla-oft, `center_crop_image`."""

STRIP = 32
"""Rows of an image that are cropped at a time."""

PREPROCESSOR_FILE = "preprocessor_config.json"

PUBLISHED = (0.485, 0.456, 0.406, 0.5, 0.5, 0.5), (0.229, 0.224, 0.225, 0.5, 0.5, 0.5)
"""Means and standard deviations of the colors that DINOv2 and SigLIP read. Source: the published checkpoints."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Normalization:
    """How a checkpoint's vision towers read images.

    Attributes:
        size: Height and width of the towers' images, in pixels.
        means: Per channel, float32 (channels, 1, 1), in units of the largest value: the three colors of the first
            tower, then those of the next.
        stds: Per channel, likewise.
    """

    size: int
    means: NDArray[np.float32]
    stds: NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read that of a checkpoint folder, from `preprocessor_config.json`.

        Its `tvf_normalize_params` are what the published processor applies; `means` and `stds` are those of timm, of
        which they were rounded.

        Raises:
            CheckpointError: The file is missing or damaged, or describes other steps than this module's.
        """
        path = folder / PREPROCESSOR_FILE
        content = read_object(path)
        try:
            return cls._parse(content)
        except (LookupError, OverflowError, TypeError, ValueError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{path} does not describe the images of OpenVLA-OFT: {what}") from error

    @classmethod
    def published(cls, size: int) -> Self:
        """Return that of the published towers, for images of another size."""
        means, stds = (np.array(values, np.float32).reshape(-1, 1, 1) for values in PUBLISHED)
        return cls(size, means, stds)

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Self:
        strategy, sizes = content["image_resize_strategy"], content["input_sizes"]
        if strategy != "resize-naive":
            raise ValueError(f"image_resize_strategy is {strategy!r}, not 'resize-naive'")
        size = sizes[0][1] if sizes else None
        if type(size) is not int or size < 1 or any(each != [3, size, size] for each in sizes):
            raise ValueError(f"input_sizes are {sizes}, not the same [3, size, size] for all vision towers")
        towers = content["tvf_normalize_params"]
        means, stds = (np.array([each[name] for each in towers], dtype=np.float32) for name in ("mean", "std"))
        for name, values in (("mean", means), ("std", stds)):
            if values.shape != (len(sizes), 3) or not np.isfinite(values).all():
                raise ValueError(f"tvf_normalize_params must have a {name} of three numbers for each of {len(sizes)}")
        if (stds <= 0).any():
            raise ValueError(f"every std in tvf_normalize_params must be above 0, not {stds.min()}")
        return cls(size, means.reshape(-1, 1, 1), stds.reshape(-1, 1, 1))

    def __call__(self, images: Pixels) -> NDArray[np.float32]:
        """Return the normalized images: uint8 (B, size, size, 3) -> float32 (B, channels, size, size).

        Source: torchvision's `to_tensor` and `normalize`, one after the other, as the published processor.
        """
        planes = np.moveaxis(images, -1, 1).astype(np.float32, order="C") / 255
        values = np.concatenate([planes] * (len(self.means) // 3), axis=1)
        values -= self.means
        values /= self.stds
        return values


def prepare(images: Pixels, size: int) -> Pixels:
    """Return a camera's images as a rollout records them: uint8 (B, H, W, 3) -> (B, size, size, 3).

    Args:
        images: As the benchmark observes them: bottom row first (`observes_bottom_up`), as in LIBERO's demonstrations.
            What comes out is upright and mirrored; the published policies were trained so.
        size: `Normalization.size`.
    """
    return np.stack([lanczos_resize(jpeg_round_trip(rotate(image)), size) for image in images])


def pixel_values(prepared: Pixels, normalization: Normalization) -> NDArray[np.float32]:
    """Return what the network reads of prepared images: uint8 (B, size, size, 3) -> float32 (B, channels, size, size).

    The channels of several cameras follow each other: for LIBERO those of agentview, then those of the wrist.
    """
    return normalization(np.stack([centre_crop(image) for image in prepared]))


def rotate(image: Pixels) -> Pixels:
    """Rotate an image by 180 degrees. Source: openvla-oft, `get_libero_image`."""
    return image[::-1, ::-1]


def jpeg_round_trip(image: Pixels) -> Pixels:
    """Compress and decompress an image as the training data were: uint8 (H, W, 3) -> (H, W, 3).

    TensorFlow decodes with the fast inverse transform and smooth colors. Pillow encodes to the same bytes but cannot
    decode so: its pixels would differ by up to 17 levels. Source: `tf.io.encode_jpeg` and `decode_image`.
    """
    import simplejpeg  # of the extra `openvla`

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return simplejpeg.decode_jpeg(file.getvalue(), fastdct=True, fastupsample=False)


def lanczos_resize(image: Pixels, size: int) -> Pixels:
    """Resize an image to a square: uint8 (H, W, 3) -> (size, size, 3); rounded once, at the end.

    Source: `tf.image.resize(method="lanczos3", antialias=True)`, which resizes columns, then rows, in float32.
    """
    height, width, _ = image.shape
    rows = lanczos_weights(height, size) @ image.reshape(height, -1).astype(np.float32)
    turned = rows.reshape(size, width, 3).swapaxes(0, 1).reshape(width, -1)
    turned = np.clip(np.rint(lanczos_weights(width, size) @ turned), 0, 255).astype(np.uint8)
    return turned.reshape(size, size, 3).swapaxes(0, 1)


@functools.lru_cache(maxsize=16)
def lanczos_weights(num_in: int, num_out: int) -> scipy.sparse.csr_array:
    """Return the weights (num_out, num_in) of a resize along one axis, float32, at most eight per row if it shrinks.

    In float32 throughout: from float64, one value in 20,000 would be a level off. Source: TensorFlow 2.15.0,
    `ComputeSpansCore` and `LanczosKernelFunc` (scale_and_translate_op.cc, sampling_kernels.h).
    """
    ratio = 1 / (np.float32(num_out) / np.float32(num_in))
    stretch = max(ratio, np.float32(1))
    centres = (np.arange(num_out, dtype=np.float32) + 0.5) * ratio
    distances = np.abs(np.arange(num_in, dtype=np.float32) + 0.5 - centres[:, None]) * (1 / stretch)
    x = np.maximum(distances, np.float32(1e-3))
    pi = np.float32(np.pi)
    kernel = 3 * np.sin(pi * x) * np.sin(pi * x / 3) / (pi * pi * x * x)
    kernel = np.where(distances <= 1e-3, np.float32(1), np.where(distances > 3, np.float32(0), kernel))
    total = np.cumsum(kernel, axis=1)[:, -1:]  # added one by one, as there
    return scipy.sparse.csr_array(kernel * (1 / total))


def centre_crop(image: Pixels) -> Pixels:
    """Cut out the centre of an image and scale it to the same size: uint8 (size, size, 3) -> (size, size, 3).

    Bilinear, on the grid whose corners are those of the crop. Source: `tf.image.crop_and_resize`, and
    `convert_image_dtype(saturate=True)`, which multiplies by 255.5 and rounds down.
    """
    # In strips: arrays of the whole image go back to the system each time, which costs thrice the arithmetic.
    return np.concatenate([_crop_rows(image, start) for start in range(0, len(image), STRIP)])


def _crop_rows(image: Pixels, start: int) -> Pixels:
    """Return the rows of the crop from `start` to before `start + STRIP`."""
    low, high, share = _crop_grid(len(image))
    top, bottom, share_down = (each[start : start + STRIP] for each in (low, high, share))
    pixels = image[top[0] : bottom[-1] + 1].astype(np.float32) * np.float32(1 / 255)
    left = pixels.take(low, axis=1)
    columns = left + (pixels.take(high, axis=1) - left) * share[:, None]
    upper, lower = columns[top - top[0]], columns[bottom - top[0]]
    return ((upper + (lower - upper) * share_down[:, None, None]) * np.float32(255.5)).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _crop_grid(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return, per pixel of the crop along one axis, its neighbours in the image and the share of the second."""
    last = np.float32(size - 1)
    offset = (1 - CROP_SIDE) / 2
    step = (offset + CROP_SIDE - offset) * last / last  # not just CROP_SIDE, in float32
    positions = offset * last + np.arange(size, dtype=np.float32) * step
    low = np.floor(positions)
    return low.astype(np.int64), np.ceil(positions).astype(np.int64), positions - low
