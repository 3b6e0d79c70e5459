# SPDX-License-Identifier: Apache-2.0
"""Videos that PyAV makes: good ones, and each kind of bad one."""

from __future__ import annotations

import functools
import io
import random
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageDraw, ImageEnhance

from tests.image_samples import encoded

#: Small, since all of it is encoded and decoded; three times the size at which frames are compared.
SIZE, RATE, SECONDS = (480, 360), 15, 5
Frames = Iterator[tuple[float, Image.Image]]


@functools.cache
def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw a scene with structure at all scales."""
    drawn = random.Random(7)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, side = (
            drawn.randrange(size[0]),
            drawn.randrange(size[1]),
            drawn.randrange(size[0] // 60, size[0] // 5),
        )
        draw.ellipse((x, y, x + side, y + side), fill=tuple(drawn.randrange(256) for _ in range(3)))
    return image


def scene_jpeg() -> bytes:
    return encoded(scene(), "JPEG")


def other_scene() -> Image.Image:
    """Draw a scene that has nothing to do with the first."""
    drawn = random.Random(8)
    image = Image.new("RGB", SIZE, (200, 190, 180))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = drawn.randrange(SIZE[0]), drawn.randrange(SIZE[1])
        draw.rectangle((x, y, x + drawn.randrange(15, 150), y + 22), fill=(drawn.randrange(256),) * 3)
    return image


def times(seconds: float = SECONDS, rate: int = RATE) -> list[float]:
    return [number / rate for number in range(round(seconds * rate))]


def pan(image: Image.Image | None = None, seconds: float = SECONDS) -> Frames:
    """Move slowly into a picture."""
    picture = image or scene()
    width, height = picture.size
    for at in times(seconds):
        inset = 0.15 * at / SECONDS
        box = (inset * width, inset * height, width - inset * width, height - inset * height)
        yield at, picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)


def still(image: Image.Image, seconds: float = SECONDS) -> Frames:
    for at in times(seconds):
        yield at, image


def fade_in() -> Frames:
    """Fade from black within a second."""
    for at, image in pan():
        yield at, ImageEnhance.Brightness(image).enhance(min(1.0, at))


def small_motion() -> Frames:
    """Hold the camera still while something of 9 by 9 pixels moves by three eighths of a pixel a frame."""
    for number, at in enumerate(times()):
        image = scene().copy()
        ImageDraw.Draw(image).rectangle((75 + number * 0.375, 75, 84 + number * 0.375, 84), fill=(255, 255, 255))
        yield at, image


def fog() -> Frames:
    """Brighten a smooth picture so slowly that no frame differs visibly from the one before."""
    smooth = Image.radial_gradient("L").resize(SIZE).convert("RGB")
    for at in times():
        yield at, ImageEnhance.Brightness(smooth).enhance(0.5 + at / 10)


def night() -> Frames:
    """Move over a dark picture with a few small lights."""
    image = Image.new("RGB", SIZE, (4, 4, 8))
    drawn = random.Random(3)
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y = drawn.randrange(SIZE[0]), drawn.randrange(SIZE[1])
        draw.ellipse((x, y, x + 4, y + 4), fill=(255, 230, 180))
    yield from pan(image)


def stops_after(seconds: float) -> Frames:
    """Move for a moment, then hold the last picture."""
    last = scene()
    for at, image in pan():
        last = image if at < seconds else last
        yield at, last


def irregular() -> Frames:
    """Show frames at irregular times."""
    for number, (at, image) in enumerate(pan()):
        if number % 5 not in (1, 2):
            yield at, image


def encode(
    frames: Frames,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    audio: Callable[[int], bytes] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encode frames.

    :param audio: returns the sound of a number of samples (16 bits, mono, 48 kHz).
    """
    file = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"made.{container}"
        with av.open(str(path), "w", format=container) as opened:
            stream: Any = None
            sound: Any = None
            for at, image in frames:
                if stream is None:
                    stream = opened.add_stream(codec, rate=RATE, options=options or {})
                    stream.width, stream.height, stream.pix_fmt = *image.size, "yuv420p"
                    stream.codec_context.time_base = Fraction(1, 1000)
                    sound = opened.add_stream("aac", rate=48_000) if audio else None
                frame = av.VideoFrame.from_image(image)
                frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
                opened.mux(stream.encode(frame))
            opened.mux(stream.encode())
            if sound is not None and audio is not None:
                for number in range(48 * SECONDS):
                    piece = av.AudioFrame(format="s16", layout="mono", samples=1000)
                    piece.planes[0].update(audio(1000))
                    piece.sample_rate, piece.pts = 48_000, number * 1000
                    opened.mux(sound.encode(piece))
                opened.mux(sound.encode())
        file.write(path.read_bytes())
    return file.getvalue()


def silence(samples: int) -> bytes:
    return bytes(2 * samples)


def noise(samples: int) -> bytes:
    return random.Random(samples).randbytes(2 * samples)


def damaged_in_the_middle(data: bytes) -> bytes:
    """Overwrite a stretch of the media data, as a cut in the middle of a frame that was patched up does."""
    at = data.index(b"mdat") + 4
    start = at + (len(data) - at) // 3
    return data[:start] + b"\xff" * 3000 + data[start + 3000 :]


MAKERS: dict[str, Callable[[], bytes]] = {
    "pan": lambda: encode(pan()),
    "black": lambda: encode(still(Image.new("RGB", SIZE))),
    "frozen": lambda: encode(still(scene())),
    "stops after 0.3 s": lambda: encode(stops_after(0.3)),
    "fade from black": lambda: encode(fade_in()),
    "static camera, small motion": lambda: encode(small_motion()),
    "slow fog": lambda: encode(fog()),
    "night scene": lambda: encode(night()),
    "one frame": lambda: encode(iter([(0.0, scene())])),
    "half as long": lambda: encode(pan(seconds=2.5)),
    "wrong size": lambda: encode(pan(scene((240, 180)))),
    "another picture": lambda: encode(pan(other_scene())),
    "silent audio": lambda: encode(pan(), audio=silence),
    "audio": lambda: encode(pan(), audio=noise),
    "variable frame rate": lambda: encode(irregular()),
    "hevc": lambda: encode(pan(), codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}),
    "webm": lambda: encode(pan(), container="webm", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}),
    "damaged": lambda: damaged_in_the_middle(made("pan")),
}


@functools.cache
def made(kind: str) -> bytes:
    """Return a made video; each is encoded once."""
    return MAKERS[kind]()
