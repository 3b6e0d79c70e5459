# SPDX-License-Identifier: Apache-2.0
"""Encodes real videos: a slow pan and zoom over the image that was sent, in the format of Wan 2.2.

H.264, yuv420p, 30 frames a second, five seconds, silent, index in front. The same image and inputs give the
same bytes. The image is scaled as luma and chroma planes, not as RGB: half of the work.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

FRAMES_PER_SECOND = 30
SECONDS = 5
#: Pixels of a frame, by resolution (the model keeps the aspect ratio of the image).
PIXELS = {"480P": 310_000, "1080P": 2_070_000, "tiny": 4_096}

#: By container: the codec, its options, those of the file.
_CODECS = {
    "mp4": ("libx264", {"preset": "ultrafast", "crf": "23"}, {"movflags": "+faststart"}),
    "webm": ("libvpx", {"deadline": "realtime"}, {}),
}
_BT601, _VIDEO_RANGE = 6, 1  # FFmpeg's numbers


def frame_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """Return the size of a video, both sides even: the image's aspect ratio at the resolution's number of pixels."""
    scale = (PIXELS.get(resolution, PIXELS["480P"]) / (width * height)) ** 0.5
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def placeholder_image(key: str, *, size: tuple[int, int] = (640, 480)) -> bytes:
    """Draw an image for where none was fetched: a gradient whose colours come from the inputs."""
    tint = hashlib.sha256(key.encode()).digest()
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    card = Image.merge("RGB", (across, down, Image.new("L", size, tint[0])))
    file = io.BytesIO()
    card.rotate(90 * (tint[1] % 2), expand=True).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class _Move:
    """A camera move: where the visible part of the image starts and ends, as (centre x, centre y, size)."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]

    def box(self, part: float, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the visible part of an image at a moment from 0 to 1, eased in and out."""
        eased = part * part * (3 - 2 * part)
        x, y, size = (a + (b - a) * eased for a, b in zip(self.start, self.end, strict=True))
        half = size / 2
        x, y = min(max(x, half), 1 - half), min(max(y, half), 1 - half)
        return ((x - half) * width, (y - half) * height, (x + half) * width, (y + half) * height)


def _move_of(key: bytes) -> _Move:
    """Choose a camera move by the inputs, so that other inputs give another video."""
    digest = hashlib.sha256(key).digest()
    shift_x, shift_y = digest[0] / 255 - 0.5, digest[1] / 255 - 0.5
    wide = (0.5 - shift_x * 0.1, 0.5 - shift_y * 0.1, 0.97)
    close = (0.5 + shift_x * 0.3, 0.5 + shift_y * 0.3, 0.66 + digest[2] / 255 * 0.1)
    return _Move(wide, close) if digest[3] % 2 else _Move(close, wide)


def encode_video(
    image: bytes,
    path: Path,
    *,
    resolution: str,
    key: str,
    seconds: float = SECONDS,
    container: str = "mp4",
) -> None:
    """Encode a clip over an image into a file; takes about a second of CPU at 480P, so call it in a thread.

    :param image: the file that was sent, in any format that Pillow reads.
    :param path: appears when the clip is whole. A file, for the index can only be moved to the front there.
    :param resolution: ``480P`` or ``1080P``.
    :param key: stands for the inputs; chooses the camera move.
    :param container: ``mp4`` (H.264) or ``webm`` (VP8).
    :raises ModuleNotFoundError: PyAV is missing.
    """
    with Image.open(io.BytesIO(image)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    size = frame_size(*picture.size, resolution)
    part = path.with_suffix(".part")
    frames = round(seconds * FRAMES_PER_SECOND)
    _encode(picture, part, container=container, size=size, move=_move_of(key.encode()), frames=frames)
    part.replace(path)


def _encode(
    picture: Image.Image, path: Path, *, container: str, size: tuple[int, int], move: _Move, frames: int
) -> None:
    import av

    planes = _planes(picture, size)
    codec, codec_options, file_options = _CODECS[container]
    with av.open(str(path), mode="w", format=container, options=file_options) as file:
        stream = file.add_stream(codec, rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _VIDEO_RANGE
        stream.options = {**codec_options, "threads": "1"}
        for number in range(frames):
            frame = _frame(av, planes, size, move, number / max(1, frames - 1))
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _planes(picture: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Split an image into luma and halved chroma, first brought near the size that is needed."""
    enough = (round(size[0] * 1.5), round(size[1] * 1.5))
    if picture.width > enough[0]:
        picture = picture.resize(enough, Image.Resampling.LANCZOS)
    luma, blue, red = picture.convert("YCbCr").split()
    half = (max(1, picture.width // 2), max(1, picture.height // 2))
    # Pillow's planes use all values from 0 to 255, video 16 to 235 and 16 to 240.
    luma = luma.point([16 + round(value * 219 / 255) for value in range(256)])
    chroma = [128 + round((value - 128) * 224 / 255) for value in range(256)]
    return luma, blue.resize(half).point(chroma), red.resize(half).point(chroma)


def _frame(av: Any, planes: tuple[Image.Image, ...], size: tuple[int, int], move: _Move, part: float) -> Any:
    frame = av.VideoFrame(*size, "yuv420p")
    for plane, source in zip(frame.planes, planes, strict=True):
        box = move.box(part, *source.size)
        scaled = source.resize((plane.width, plane.height), Image.Resampling.BILINEAR, box=box)
        plane.update(scaled.tobytes("raw", "L", plane.line_size, 1))
    return frame
