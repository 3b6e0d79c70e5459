# SPDX-License-Identifier: Apache-2.0
"""Find private metadata in an image file, and remove it without touching the pixels.

Decoding and encoding again would lose quality for the sake of a GPS tag; the tag's segment can be left out instead.
The same walk over segments or chunks names private metadata in a header and decides which parts of a file are removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

_TAIL = "data behind the picture"
_STRAY = "stray bytes between segments"


@dataclass(frozen=True, slots=True)
class Part:
    """One segment or chunk.

    :param kind: marker or chunk type.
    :param data: all its bytes.
    :param end: where it ends in the file.
    :param private: names of what it holds that should not be published; empty for what the picture needs.
    """

    kind: bytes
    data: bytes
    end: int
    private: tuple[str, ...] = ()


def private_parts(head: bytes, fmt: str) -> tuple[str, ...]:
    """Return the names of private metadata in the start of a file, or in all of it.

    :param fmt: ``JPEG``, ``PNG`` or ``WEBP``; nothing is found in any other.
    """
    walk = _WALKS.get(fmt)
    names = [name for part in walk(head) for name in part.private] if walk else []
    return tuple(dict.fromkeys(names))


def part_kinds(head: bytes, fmt: str) -> list[bytes]:
    """Return the markers or chunk types in the start of a JPEG, PNG or WEBP file."""
    return [part.kind for part in _WALKS[fmt](head)]


def jpeg_frame(head: bytes) -> int:
    """Return the second byte of the JPEG frame marker (SOF0 to SOF15), 0 if it has no such marker."""
    return next((kind[1] for kind in part_kinds(head, "JPEG") if kind[1:] in _FRAMES), 0)


def strip_metadata(data: bytes, *, fmt: str) -> tuple[bytes, tuple[str, ...]] | None:
    """Return the file without private metadata, and the names of the removed parts.

    A file without private metadata is returned unchanged. What the pixels need (ICC profile, colour transform,
    resolution) stays. Pictures and videos that phones append behind the picture are removed too.

    :param fmt: ``JPEG``, ``PNG`` or ``WEBP``; nothing is removed from any other.
    :return: None if the file's structure is incomplete: only decoding and encoding can fix that.
    """
    if fmt not in _WALKS:
        return data, ()
    parts = list(_WALKS[fmt](data))
    removed = [name for part in parts for name in part.private]
    kept = [part for part in parts if not part.private]
    rebuilt = _REBUILDS[fmt](data, parts, kept)
    if rebuilt is None:
        return None
    stripped, tail = rebuilt
    if tail.strip(b"\0\r\n\t "):
        removed.append(_TAIL)
    return (stripped, tuple(dict.fromkeys(removed))) if removed else (data, ())


# -- EXIF ------------------------------------------------------------------------------------------------------------

_EXIF_PRIVATE = {
    0x8825: "GPS position",
    0x927C: "maker notes",
    0x02BC: "XMP",
    0x83BB: "IPTC",
    0x8649: "Photoshop resources",
}
#: Tags about the pixels only (sizes, strips, colour, resolution) or about the software that wrote them.
_EXIF_HARMLESS = frozenset(
    {*range(0x00FE, 0x010D), 0x0111, 0x0112, 0x0115, 0x0116, 0x0117, 0x0118, 0x0119, 0x011A, 0x011B, 0x011C}
    | {0x0122, 0x0123, 0x0124, 0x0125, 0x0128, 0x012D, 0x0131, 0x013D, 0x013E, 0x013F, 0x0140}
    | {*range(0x0142, 0x0146), 0x014A, 0x014C, 0x0152, 0x0153, 0x0154, 0x0155, 0x015B}
    | {*range(0x0200, 0x020A), 0x0211, 0x0212, 0x0213, 0x0214, ExifTags.IFD.Exif, 0x8773}
    | {0x9000, 0x9101, 0x9102, 0xA000, 0xA001, 0xA002, 0xA003, 0xA005, 0xA500}
)


def exif_orientation(exif: Image.Exif) -> int:
    """Return the orientation of an EXIF block, 1 if it has none."""
    value: Any = exif.get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def private_tags(exif: Image.Exif) -> tuple[str, ...]:
    """Return the names of private metadata in an EXIF block, or in the tags of a TIFF file."""
    tags = [*sorted(exif), *sorted(exif.get_ifd(ExifTags.IFD.Exif))]
    return tuple(dict.fromkeys(_EXIF_PRIVATE.get(t, "EXIF details") for t in tags if t not in _EXIF_HARMLESS))


def private_exif(block: bytes) -> tuple[str, ...]:
    """Return the names of private metadata in an EXIF block; a damaged block counts as private."""
    exif = Image.Exif()
    try:
        exif.load(block[6:] if block.startswith(b"Exif\0") else block)
        thumbnail = ("EXIF thumbnail",) if exif.get_ifd(ExifTags.IFD.IFD1) else ()
        return private_tags(exif) + thumbnail
    except Exception:  # Pillow raises errors of many kinds here
        return ("unreadable EXIF",)


# -- JPEG ------------------------------------------------------------------------------------------------------------

_SOS, _EOI = 0xDA, 0xD9
_FRAMES = {bytes((marker,)) for marker in range(0xC0, 0xD0)} - {b"\xc4", b"\xc8", b"\xcc"}
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
#: A marker within or behind coded pixels: not a stuffed zero, not a restart, not a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
#: (application marker, how its body starts, name of what it holds; None: nothing private)
_KNOWN_SEGMENTS: tuple[tuple[int, bytes, str | None], ...] = (
    (0xE0, b"JFIF\0", None),
    (0xE0, b"JFXX\0", "JFIF thumbnail"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0", "XMP"),
    (0xE1, b"http://ns.adobe.com/xmp/extension/\0", "XMP"),
    (0xE2, b"ICC_PROFILE\0", None),
    (0xE2, b"MPF\0", "further pictures (MPF)"),
    (0xEB, b"JP", "content credentials"),
    (0xEC, b"Ducky", None),
    (0xED, b"Photoshop 3.0\0", "Photoshop resources"),
    (0xEE, b"Adobe", None),
)
#: Comments that programs leave about themselves: nothing private, and common on the web.
_PROGRAM_COMMENT = re.compile(
    rb"(CREATOR: gd-jpeg|Lavc\d|cmp3\.|Created with (The )?GIMP|LEAD Technologies|Compressed by|Optimized by"
    rb"|File written by Adobe|AppleMark|Intel\(R\)|ImageMagick|JPEG Encoder Copyright|Paint\.NET|Handbrake)"
)


def _jpeg_parts(data: bytes) -> Iterator[Part]:
    """Yield the segments from after SOI to the first SOS; stray bytes, which decoders skip, are parts too."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0:
            found = data.find(b"\xff", at + 1)
            end = len(data) if found < 0 else found
            yield Part(b"", data[at:end], end, (_STRAY,))
        elif marker == 0xFF:  # a fill byte
            end = at + 1
        elif marker in _STANDALONE:
            end = at + 2
        elif marker == _EOI:
            return
        else:
            end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
            segment = data[at:end]
            yield Part(segment[:2], segment, end, _private_segment(marker, segment[4:]))
            if marker == _SOS:
                return
        at = end


