# SPDX-License-Identifier: Apache-2.0
"""The header of a WEBP file: its RIFF chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import HeaderFacts
from airflow_provider_wan.images.headers.tiff import read_exif
from airflow_provider_wan.images.readers import Window

ANIMATION, XMP, EXIF, ALPHA, ICC = 0x02, 0x04, 0x08, 0x10, 0x20
#: What the pixels need.
PIXEL_CHUNKS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One RIFF chunk: its type, where it starts, where its data starts and ends, and where the next one starts."""

    kind: bytes
    start: int
    body: int
    end: int

    @property
    def next_start(self) -> int:
        """Where the following chunk starts: data is padded to an even length."""
        return self.end + (self.end - self.body) % 2


def file_end(window: Window) -> int:
    """Return where the RIFF container ends by its own header."""
    return 8 + int.from_bytes(window.read(4, 4), "little")


def chunks(window: Window) -> Iterator[Chunk]:
    """Go through the chunks up to the container's end."""
    at, end = 12, file_end(window)
    while at + 8 <= end:
        head = window.read(at, 8)
        chunk = Chunk(head[:4], at, at + 8, at + 8 + int.from_bytes(head[4:], "little"))
        yield chunk
        at = chunk.next_start


def read_webp(window: Window) -> HeaderFacts:
    """Read size, alpha, animation, orientation and what is private.

    :raises WanInputError: the container says that it is longer than the file.
    """
    size = window.size_bytes
    if size is not None and file_end(window) > size:
        raise WanInputError(
            f"{window.name}: the file is cut off: its header says {file_end(window):,} bytes and it has {size:,}. "
            f"Upload it again, whole."
        )
    first = window.read(12, 8 + 10)
    if first[:4] == b"VP8X":
        return _read_extended(window, first[8:])
    if first[:4] == b"VP8L":
        return _read_lossless(first[8:])
    if first[:4] == b"VP8 ":
        width, height = _lossy_size(first[8:])
        return HeaderFacts(width=width, height=height, mode="RGB")
    raise WanInputError(f"{window.name}: the WEBP file does not start with a picture; it is damaged.")


def _read_lossless(data: bytes) -> HeaderFacts:
    bits = int.from_bytes(data[1:5], "little")
    has_alpha = bool(bits >> 28 & 1)
    return HeaderFacts(
        width=(bits & 0x3FFF) + 1,
        height=(bits >> 14 & 0x3FFF) + 1,
        mode="RGBA" if has_alpha else "RGB",
        has_alpha=has_alpha,
        lossless=True,
    )


def _lossy_size(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF


def _read_extended(window: Window, data: bytes) -> HeaderFacts:
    flags = data[0]
    orientation = 1
    private: list[str] = ["XMP"] if flags & XMP else []
    lossless = False
    for chunk in chunks(window):
        if chunk.kind == b"VP8L":
            lossless = True
        if chunk.kind == b"EXIF":
            exif = read_exif(window, exif_base(window, chunk))
            orientation, private = exif.orientation, [*private, *exif.private]
        elif chunk.kind == b"XMP ":
            private.append("XMP")
        elif chunk.kind not in PIXEL_CHUNKS:
            private.append(f"{chunk.kind.decode('ascii', 'replace').strip()} data")
        if chunk.kind in (b"VP8 ", b"VP8L", b"ANMF") and not window.is_near and not flags & EXIF:
            break
    return HeaderFacts(
        width=int.from_bytes(data[4:7], "little") + 1,
        height=int.from_bytes(data[7:10], "little") + 1,
        mode="RGBA" if flags & ALPHA else "RGB",
        has_alpha=bool(flags & ALPHA),
        orientation=orientation,
        is_animated=bool(flags & ANIMATION),
        private=tuple(dict.fromkeys(private)),
        has_icc=bool(flags & ICC),
        lossless=lossless,
    )


def exif_base(window: Window, chunk: Chunk) -> int:
    """Return where the EXIF block starts: some writers put JPEG's ``Exif`` prefix before it."""
    return chunk.body + (6 if window.peek(chunk.body, 6) == b"Exif\0\0" else 0)
