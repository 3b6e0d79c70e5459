# SPDX-License-Identifier: Apache-2.0
"""Inspect an image by its header, with Pillow, without decoding it.

Of JPEG, PNG, BMP, GIF and TIFF only the header is read;
Pillow (or libheif) needs the whole file of WEBP, AVIF and HEIC.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import suppress
from typing import IO, Any, cast

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images import codecs
from airflow_provider_wan.images.facts import ImageFacts
from airflow_provider_wan.images.readers import BLOCK_BYTES, MAX_SOURCE_BYTES, shown_name
from airflow_provider_wan.images.strip import exif_orientation, jpeg_frame, private_parts, private_tags

Source = bytes | str | os.PathLike[str] | IO[bytes]

#: Headers of phone photographs hold a few hundred KB (profiles, depth maps); a longer one is hostile or broken.
MAX_HEADER_BYTES = 16 * 1024 * 1024
#: Read in one request if a header continues after the first block.
_NEXT_BLOCK_BYTES = 64 * 1024
_WHOLE = frozenset(("WEBP", "AVIF", "HEIF"))
_LOSSLESS_FRAMES = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
#: A progressive picture is held whole, as coefficients, until its last scan.
_SEQUENTIAL_FRAMES = frozenset((0xC0, 0xC1))


def inspect(source: Source, *, name: str | None = None, size_bytes: int | None = None) -> ImageFacts:
    """Return format, size, mode, orientation and metadata of an image from its header.

    :param source: the bytes, a path, or a seekable file; its errors must be this provider's own.
    :param name: how messages call the image; default the path, else ``"image"``. The query of an address, which
        may hold a signature, is left out.
    :param size_bytes: size of the file, if known from elsewhere, such as a bucket's listing.
    :raises WanInputError: not an image (the message says what it looks like), cut off, damaged, or larger than
        anything that is decoded here.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _inspect(io.BytesIO(source), shown_name(name or "image"), len(source), bytes(source))
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not os.path.isfile(path):
            raise WanInputError(f"{name or path}: there is no such file.")
        with open(path, "rb") as file:
            return _inspect(file, shown_name(name or path), os.path.getsize(path))
    return _inspect(source, shown_name(name or "image"), size_bytes)


def _inspect(file: IO[bytes], name: str, size_bytes: int | None, whole: bytes | None = None) -> ImageFacts:
    header = _HeaderFile(file, name)
    buffered = io.BufferedReader(header, BLOCK_BYTES)
    head = buffered.peek(SNIFF_BYTES)[:SNIFF_BYTES]
    opened = cast(IO[bytes], buffered)
    found = format_of(head)
    if found is None:
        raise _not_an_image(name, head)
    if found in _WHOLE:
        header.limit_bytes = MAX_SOURCE_BYTES
    with codecs.decoding(name, found, doing="opened"):
        if found == "TIFF":
            _refuse_camera_raw(opened, name)
        image = codecs.open_file(opened, found, name)
        if size_bytes is None:
            size_bytes = getattr(file, "size_bytes", None)
        facts = _facts(image, found, whole or bytes(header.head), name, size_bytes)
    _refuse_bomb(facts)
    return facts


class _HeaderFile(io.RawIOBase):
    """Reads a file for Pillow, keeps its start, and stops at a limit.

    Pillow reads a header in order, so the kept start can be inspected again without a second read.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._at = 0
        self._read = 0
        self.head = bytearray()
        self.limit_bytes = MAX_HEADER_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._at = self._file.seek(offset, io.SEEK_END)
        else:
            self._at = max(offset + (self._at if whence == io.SEEK_CUR else 0), 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = bytes(self.head[self._at : self._at + len(buffer)])
        if not data:
            goes_on = self._at == len(self.head) > 0
            self._file.seek(self._at)
            data = self._count(self._file.read(max(len(buffer), _NEXT_BLOCK_BYTES if goes_on else 0)))
            data = data[: len(buffer)]
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        kept = bytes(self.head[self._at :])
        self._file.seek(self._at + len(kept))
        self._at += len(kept)
        rest = self._count(self._file.read())
        self._at += len(rest)
        return kept + rest

    def _count(self, data: bytes | None) -> bytes:
        data = data or b""
        self._read += len(data)
        if self._read > self.limit_bytes:
            raise WanInputError(
                f"{self._name}: its header is longer than {self.limit_bytes:,} bytes, which no ordinary image needs. "
                "Save it again as JPEG or PNG."
            )
        if self._file.tell() - len(data) == len(self.head):
            self.head += data
        return data


def _facts(
    image: ImageFile.ImageFile, fmt: str, head: bytes, name: str, size_bytes: int | None
) -> ImageFacts:
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
        lossless = b"VP8L" in (head[12:16], *_riff_kinds(head))
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
        has_icc="icc_profile" in image.info,
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
    with suppress(
        Exception
    ):  # Pillow raises errors of many kinds; viewers show an image with a damaged block upright
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
    claimed = format_of_suffix(name)
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


def _riff_kinds(head: bytes) -> list[bytes]:
    kinds, at = [], 12
    while at + 8 <= len(head):
        kinds.append(head[at : at + 4])
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return kinds


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def _refuse_bomb(facts: ImageFacts) -> None:
    most = codecs.MAX_PIXELS_SCALED if facts.scales_down else codecs.MAX_PIXELS
    if facts.width < 1 or facts.height < 1:
        raise WanInputError(
            f"{facts.name}: its header says {facts.width}x{facts.height} px; the file is damaged."
        )
    if max(facts.width, facts.height) >= codecs.MAX_SIDE_PX or facts.width * facts.height > most:
        raise WanInputError(
            f"{facts.name}: {facts.width:,}x{facts.height:,} px is more than is ever decoded here (each side under "
            f"{codecs.MAX_SIDE_PX:,} px, at most {most // 1_000_000} megapixels). Scale it down first."
        )


# -- which format a file is ------------------------------------------------------------------------------------------

#: Bytes that the decision needs.
SNIFF_BYTES = 512

_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)

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
    "svg",
    "pdf",
    "jp2",
    "j2k",
    "jxl",
    "dng",
    "cr2",
    "cr3",
    "nef",
    "arw",
    "psd",
    "eps",
    "ico",
    "tga",
)


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


def _not_an_image(name: str, head: bytes) -> WanInputError:
    claimed = format_of_suffix(name)
    suffix = f", in spite of its name that says {claimed}" if claimed and head else ""
    return WanInputError(
        f"{name} is not an image that can be used: it looks like {looks_like(head)}{suffix}. "
        f"Images are JPEG, PNG, BMP, WEBP, GIF, TIFF, HEIC or AVIF."
    )