def _private_segment(marker: int, body: bytes) -> tuple[str, ...]:
    if marker == 0xFE:
        return () if _PROGRAM_COMMENT.match(body) else ("comment",)
    if not 0xE0 <= marker <= 0xEF:
        return ()
    if marker == 0xE1 and body.startswith(b"Exif\0"):
        return private_exif(body)
    for known, start, name in _KNOWN_SEGMENTS:
        if marker == known and body.startswith(start):
            return () if name is None else (name,)
    return (f"APP{marker - 0xE0} data",)


def _rebuild_jpeg(data: bytes, parts: list[Part], kept: list[Part]) -> tuple[bytes, bytes] | None:
    if not parts or parts[-1].kind != b"\xff\xda":
        return None
    start = parts[-1].end
    end = _jpeg_end(data, start)
    if end is None:
        return None
    return b"".join([data[:2], *(part.data for part in kept), data[start:end]]), data[end:]


def _jpeg_end(data: bytes, at: int) -> int | None:
    """Return where the picture ends: after its own EOI, past all scans of a progressive image."""
    while match := _JPEG_MARKER.search(data, at):
        at = match.start()
        if data[at + 1] == _EOI:
            return at + 2
        at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
    return None


# -- PNG -------------------------------------------------------------------------------------------------------------

