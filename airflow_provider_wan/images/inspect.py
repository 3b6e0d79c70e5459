# SPDX-License-Identifier: Apache-2.0
"""Inspect an image by its header, with Pillow, without decoding it.

Of JPEG, PNG, BMP, GIF and TIFF only the header is read;
Pillow (or libheif) needs the whole file of WEBP, AVIF and HEIC.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images import codecs
from airflow_provider_wan.images.readers import MAX_SOURCE_BYTES, ImageReader, RangedFile, shown_name
from airflow_provider_wan.images.strip import (
    exif_orientation,
    jpeg_frame,
    part_kinds,
    private_parts,
    private_tags,
)

#: Read in one request: it holds the whole header of most images.
BLOCK_BYTES = 16 * 1024
#: Headers of phone photographs hold a few hundred KB (profiles, depth maps); a longer one is hostile or broken.
MAX_HEADER_BYTES = 16 * 1024 * 1024
#: Read in one request if a header continues after the first block.
_NEXT_BLOCK_BYTES = 64 * 1024
_WHOLE = frozenset(("WEBP", "AVIF", "HEIF"))
_LOSSLESS_FRAMES = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
#: A progressive picture is held whole, as coefficients, until its last scan.
_SEQUENTIAL_FRAMES = frozenset((0xC0, 0xC1))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as its header describes it.

    :param name: how messages call it; an address without its query.
    :param format: Pillow's name of the format, by content and not by suffix: ``JPEG``, ``PNG``, ``HEIF``...
    :param width: stored width in px; see ``displayed_width`` for the width that a viewer shows.
    :param mode: Pillow's word for how pixels are stored (``RGB``, ``RGBA``, ``P``, ``L``, ``CMYK``, ``I;16``).
    :param bits: bits a channel.
    :param orientation: EXIF orientation, 1 (upright) to 8.
    :param is_animated: whether the header announces more than one frame.
    :param size_bytes: size of the file, None if unknown.
    :param private: names of metadata that :func:`~airflow_provider_wan.images.prepare.prepare` removes, as far as it
        precedes the pixels, such as ``"GPS position"``.
    :param lossless: whether the pixels were stored without loss.
    :param scales_down: whether the decoder can return a smaller picture without holding the whole one.
    :param notes: remarks that need no action, such as a suffix that does not agree with the content.
    """

    name: str
    format: str
    width: int
    height: int
    mode: str
    bits: int
    has_alpha: bool
    orientation: int
    is_animated: bool
    size_bytes: int | None
    private: tuple[str, ...]
    lossless: bool
    scales_down: bool = False
    notes: tuple[str, ...] = ()

    @property
    def displayed_width(self) -> int:
        """Width in px after the EXIF orientation is applied."""
        return self.height if self.orientation >= 5 else self.width

    @property
    def displayed_height(self) -> int:
        """Height in px after the EXIF orientation is applied."""
        return self.width if self.orientation >= 5 else self.height


def inspect(source: bytes | ImageReader, *, name: str | None = None) -> ImageFacts:
    """Return format, size, mode, orientation and metadata of an image from its header.

    :param source: the bytes, or a reader, which is closed.
    :param name: how messages call the image; default its address, else ``"image"``. The query of an address, which
        may hold a signature, is left out.
    :raises WanInputError: not an image (the message says what it looks like), cut off, damaged, or larger than
        anything that is decoded here.
    :raises WanDownloadError: it cannot be read now, or may not be.
    """
    if isinstance(source, bytes):
        name = shown_name(name or "image")
        file = _HeaderFile(lambda start, length: source[start : start + length], lambda: len(source), name)
        return _inspect(file, name, source)
    name = shown_name(name or source.address)
    try:
        return _inspect(_HeaderFile(source.read, lambda: source.size_bytes, name), name)
    finally:
        source.close()


