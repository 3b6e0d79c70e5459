# SPDX-License-Identifier: Apache-2.0
"""The header of a PNG file: its chunks, each looked at by its first bytes only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.facts import HeaderFacts
from airflow_provider_wan.images.headers.tiff import read_exif
from airflow_provider_wan.images.readers import Window

#: What the pixels need to look as they should.
PIXEL_CHUNKS = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD hIST pHYs sPLT cICP mDCV cLLI acTL fcTL fdAT".split()
)
#: Says nothing private, and is of no use once other chunks go.
_HARMLESS_CHUNKS = frozenset((b"iDOT", b"tIME", b"oFFs", b"vpAg"))
_PRIVATE_NAMES = {b"tEXt": "text", b"zTXt": "text", b"iTXt": "text", b"caBX": "content credentials"}
_COLOUR_TYPES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: its type, where it starts (with its length field), and where its data starts and ends."""

    kind: bytes
    start: int
    body: int
    end: int

    @property
    def next_start(self) -> int:
        """Where the following chunk starts, after this one's checksum."""
        return self.end + 4


def chunks(window: Window) -> Iterator[Chunk]:
    """Go through the chunks; IEND, where it is reached, is the last one given."""
    at = 8
    while True:
        head = window.read(at, 8)
        chunk = Chunk(head[4:], at, at + 8, at + 8 + int.from_bytes(head[:4], "big"))
        if not chunk.kind.isalpha():
            raise WanInputError(f"{window.name}: its PNG chunks are damaged at byte {at:,}. Save it again.")
        yield chunk
        if chunk.kind == b"IEND":
            return
        at = chunk.next_start


def private_of(window: Window, chunk: Chunk) -> tuple[str, ...]:
    """Return the names of what is private in a chunk."""
    if chunk.kind in PIXEL_CHUNKS or chunk.kind in _HARMLESS_CHUNKS:
        return ()
    if chunk.kind == b"eXIf":
        return read_exif(window, chunk.body).private
    head = window.peek(chunk.body, min(32, chunk.end - chunk.body))
    if chunk.kind == b"iTXt" and head.startswith(b"XML:com.adobe.xmp\0"):
        return ("XMP",)
    if chunk.kind in (b"tEXt", b"zTXt", b"iTXt") and head.startswith(b"Software\0"):
        return ()
    return (_PRIVATE_NAMES.get(chunk.kind, f"{chunk.kind.decode('ascii', 'replace')} data"),)


def read_png(window: Window) -> HeaderFacts:
    """Read size, mode, alpha, animation and what is private.

    Chunks behind the pixels are looked at only where the file is near: over a network that would be a request
    each.
    """
    header = window.read(8, 8 + 13)
    if header[4:8] != b"IHDR":
        raise WanInputError(f"{window.name}: the PNG file does not start with its header; it is damaged.")
    bits, colour_type = header[16], header[17]
    if colour_type not in _COLOUR_TYPES:
        raise WanInputError(
            f"{window.name}: the PNG header names colour type {colour_type}, which does not exist."
        )
    private: list[str] = []
    kinds: set[bytes] = set()
    orientation = 1
    for chunk in chunks(window):
        if chunk.kind == b"IDAT" and not window.is_near:
            break
        kinds.add(chunk.kind)
        private += private_of(window, chunk)
        if chunk.kind == b"eXIf":
            orientation = read_exif(window, chunk.body).orientation
    return HeaderFacts(
        width=int.from_bytes(header[8:12], "big"),
        height=int.from_bytes(header[12:16], "big"),
        mode=_pillow_mode(bits, colour_type),
        bits=bits,
        has_alpha=colour_type in (4, 6) or b"tRNS" in kinds,
        orientation=orientation,
        is_animated=b"acTL" in kinds,
        private=tuple(dict.fromkeys(private)),
        has_icc=b"iCCP" in kinds,
        lossless=True,
    )


def _pillow_mode(bits: int, colour_type: int) -> str:
    if colour_type == 0 and bits in (1, 16):
        return "1" if bits == 1 else "I;16"
    if colour_type == 4 and bits == 16:
        return "RGBA"  # Pillow has no 16-bit grey with alpha
    return _COLOUR_TYPES[colour_type]
