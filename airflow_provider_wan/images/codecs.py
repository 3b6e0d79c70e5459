# SPDX-License-Identifier: Apache-2.0
"""Opening and writing images with one named Pillow decoder or encoder each.

``Image.open`` tries every decoder that is installed and applies a process-wide limit on pixels. Naming the decoder
keeps the rest of them away from files of strangers, and our own limit (checked on the header, and again on what the
decoder found) out of everybody else's.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image, ImageFile, features

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import ImageFacts

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "BMP": "image/bmp", "WEBP": "image/webp"}

#: The decoders of these turn the picture upright by themselves.
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

#: What Pillow's decoders raise on files that are cut off or damaged.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def missing_decoder(fmt: str) -> str | None:
    """Return what to install to decode a format, None where that is possible already."""
    if fmt == "HEIF" and importlib.util.find_spec("pillow_heif") is None:
        return "HEIC needs the extra: pip install 'airflow-provider-wan[heif]'"
    if fmt == "AVIF" and not features.check("avif"):
        return "AVIF needs Pillow 11.3 or later, built with AVIF support"
    return None


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one error that names the image."""
    try:
        yield
    except WanInputError:
        raise
    except _DECODE_ERRORS as error:
        raise WanInputError(
            f"{name}: the file is truncated or damaged, it cannot be decoded ({str(error) or type(error).__name__}). "
            f"Upload it again, whole."
        ) from error


def open_image(file: IO[bytes], facts: ImageFacts) -> ImageFile.ImageFile:
    """Open an image, not yet decoded, with the decoder of its format.

    :raises WanInputError: the decoder is not installed, or finds another size than the header says.
    """
    if missing := missing_decoder(facts.format):
        raise WanInputError(f"{facts.name}: {missing}.")
    module, class_name = _DECODERS[facts.format]
    factory: Callable[[IO[bytes]], ImageFile.ImageFile] = getattr(importlib.import_module(module), class_name)
    image = factory(file)
    expected = facts.width, facts.height
    turned = expected[::-1] if facts.format in DECODED_UPRIGHT and facts.orientation >= 5 else expected
    if image.size not in (expected, turned):
        raise WanInputError(
            f"{facts.name}: its header says {expected[0]}x{expected[1]} px and its content "
            f"{image.size[0]}x{image.size[1]} px; the file is damaged."
        )
    return image


def check_decodes(data: bytes, facts: ImageFacts) -> None:
    """Decode an image once, as cheaply as its format allows, to be sure that it is whole.

    :raises WanInputError: it is not.
    """
    with decoding(facts.name), open_image(io.BytesIO(data), facts) as image:
        if facts.format == "JPEG":
            image.draft(image.mode, (facts.width // 8, facts.height // 8))
        image.load()


def encode(image: Image.Image, fmt: str, **options: Any) -> bytes:
    """Write an image; only pixels are written as long as its ``info`` is empty.

    :param options: Pillow's, for the format.
    """
    with _scratch_file() as file:
        image.save(file, fmt, **options)
        file.seek(0)
        return file.read()


def _scratch_file() -> IO[bytes]:
    """Give a file in memory that has a file descriptor, where the system has such files.

    Pillow keeps the interpreter lock while it encodes into a Python object, and lets go of it while it encodes JPEG
    into a file descriptor: other threads then go on.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("image"), "w+b")
    return io.BytesIO()