def check_whole(data: bytes, facts: ImageFacts) -> None:
    """Decode an image once, as cheaply as its format allows, to be sure that it is whole.

    Preparation and submit both use this check.

    :raises UnusableImageError: it is cut off or damaged.
    """
    name, fmt = facts.name, facts.format
    with codecs.decoding(name, fmt), codecs.open_image(io.BytesIO(data), fmt, name) as image:
        if facts.format == "JPEG":
            image.draft(image.mode, (max(facts.width // 8, 1), max(facts.height // 8, 1)))
        image.load()


def _inspect(file: _HeaderFile, name: str, whole: bytes | None = None) -> ImageFacts:
    opened = io.BufferedReader(file, BLOCK_BYTES)
    head = opened.peek(codecs.SNIFF_BYTES)[: codecs.SNIFF_BYTES]
    found = codecs.format_of(head)
    if found is None:
        raise codecs.not_an_image(name, head)
    if found in _WHOLE:
        file.limit_bytes = MAX_SOURCE_BYTES
    with codecs.decoding(name, found, doing="opened"):
        if found == "TIFF":
            _refuse_camera_raw(opened, name)
        image = codecs.open_image(opened, found, name)
        facts = _facts(image, found, whole or bytes(file.head), name, file.size_bytes)
    _refuse_bomb(facts)
    return facts


class _HeaderFile(RangedFile):
    """Reads an image for Pillow, keeps its start, and stops at a limit.

    Pillow reads a header in order, so the kept start can be inspected again without a second read.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: Callable[[], int | None], name: str) -> None:
        super().__init__(self._read_or_kept, size)
        self._fetch = read_range
        self._name = name
        self._read_bytes = 0
        self.head = bytearray()
        self.limit_bytes = MAX_HEADER_BYTES

    @property
    def size_bytes(self) -> int | None:
        """The size of the file, if known."""
        return self._size()

    def _read_or_kept(self, start: int, length: int) -> bytes:
        if kept := self.head[start : start + length]:
            return bytes(kept)
        continues = start == len(self.head) > 0
        data = self._fetch(start, max(length, _NEXT_BLOCK_BYTES if continues else 0))
        self._read_bytes += len(data)
        if self._read_bytes > self.limit_bytes:
            raise WanInputError(
                f"{self._name}: its header is longer than {self.limit_bytes:,} bytes, which no ordinary image needs. "
                "Save it again as JPEG or PNG."
            )
        if start == len(self.head):
            self.head += data
        return data[:length]


def _facts(image: ImageFile.ImageFile, fmt: str, head: bytes, name: str, size_bytes: int | None) -> ImageFacts:
    width, height = image.size
    bits, lossless, sequential = 8, fmt in ("PNG", "BMP", "GIF"), False
    exif = _own_exif(image)
    orientation = exif_orientation(exif)
    if fmt == "JPEG":
        frame = jpeg_frame(head)
        lossless, sequential = frame in _LOSSLESS_FRAMES, frame in _SEQUENTIAL_FRAMES
        bits = getattr(image, "bits", 8)
    elif fmt == "PNG":
        bits = head[24]
    elif fmt == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        width, height = int(tags[0x0100]), int(tags[0x0101])  # image.size may be turned upright already
        bits = max(_as_tuple(tags.get(0x0102, 1)))
        lossless = tags.get(0x0103, 1) not in (6, 7)
    elif fmt == "HEIF":
        bits, orientation = int(image.info.get("bit_depth", 8)), 1  # libheif applies rotation and crop
    elif fmt == "WEBP":
        lossless = b"VP8L" in part_kinds(head, fmt)
    return ImageFacts(
        name=name,
        format=fmt,
        width=width,
        height=height,
        mode=image.mode,
        bits=bits,
        has_alpha=image.has_transparency_data,
        orientation=orientation,
        is_animated=_is_animated(image, fmt),
        size_bytes=size_bytes,
        private=_private(image, fmt, head, exif),
        lossless=lossless,
        scales_down=sequential,
        notes=_notes(name, fmt, image, orientation),
    )


def _refuse_camera_raw(file: IO[bytes], name: str) -> None:
    """Refuse a DNG, and a TIFF whose first picture is a thumbnail with sub-images: Pillow cannot open most of them."""
    head = file.read(8)
    if head[2:3] != b"\x2b" and head[3:4] != b"\x2b":  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        if 0xC612 in tags or (tags.get(0x00FE, 0) & 1 and 0x014A in tags):
            raise WanInputError(f"{name} looks like a camera raw file. Export it as JPEG or PNG first.")
    file.seek(0)


def _own_exif(image: ImageFile.ImageFile) -> Image.Exif:
    """Return the EXIF block alone: Pillow's ``getexif`` adds an orientation from XMP and from raw profiles."""
    exif = Image.Exif()
    with suppress(Exception):  # Pillow raises errors of many kinds; viewers show an image with a damaged block upright
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # its tags are its EXIF
            exif = image.getexif()
            exif[ExifTags.Base.Orientation] = image.tag_v2.get(ExifTags.Base.Orientation, 1)
        elif block := image.info.get("exif"):
            exif.load(block)
    return exif


def _is_animated(image: Image.Image, fmt: str) -> bool:
    if fmt == "JPEG":
        return False
    if fmt == "GIF":  # Pillow would read up to the second frame to know
        return "loop" in image.info
    return bool(getattr(image, "is_animated", False))


def _private(image: Image.Image, fmt: str, head: bytes, exif: Image.Exif) -> tuple[str, ...]:
    """Return the names of metadata that should not be published."""
    if fmt in ("JPEG", "PNG", "WEBP"):
        return private_parts(head, fmt)
    names: list[str] = []
    with suppress(Exception):  # a damaged EXIF block
        names += private_tags(exif)
    if fmt != "TIFF":
        names += ["comment"] if "comment" in image.info else []
        names += ["XMP"] if image.info.get("xmp") else []
    return tuple(dict.fromkeys(names))


def _notes(name: str, fmt: str, image: Image.Image, orientation: int) -> tuple[str, ...]:
    notes: list[str] = []
    claimed = codecs.format_of_suffix(name)
    if claimed and claimed != fmt:
        notes.append(f"named as {claimed}, and is {fmt}")
    if orientation == 1 and fmt not in codecs.DECODED_UPRIGHT:
        with suppress(Exception):  # a damaged profile
            elsewhere = exif_orientation(Image.Image.getexif(image))  # that of PNG would decode the image
            if elsewhere != 1:
                place = "a raw EXIF profile" if "Raw profile type exif" in image.info else "XMP"
                notes.append(
                    f"orientation {elsewhere} is given by {place} only and not applied: most viewers show the image "
                    "as it is stored"
                )
    return tuple(notes)


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def _refuse_bomb(facts: ImageFacts) -> None:
    most = codecs.MAX_PIXELS_SCALED if facts.scales_down else codecs.MAX_PIXELS
    if facts.width < 1 or facts.height < 1:
        raise WanInputError(f"{facts.name}: its header says {facts.width}x{facts.height} px; the file is damaged.")
    if max(facts.width, facts.height) >= codecs.MAX_SIDE_PX or facts.width * facts.height > most:
        raise WanInputError(
            f"{facts.name}: {facts.width:,}x{facts.height:,} px is more than is ever decoded here (each side under "
            f"{codecs.MAX_SIDE_PX:,} px, at most {most // 1_000_000} megapixels). Scale it down first."
        )
