# SPDX-License-Identifier: Apache-2.0
"""The header of a JPEG file: its segments up to the pixels, each looked at by its first bytes only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import HeaderFacts
from airflow_provider_wan.images.headers.tiff import read_exif
from airflow_provider_wan.images.readers import Window

_EOI, _SOS, _COM, _APP0 = 0xD9, 0xDA, 0xFE, 0xE0
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_FRAMES = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
#: A progressive picture is held whole, as coefficients, until its last scan.
_SEQUENTIAL_FRAMES = frozenset((0xC0, 0xC1))
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}

_EXIF = b"Exif\0"
_ICC = b"ICC_PROFILE\0"
#: (application marker, how its body starts, name of what it holds; None: nothing private)
_KNOWN_SEGMENTS: tuple[tuple[int, bytes, str | None], ...] = (
    (0xE0, b"JFIF\0", None),
    (0xE0, b"JFXX\0", "JFIF thumbnail"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0", "XMP"),
    (0xE1, b"http://ns.adobe.com/xmp/extension/\0", "XMP"),
    (0xE2, _ICC, None),
    (0xE2, b"MPF\0", "further pictures (MPF)"),
    (0xEB, b"JP", "content credentials"),
    (0xEC, b"Ducky", None),
    (0xED, b"Photoshop 3.0\0", "Photoshop resources"),
    (0xEE, b"Adobe", None),
)
#: Comments that programs leave about themselves: nothing private, and on a large part of the pictures on the web.
_PROGRAM_COMMENT = re.compile(
    rb"(CREATOR: gd-jpeg|Lavc\d|cmp3\.|Created with (The )?GIMP|LEAD Technologies|Compressed by|Optimized by"
    rb"|File written by Adobe|AppleMark|Intel\(R\)|ImageMagick|JPEG Encoder Copyright|Paint\.NET|Handbrake)"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """One marker segment: the marker's second byte, where it starts, and where its body starts and ends."""

    marker: int
    start: int
    body: int
    end: int


def segments(window: Window) -> Iterator[Segment]:
    """Go through the segments from after SOI to the first SOS (which is the last one given).

    :raises WanInputError: the file ends first, or is no row of segments.
    """
    at = 2
    while True:
        lead, marker = window.read(at, 2)
        if lead != 0xFF:
            raise WanInputError(f"{window.name}: its JPEG header is damaged at byte {at:,}. Save it again.")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        if marker == _EOI:
            raise WanInputError(f"{window.name}: the JPEG file has a header and no picture.")
        length = int.from_bytes(window.read(at + 2, 2), "big")
        if length < 2:
            raise WanInputError(f"{window.name}: its JPEG header is damaged at byte {at:,}. Save it again.")
        yield Segment(marker, at, at + 4, at + 2 + length)
        if marker == _SOS:
            return
        at += 2 + length


def private_of(window: Window, segment: Segment) -> tuple[str, ...]:
    """Return the names of what is private in a segment; nothing for those that the picture needs."""
    if segment.marker != _COM and not _APP0 <= segment.marker <= 0xEF:
        return ()
    head = window.peek(segment.body, min(48, segment.end - segment.body))
    if segment.marker == _COM:
        return () if _PROGRAM_COMMENT.match(head) else ("comment",)
    if _is_exif(segment, head):
        return read_exif(window, segment.body + 6).private
    for marker, start, name in _KNOWN_SEGMENTS:
        if segment.marker == marker and head.startswith(start):
            return () if name is None else (name,)
    return (f"APP{segment.marker - _APP0} data",)


def _is_exif(segment: Segment, head: bytes) -> bool:
    return segment.marker == 0xE1 and head.startswith(_EXIF)


def read_jpeg(window: Window) -> HeaderFacts:
    """Read size, mode, orientation and what is private."""
    private: list[str] = []
    orientation = 1
    has_icc = False
    frame: tuple[Segment, bytes] | None = None
    for segment in segments(window):
        private += private_of(window, segment)
        if segment.marker in _FRAME_MARKERS and frame is None:
            frame = segment, window.read(segment.body, 6)
        elif segment.marker == 0xE1 and _is_exif(segment, window.peek(segment.body, 6)):
            orientation = read_exif(window, segment.body + 6).orientation
        elif segment.marker == 0xE2 and window.peek(segment.body, len(_ICC)) == _ICC:
            has_icc = True
    if frame is None:
        raise WanInputError(
            f"{window.name}: the JPEG file has no frame header; it is damaged. Save it again."
        )
    return HeaderFacts(
        width=int.from_bytes(frame[1][3:5], "big"),
        height=int.from_bytes(frame[1][1:3], "big"),
        mode=_MODES.get(frame[1][5], "RGB"),
        bits=frame[1][0],
        orientation=orientation,
        private=tuple(dict.fromkeys(private)),
        has_icc=has_icc,
        lossless=frame[0].marker in _LOSSLESS_FRAMES,
        scales_down=frame[0].marker in _SEQUENTIAL_FRAMES,
    )