#: Chunks that are needed to show the pixels correctly.
_PNG_PIXELS = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD hIST pHYs sPLT cICP mDCV cLLI acTL fcTL fdAT".split()
)
#: Not private, and useless once other chunks are removed.
_PNG_HARMLESS = frozenset((b"iDOT", b"tIME", b"oFFs", b"vpAg"))
_PNG_PRIVATE = {b"tEXt": "text", b"zTXt": "text", b"iTXt": "text", b"caBX": "content credentials"}


def _png_parts(data: bytes) -> Iterator[Part]:
    """Yield the chunks, IEND last."""
    at = 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunk = data[at:end]
        kind = chunk[4:8]
        yield Part(kind, chunk, end, _private_chunk(kind, chunk[8:-4]))
        if kind == b"IEND":
            return
        at = end


def _private_chunk(kind: bytes, body: bytes) -> tuple[str, ...]:
    if kind in _PNG_PIXELS or kind in _PNG_HARMLESS:
        return ()
    if kind == b"eXIf":
        return private_exif(body)
    if kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
        return ("XMP",)
    if kind in (b"tEXt", b"zTXt", b"iTXt") and body.startswith(b"Software\0"):
        return ()
    return (_PNG_PRIVATE.get(kind, f"{kind.decode('ascii', 'replace')} data"),)


def _rebuild_png(data: bytes, parts: list[Part], kept: list[Part]) -> tuple[bytes, bytes] | None:
    if not parts or parts[-1].kind != b"IEND" or len(parts[-1].data) != 12:
        return None
    return b"".join([data[:8], *(part.data for part in kept if part.kind in _PNG_PIXELS)]), data[parts[-1].end :]


# -- WEBP ------------------------------------------------------------------------------------------------------------

_WEBP_PIXELS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
_VP8X_EXIF, _VP8X_XMP = 0x08, 0x04


def _webp_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _webp_parts(data: bytes) -> Iterator[Part]:
    """Yield the RIFF chunks, each padded to an even length."""
    at, container_end = 12, min(_webp_end(data), len(data))
    while at + 8 <= container_end:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        chunk = data[at:end]
        kind = chunk[:4]
        yield Part(kind, chunk + b"\0" * (len(chunk) % 2), end, _private_riff(kind, chunk[8:]))
        at = end + end % 2


def _private_riff(kind: bytes, body: bytes) -> tuple[str, ...]:
    if kind in _WEBP_PIXELS:
        return ()
    if kind == b"EXIF":
        return private_exif(body)
    return ("XMP" if kind == b"XMP " else f"{kind.decode('ascii', 'replace').strip()} data",)


def _rebuild_webp(data: bytes, parts: list[Part], kept: list[Part]) -> tuple[bytes, bytes]:
    content = b"WEBP"
    for part in kept:
        if part.kind == b"VP8X":
            flags = part.data[8] & ~(_VP8X_XMP | _VP8X_EXIF)
            content += part.data[:8] + bytes((flags,)) + part.data[9:]
        elif part.kind != b"EXIF":
            content += part.data
    return b"RIFF" + len(content).to_bytes(4, "little") + content, data[_webp_end(data) :]


_WALKS: dict[str, Callable[[bytes], Iterator[Part]]] = {
    "JPEG": _jpeg_parts,
    "PNG": _png_parts,
    "WEBP": _webp_parts,
}
_REBUILDS: dict[str, Callable[[bytes, list[Part], list[Part]], tuple[bytes, bytes] | None]] = {
    "JPEG": _rebuild_jpeg,
    "PNG": _rebuild_png,
    "WEBP": _rebuild_webp,
}
