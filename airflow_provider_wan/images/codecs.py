# SPDX-License-Identifier: Apache-2.0
"""Open, decode and encode images with one named Pillow decoder or encoder each.

``Image.open`` tries every installed decoder. Naming the decoder keeps the others away from untrusted files.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image, ImageFile, features

from airflow_provider_wan.exceptions import WanError, WanInputError

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


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One rule that an image breaks.

    :param rule: the rule's name in the model's schema file (``formats``, ``alpha``, ``min_side_px``, ``max_side_px``,
        ``min_aspect``, ``max_aspect``, ``max_size_bytes_exclusive``), or ``decodable``.
    :param value: what the image has.
    :param limit: what the rule allows.
    :param message: value and limit in a sentence, without the image's name.
    :param fixable: whether :func:`~airflow_provider_wan.images.prepare.prepare` can fix it.
    """

    rule: str
    value: str | float | None
    limit: str | float | None
    message: str
    fixable: bool


class UnusableImageError(WanInputError):
    """An image that a model would refuse, or that cannot be decoded.

    :param broken: every rule that it breaks.
    """

    def __init__(self, message: str, broken: tuple[BrokenRule, ...]) -> None:
        super().__init__(message)
        self.broken = broken


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
        raise UnusableImageError(message, (BrokenRule("decodable", fmt, None, message, fixable=False),)) from error


def open_image(file: IO[bytes], fmt: str, name: str) -> ImageFile.ImageFile:
    """Open an image, not yet decoded, with the decoder of its format.

    :raises UnusableImageError: the decoder is not installed.
    """
    if missing := missing_decoder(fmt):
        broken = BrokenRule("formats", fmt, None, f"it is {fmt} ({missing})", fixable=False)
        raise UnusableImageError(f"{name}: {missing}. Nothing was bought.", (broken,))
    module, class_name = _DECODERS[fmt]
    factory: Callable[[IO[bytes]], ImageFile.ImageFile] = getattr(importlib.import_module(module), class_name)
    return factory(file)


def encode(image: Image.Image, fmt: str, **options: Any) -> bytes:
    """Encode an image, with Pillow's options for the format; with an empty ``info`` only its pixels are written."""
    # Pillow keeps the interpreter lock while it encodes into a Python object, and releases it while it encodes JPEG
    # into a file descriptor, so other threads continue.
    has_memory_files = hasattr(os, "memfd_create")
    with os.fdopen(os.memfd_create("image"), "w+b") if has_memory_files else io.BytesIO() as file:
        image.save(file, fmt, **options)
        file.seek(0)
        return file.read()


# -- which format a file is ------------------------------------------------------------------------------------------

#: Bytes that the decision needs.
SNIFF_BYTES = 512

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))

_BMP_HEADER_SIZES = frozenset(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))

_LOOKS_LIKE = (
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive (or an Office document)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
    (b"FUJIFILM", "a camera raw file"),
    (b"IIU\x00", "a camera raw file"),
    (b"\x00\x05\x16\x07", "a macOS companion file (AppleDouble), not the image itself"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"RIFF", "an AVI or WAV file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)

#: The suffixes of images that can be used or made usable.
SUFFIXES = {
    "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "mpo": "JPEG", "png": "PNG", "apng": "PNG",
    "bmp": "BMP", "dib": "BMP", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "heic": "HEIF",
    "heif": "HEIF", "hif": "HEIF", "avif": "AVIF",
}  # fmt: skip
#: Suffixes of files commonly taken for images: refused by name instead of silently left out.
UNUSABLE_SUFFIXES = (
    "svg", "pdf", "jp2", "j2k", "jxl", "dng", "cr2", "cr3", "nef", "arw", "psd", "eps", "ico", "tga",
)  # fmt: skip


def format_of(head: bytes) -> str | None:
    """Return Pillow's name of the format that these first bytes announce, None if it is not a supported image."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and head[14:18] in _BMP_HEADER_SIZES:
        return "BMP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) and head[8:10] != b"CR":
        return "TIFF"
    return _isobmff_format(head)


def _isobmff_format(head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return None
    size = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def looks_like(head: bytes) -> str:
    """Return what a file that is not an image looks like, for a message: ``"an HTML page"``."""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file of zero bytes only"
    for magic, words in _LOOKS_LIKE:
        if head.startswith(magic):
            return words
    if head.startswith((b"II", b"MM")) and head[8:10] == b"CR":
        return "a camera raw file"
    if head[4:8] == b"ftyp":
        return "an MP4 or QuickTime video"
    return _text_like(head)


def _text_like(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.search(rb"<svg[\s>]", text):
        return "an SVG drawing"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "an HTML page (often a login or error page)"
    if text.startswith(b"<"):
        return "an XML document (often a bucket's error answer)"
    if text.startswith((b"{", b"[")):
        return "a JSON document (often an error answer)"
    printable = sum(byte >= 0x20 or byte in b"\t\n\r" for byte in head)
    return "plain text" if printable == len(head) and head.isascii() else "unknown binary data"


def format_of_suffix(name: str) -> str | None:
    """Return the format that a file's suffix claims, None without a known suffix."""
    stem, dot, suffix = name.rpartition(".")
    return SUFFIXES.get(suffix.lower()) if dot and stem else None


def not_an_image(name: str, head: bytes) -> WanInputError:
    """Return the error for a file that is not an image, saying what it looks like."""
    claimed = format_of_suffix(name)
    suffix = f", in spite of its name that says {claimed}" if claimed and head else ""
    return WanInputError(
        f"{name} is not an image that can be used: it looks like {looks_like(head)}{suffix}. "
        f"Images are JPEG, PNG, BMP, WEBP, GIF, TIFF, HEIC or AVIF."
    )
