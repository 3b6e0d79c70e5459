# SPDX-License-Identifier: Apache-2.0
"""Taking private metadata out of a file without touching its pixels.

Decoding and encoding again would lose quality for the sake of a GPS tag; the tag's segment can be left out instead.
"""

from __future__ import annotations

import re

from airflow_provider_wan.images.headers import jpeg, png, webp
from airflow_provider_wan.images.headers.tiff import read_exif
from airflow_provider_wan.images.readers import BytesReader, Window

#: A marker within or behind coded pixels: not a stuffed zero, not a restart, not a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_TAIL = "data behind the picture"


def strip_metadata(data: bytes, *, fmt: str, name: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the file without private metadata, and the names of what was removed.

    Where there is nothing private the very same bytes come back. What the pixels need (ICC profile, colour
    transform, resolution) stays. Pictures and videos that phones append behind the picture go too.

    :param fmt: ``JPEG``, ``PNG`` or ``WEBP``; any other has nothing that is removed.
    :raises WanInputError: the file is cut off or damaged.
    """
    strippers = {"JPEG": _strip_jpeg, "PNG": _strip_png, "WEBP": _strip_webp}
    stripper = strippers.get(fmt)
    if stripper is None:
        return data, ()
    stripped, removed = stripper(data, Window(BytesReader(data), name=name))
    return (stripped, tuple(dict.fromkeys(removed))) if removed else (data, ())


def _strip_jpeg(data: bytes, window: Window) -> tuple[bytes, list[str]]:
    kept, removed = [data[:2]], list[str]()
    pixels = len(data)
    for segment in jpeg.segments(window):
        if names := jpeg.private_of(window, segment):
            removed += names
        else:
            kept.append(data[segment.start : segment.end])
        pixels = segment.end
    end = _jpeg_end(data, pixels)
    if data[end:].strip(b"\0\r\n\t "):
        removed.append(_TAIL)
    return b"".join([*kept, data[pixels:end]]), removed


def _jpeg_end(data: bytes, at: int) -> int:
    """Return where the picture ends: after its own EOI, past all scans of a progressive one."""
    while match := _JPEG_MARKER.search(data, at):
        at = match.start()
        if data[at + 1] == 0xD9:
            return at + 2
        at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
    return len(data)


def _strip_png(data: bytes, window: Window) -> tuple[bytes, list[str]]:
    kept, removed = [data[:8]], list[str]()
    end = 8
    for chunk in png.chunks(window):
        end = chunk.next_start
        removed += png.private_of(window, chunk)
        if chunk.kind in png.PIXEL_CHUNKS:
            kept.append(data[chunk.start : end])
    if data[end:].strip(b"\0"):
        removed.append(_TAIL)
    return b"".join(kept), removed


def _strip_webp(data: bytes, window: Window) -> tuple[bytes, list[str]]:
    kept, removed = list[bytes](), list[str]()
    for chunk in webp.chunks(window):
        body = data[chunk.start : chunk.end] + b"\0" * ((chunk.end - chunk.start) % 2)
        if chunk.kind == b"VP8X":
            flags = data[chunk.body] & ~(webp.EXIF | webp.XMP)
            kept.append(body[:8] + bytes((flags,)) + body[9:])
        elif chunk.kind in webp.PIXEL_CHUNKS:
            kept.append(body)
        elif chunk.kind == b"EXIF":
            removed += read_exif(window, webp.exif_base(window, chunk)).private
        else:
            removed.append(
                "XMP" if chunk.kind == b"XMP " else f"{chunk.kind.decode('ascii', 'replace')} data"
            )
    if data[webp.file_end(window) :].strip(b"\0"):
        removed.append(_TAIL)
    content = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(content).to_bytes(4, "little") + content, removed
