# SPDX-License-Identifier: Apache-2.0
"""Tell what an image is from its header, without reading or decoding the rest."""

from __future__ import annotations

import os
from collections.abc import Callable

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images import sniff
from airflow_provider_wan.images.facts import HeaderFacts, ImageFacts
from airflow_provider_wan.images.headers.bitmap import read_bmp, read_gif
from airflow_provider_wan.images.headers.isobmff import read_isobmff
from airflow_provider_wan.images.headers.jpeg import read_jpeg
from airflow_provider_wan.images.headers.png import read_png
from airflow_provider_wan.images.headers.tiff import read_tiff
from airflow_provider_wan.images.headers.webp import read_webp
from airflow_provider_wan.images.readers import BytesReader, FileReader, RangedReader, Window, shown_name

ImageSource = bytes | str | os.PathLike[str] | RangedReader

#: A side of this many pixels or more is refused by the header alone, whatever the file.
MAX_SIDE_PX = 30_000
#: Pixels that may be decoded; 100 million take 400 MB in memory.
MAX_PIXELS = 100_000_000
#: Baseline JPEG is decoded at a half, a quarter or an eighth, so a 200-megapixel phone photograph is no danger.
MAX_PIXELS_SCALED = 250_000_000

_PARSERS: dict[str, Callable[[Window], HeaderFacts]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "BMP": read_bmp,
    "GIF": read_gif,
    "TIFF": read_tiff,
    "HEIF": read_isobmff,
    "AVIF": read_isobmff,
}


def inspect(source: ImageSource, *, name: str | None = None, size_bytes: int | None = None) -> ImageFacts:
    """Tell format, size, mode, orientation and metadata of an image from its header.

    Of a far file at most 64 KiB are read for an ordinary image (16 KiB for most), and never more than 1 MiB.

    :param source: the bytes, a path, or a ranged reader.
    :param name: how messages call the image; default the path, else ``"image"``. The query of an address, which
        may hold a signature, is left out.
    :param size_bytes: size of the file where it is known from elsewhere, such as a bucket's listing.
    :raises WanInputError: not an image (the message says what it looks like), cut off, damaged, or larger than
        anything that is decoded here.
    """
    reader, shown = open_source(source, name=name)
    window = Window(reader, name=shown, size_bytes=size_bytes)
    head = window.peek(0, sniff.SNIFF_BYTES)
    found = sniff.format_of(head)
    if found is None:
        raise _not_an_image(shown, head)
    try:
        header = _PARSERS[found](window)
    except IndexError:  # a box or field shorter than its kind must be
        raise WanInputError(f"{shown}: its {found} header is damaged. Save it again.") from None
    facts = ImageFacts(
        name=shown,
        format=found,
        width=header.width,
        height=header.height,
        mode=header.mode,
        bits=header.bits,
        has_alpha=header.has_alpha,
        orientation=header.orientation,
        is_animated=header.is_animated,
        size_bytes=window.size_bytes,
        private=header.private,
        has_icc=header.has_icc,
        lossless=header.lossless,
        notes=_notes(shown, found),
    )
    _refuse_bombs(facts, most_pixels=MAX_PIXELS_SCALED if header.scales_down else MAX_PIXELS)
    return facts


def open_source(source: ImageSource, *, name: str | None = None) -> tuple[RangedReader, str]:
    """Return a reader for a source, and the name that messages call it by."""
    if isinstance(source, bytes | bytearray | memoryview):
        return BytesReader(bytes(source)), shown_name(name or "image")
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not os.path.isfile(path):
            raise WanInputError(f"{name or path}: there is no such file.")
        return FileReader(path), shown_name(name or path)
    return source, shown_name(name or "image")


def _not_an_image(name: str, head: bytes) -> WanInputError:
    what = sniff.looks_like(head)
    claimed = sniff.format_of_suffix(name)
    suffix = f", in spite of its name that says {claimed}" if claimed and head else ""
    return WanInputError(
        f"{name} is not an image that can be used: it looks like {what}{suffix}. "
        f"Images are JPEG, PNG, BMP, WEBP, GIF, TIFF, HEIC or AVIF."
    )


def _notes(name: str, found: str) -> tuple[str, ...]:
    claimed = sniff.format_of_suffix(name)
    return (f"named as {claimed}, and is {found}",) if claimed and claimed != found else ()


def _refuse_bombs(facts: ImageFacts, *, most_pixels: int) -> None:
    if facts.width < 1 or facts.height < 1:
        raise WanInputError(
            f"{facts.name}: its header says {facts.width}x{facts.height} px; the file is damaged."
        )
    if max(facts.width, facts.height) >= MAX_SIDE_PX or facts.width * facts.height > most_pixels:
        raise WanInputError(
            f"{facts.name}: {facts.width:,}x{facts.height:,} px is more than is ever decoded here (each side under "
            f"{MAX_SIDE_PX:,} px, at most {most_pixels // 1_000_000} megapixels). Scale it down first."
        )
