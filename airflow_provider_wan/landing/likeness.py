# SPDX-License-Identifier: Apache-2.0
"""How like the beginning of a video is to its source image, as mean structural similarity (SSIM)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    _Pixels = NDArray[np.float64]

#: Pictures are compared at this size, in windows of 8 by 8 pixels.
_SIDE, _WINDOW = 32, 8
#: SSIM's constants for 255 levels (Wang et al., "Image quality assessment", 2004).
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
#: Parts of the image that a video may begin with, as a camera that moves does; and how finely they are placed.
_ZOOMS = ((1.0, 1), (0.95, 2), (0.9, 3), (0.85, 3), (0.8, 4), (0.75, 5), (0.7, 5), (0.65, 5))
#: From here on it is surely the same picture: no further frame or part is tried.
_SURELY_ALIKE = 0.6
_Box = tuple[float, float, float, float]


def likeness(beginning: list[Image.Image], source: Image.Image) -> float | None:
    """Return how like the beginning of a video is to its source image: the best structural similarity (SSIM).

    Mean SSIM over windows of 8 by 8 of gray pictures of 32 by 32 pixels. Of the image also parts are tried, since a
    model may crop it, and a camera move may begin close; of the video also the frames of its first two seconds, since
    it may fade in. Unrelated photos have up to 0.2, the image itself 0.4 to 1. Needs NumPy.

    :param beginning: gray frames.
    :return: None if the image is so flat that it has no structure.
    """
    image = source.convert("L")
    image.thumbnail((256, 256))
    low, high = image.resize((_SIDE, _SIDE)).getextrema()
    if not beginning or high - low < 16:  # type: ignore[operator]
        return None
    parts = cache(lambda box: _pixels(image, *_parts(box)))
    best = -1.0
    for frame in beginning:
        for image_box, frame_box in _framings(image.size, frame.size):
            best = max(best, _best_match(parts(image_box), _pixels(frame, frame_box)))
            if best >= _SURELY_ALIKE:
                return round(best, 3)
    return round(best, 3)


def _framings(image: tuple[int, int], frame: tuple[int, int]) -> Iterator[tuple[_Box, _Box]]:
    """Yield which part of the image to compare with which part of a frame: scaled, cropped, or with bars."""
    whole_image = (0.0, 0.0, float(image[0]), float(image[1]))
    whole_frame = (0.0, 0.0, float(frame[0]), float(frame[1]))
    yield whole_image, whole_frame
    image_ratio, frame_ratio = image[0] / image[1], frame[0] / frame[1]
    if abs(image_ratio / frame_ratio - 1) > 0.05:
        yield _centre(image, frame_ratio), whole_frame
        yield whole_image, _centre(frame, image_ratio)


def _centre(size: tuple[int, int], ratio: float) -> _Box:
    """Return the largest centred box of an aspect ratio."""
    width, height = min(size[0], size[1] * ratio), min(size[1], size[0] / ratio)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def _parts(box: _Box) -> Iterator[_Box]:
    left, top, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
    for zoom, places in _ZOOMS:
        rooms = [(1 - zoom) * place / max(1, places - 1) for place in range(places)]
        for x in rooms:
            for y in rooms:
                at_x, at_y = left + x * width, top + y * height
                yield at_x, at_y, at_x + zoom * width, at_y + zoom * height


def _pixels(picture: Image.Image, *boxes: _Box) -> _Pixels:
    """Return boxes of a gray picture, each scaled to 32 by 32 pixels."""
    import numpy as np
    from PIL import Image

    size, smooth = (_SIDE, _SIDE), Image.Resampling.BILINEAR
    return np.stack([np.asarray(picture.resize(size, smooth, box=box), float) for box in boxes])


def _best_match(parts: _Pixels, frame: _Pixels) -> float:
    """Return the best SSIM of a frame and parts of the image; the correlation chooses the parts worth comparing."""
    import numpy as np

    _, _, variance_a, variance_b, covariance = _moments(parts, frame, axes=(1, 2))
    has_structure = (variance_a > 1) & (variance_b > 1)
    correlation = np.where(has_structure, covariance / np.sqrt(variance_a * variance_b + 1e-9), -1.0)
    likely = parts[np.argsort(-correlation, kind="stable")[:6]]
    return float(_ssim(likely, frame).max())


def _moments(a: _Pixels, b: _Pixels, axes: tuple[int, int]) -> tuple[_Pixels, ...]:
    """Return two means, two variances and the covariance over these axes."""
    mean_a, mean_b = a.mean(axes), b.mean(axes)
    variance_a, variance_b = (a * a).mean(axes) - mean_a**2, (b * b).mean(axes) - mean_b**2
    return mean_a, mean_b, variance_a, variance_b, (a * b).mean(axes) - mean_a * mean_b


def _ssim(a: _Pixels, b: _Pixels) -> _Pixels:
    """Return the mean structural similarity over the windows of each picture of one stack and that of the other."""
    windows = (-1, _SIDE // _WINDOW, _WINDOW, _SIDE // _WINDOW, _WINDOW)
    mean_a, mean_b, variance_a, variance_b, covariance = _moments(a.reshape(windows), b.reshape(windows), axes=(2, 4))
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    means: _Pixels = (luminance * structure).mean((1, 2))
    return means
