# SPDX-License-Identifier: Apache-2.0
"""Open, decode and encode images with one named Pillow decoder or encoder each.

``Image.open`` tries every installed decoder. Naming the decoder keeps the others away from untrusted files.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image, ImageFile, features

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.images.facts import BrokenRule, ImageFacts, UnusableImageError

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "BMP": "image/bmp", "WEBP": "image/webp"}
#: A side of this many pixels or more is refused by the header alone, whatever the file.
MAX_SIDE_PX = 30_000
#: Pixels that may be decoded; 100 million take 400 MB in memory.
MAX_PIXELS = 100_000_000
#: Baseline JPEG is decoded at a half, a quarter or an eighth, so a 200-megapixel phone photograph is no danger.
MAX_PIXELS_SCALED = 250_000_000
#: Pillow has no mode for more, and nothing in such a file says which value is white.
MAX_BITS = 16

#: The decoders of these turn the picture upright themselves.
DECODED_UPRIGHT = frozenset(("HEIF", "TIFF"))

_DECODERS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
}

#: What Pillow's decoders raise for files that are cut off or damaged.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    Warning,  # where Python runs with -W error
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def missing_decoder(fmt: str) -> str | None:
    """Return what to install to decode a format, or None if nothing is missing."""
    if fmt == "HEIF" and importlib.util.find_spec("pillow_heif") is None:
        return "HEIC needs the extra: pip install 'airflow-provider-wan[heif]'"
    if fmt == "AVIF" and not features.check("avif"):
        return "AVIF needs Pillow 11.3 or later, built with AVIF support"
    return None


class _PillowGlobals:
    """Holds Pillow's process-wide settings at our values while any thread decodes here.

    With ``ImageFile.LOAD_TRUNCATED_IMAGES``, which other code in the process may set, Pillow and pillow_heif decode a
    cut file without an error. ``Image.MAX_IMAGE_PIXELS`` refuses images by another limit than ours. Both exist only as
    globals, so they are set for the time of the decoding and restored.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._found: tuple[bool, int | None] = (False, None)

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._found = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, MAX_PIXELS_SCALED
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._found


_pillow = _PillowGlobals()


@contextmanager
def decoding(name: str, fmt: str | None = None, *, doing: str = "decoded") -> Iterator[None]:
    """Decode with our own limits, and raise one error for whatever a decoder raises.

    :param name: how the message calls the image.
    :param fmt: the image's format.
    :raises UnusableImageError: the image cannot be decoded.
    """
    try:
        with _pillow.held():
            yield
    except WanError:
        raise
    except _DECODE_ERRORS as error:
        message = (
            f"{name}: the file is truncated or damaged, it cannot be {doing} ({str(error) or type(error).__name__}). "
            "Upload it again, whole."
        )
        raise UnusableImageError(
            message, (BrokenRule("decodable", fmt, None, message, fixable=False),)
        ) from error


def open_file(file: IO[bytes], fmt: str, name: str) -> ImageFile.ImageFile:
    """Open an image, not yet decoded, with the decoder of its format.

    :raises UnusableImageError: the decoder is not installed.
    """
    if missing := missing_decoder(fmt):
        broken = BrokenRule("formats", fmt, None, f"it is {fmt} ({missing})", fixable=False)
        raise UnusableImageError(f"{name}: {missing}. Nothing was bought.", (broken,))
    module, class_name = _DECODERS[fmt]
    factory: Callable[[IO[bytes]], ImageFile.ImageFile] = getattr(importlib.import_module(module), class_name)
    return factory(file)


def open_image(file: IO[bytes], facts: ImageFacts) -> ImageFile.ImageFile:
    """Open an image that was inspected; see :func:`open_file`."""
    return open_file(file, facts.format, facts.name)


def check_whole(data: bytes, facts: ImageFacts) -> None:
    """Decode an image once, as cheaply as its format allows, to be sure that it is whole.

    Preparation and submit both use this check.

    :raises UnusableImageError: it is cut off or damaged.
    """
    with decoding(facts.name, facts.format), open_image(io.BytesIO(data), facts) as image:
        if facts.format == "JPEG":
            image.draft(image.mode, (max(facts.width // 8, 1), max(facts.height // 8, 1)))
        image.load()


def encode(image: Image.Image, fmt: str, **options: Any) -> bytes:
    """Encode an image; only pixels are written as long as its ``info`` is empty.

    :param options: Pillow's, for the format.
    """
    with _scratch_file() as file:
        image.save(file, fmt, **options)
        file.seek(0)
        return file.read()


def _scratch_file() -> IO[bytes]:
    """Return a file in memory that has a file descriptor, where the system has such files.

    Pillow keeps the interpreter lock while it encodes into a Python object, and releases it while it encodes JPEG into
    a file descriptor, so other threads continue.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("image"), "w+b")
    return io.BytesIO()
