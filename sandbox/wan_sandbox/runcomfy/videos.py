# SPDX-License-Identifier: Apache-2.0
"""Encodes real videos: a slow pan and zoom over the image that was sent.

H.264, yuv420p, index in front, with the size, length, frame rate and sound that were asked for. The same image and
inputs give the same bytes. The image is scaled as luma and chroma planes, not as RGB: half of the work. A clip of
more pixels than 720p for five seconds repeats a shorter move, forth and back: the encoded packets are written again.
"""

from __future__ import annotations

import array
import hashlib
import io
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from wan_sandbox.runcomfy.clip import Clip

#: Pixels of a frame, by number of lines (the model keeps the aspect ratio of the image).
_PIXELS = {
    0: 4_096,
    480: 310_000,
    720: 921_600,
    768: 1_049_000,
    1080: 2_070_000,
    1440: 3_686_400,
    2160: 8_294_400,
}
#: Pixels that are encoded for one clip, at most: about three seconds of CPU.
_MOST_PIXELS = 140_000_000
_AUDIO_RATE, _AUDIO_FRAME = 44_100, 1024

#: By container: the codec, its options, those of the file.
_CODECS = {
    "mp4": ("libx264", {"preset": "ultrafast", "crf": "23"}, {"movflags": "+faststart"}),
    "webm": ("libvpx", {"deadline": "realtime"}, {}),
}
_BT601, _VIDEO_RANGE = 6, 1  # FFmpeg's numbers


def frame_size(aspect: float, lines: int) -> tuple[int, int]:
    """Return the size of a video, both sides even: an aspect ratio at the number of pixels of a resolution."""
    pixels = next((pixels for known, pixels in _PIXELS.items() if lines <= known), _PIXELS[2160])
    width = (pixels * aspect) ** 0.5
    return max(2, 2 * round(width / 2)), max(2, 2 * round(width / aspect / 2))


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
    """Choose a camera move by the inputs, so that different inputs produce different videos."""
    digest = hashlib.sha256(key).digest()
    shift_x, shift_y = digest[0] / 255 - 0.5, digest[1] / 255 - 0.5
    wide = (0.5 - shift_x * 0.1, 0.5 - shift_y * 0.1, 0.97)
    close = (0.5 + shift_x * 0.3, 0.5 + shift_y * 0.3, 0.66 + digest[2] / 255 * 0.1)
    return _Move(wide, close) if digest[3] % 2 else _Move(close, wide)


def encode_video(image: bytes, path: Path, clip: Clip, *, key: str, container: str = "mp4") -> None:
    """Encode a clip over an image into a file; takes about a second of CPU at 480P, so call it in a thread.

    :param image: the file that was sent, in any format that Pillow reads.
    :param path: appears when the clip is whole. A file, for the index can only be moved to the front there.
    :param clip: its size, length, frame rate and sound.
    :param key: a key of the inputs; selects the camera move.
    :param container: ``mp4`` (H.264) or ``webm`` (VP8).
    :raises ModuleNotFoundError: PyAV is missing.
    """
    import av

    with Image.open(io.BytesIO(image)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    size = frame_size(clip.aspect or picture.width / picture.height, clip.lines)
    if clip.aspect:
        picture = ImageOps.fit(picture, size)
    part = path.with_suffix(".part")
    codec, codec_options, file_options = _CODECS[container]
    with av.open(str(part), mode="w", format=container, options=file_options) as file:
        video = file.add_stream(codec, rate=clip.frames_per_second)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.colorspace, video.codec_context.color_range = _BT601, _VIDEO_RANGE
        video.options = {**codec_options, "threads": "1"}
        audio = _audio_stream(file) if clip.has_audio else None
        _write_frames(file, video, _planes(picture, size), clip, _move_of(key.encode()))
        if audio is not None:
            _write_tone(file, audio, clip.seconds)
    part.replace(path)


def _write_frames(file: Any, stream: Any, planes: tuple[Image.Image, ...], clip: Clip, move: _Move) -> None:
    """Encode the frames of a move; repeat it, forth and back, if the clip has too many pixels."""
    import av

    size, count = (stream.width, stream.height), round(clip.seconds * clip.frames_per_second)
    encoded = min(count, max(2, _MOST_PIXELS // (size[0] * size[1])))
    turn = encoded - 1 if encoded == count else encoded / 2
    packets = []
    for number in range(encoded):
        frame = _frame(av, planes, size, move, 1 - abs(1 - number / max(1, turn)))
        frame.pts, frame.time_base = number, Fraction(1, clip.frames_per_second)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    contents = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
    time_base = packets[0].time_base
    ticks = round(1 / clip.frames_per_second / time_base)
    for number in range(count):
        data, pts, dts, is_keyframe = contents[number % encoded]
        packet, later = av.Packet(data), number // encoded * encoded * ticks
        packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, is_keyframe
        packet.pts, packet.dts, packet.duration = pts + later, dts + later, ticks
        file.mux(packet)


def _audio_stream(file: Any) -> Any:
    return file.add_stream("aac", rate=_AUDIO_RATE, layout="mono")


def _write_tone(file: Any, stream: Any, seconds: float) -> None:
    """Write a quiet tone of 440 Hz."""
    import av

    total = round(seconds * _AUDIO_RATE)
    for start in range(0, total, _AUDIO_FRAME):
        count = min(_AUDIO_FRAME, total - start)
        wave = (0.1 * math.sin(2 * math.pi * 440 * (start + n) / _AUDIO_RATE) for n in range(count))
        frame = av.AudioFrame("fltp", "mono", count)
        frame.planes[0].update(array.array("f", wave).tobytes().ljust(frame.planes[0].buffer_size, b"\0"))
        frame.rate, frame.pts, frame.time_base = _AUDIO_RATE, start, Fraction(1, _AUDIO_RATE)
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
