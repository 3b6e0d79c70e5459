# SPDX-License-Identifier: Apache-2.0
"""Whether a file is a whole MP4, told from its top-level boxes.

A file that was cut before it was served comes with a Content-Length that agrees; only the boxes show it.
Source of the format: ISO/IEC 14496-12, section 4.2 (box header: 32-bit size and type, 64-bit size after it
where the size is 1, and "to the end of the file" where it is 0).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_NEEDED = (b"ftyp", b"moov", b"mdat")
_MOST_BOXES = 100_000


@dataclass(frozen=True, slots=True)
class Mp4:
    """What the top-level boxes say.

    :param duration_s: the movie's length in seconds; None where the header does not tell.
    :param open_ended: whether the last box runs "to the end of the file", so that the boxes can't tell a cut.
    """

    duration_s: float | None
    open_ended: bool


def check_mp4(file: BinaryIO, size_bytes: int) -> Mp4:
    """Walk the top-level boxes of a file.

    :param file: a seekable binary file; its position is left anywhere.
    :param size_bytes: its size.
    :raises ValueError: it is not a whole MP4; the message says what is wrong in half a sentence.
    """
    seen: set[bytes] = set()
    duration_s: float | None = None
    at = 0
    open_ended = False
    for _ in range(_MOST_BOXES):
        if at == size_bytes:
            break
        kind, header, size = _box_at(file, at, size_bytes)
        if not seen and kind != b"ftyp":
            raise ValueError("it does not start as an MP4 does (no 'ftyp' box)")
        open_ended = size == 0
        end = size_bytes if open_ended else at + size
        if end > size_bytes:
            name = kind.decode("ascii", "replace")
            raise ValueError(
                f"it is cut: its box {name!r} should end at byte {end}, the file at {size_bytes}"
            )
        if kind == b"moov":
            duration_s = _duration(file, at + header, end)
        seen.add(kind)
        at = end
    else:
        raise ValueError("it has more boxes than a video has")
    missing = [kind.decode() for kind in _NEEDED if kind not in seen]
    if missing:
        raise ValueError(f"it is cut or no video: it has no {' and no '.join(map(repr, missing))} box")
    return Mp4(duration_s, open_ended)


def _box_at(file: BinaryIO, at: int, end: int) -> tuple[bytes, int, int]:
    """Read a box header: type, length of the header, size of the box (0: to the end)."""
    file.seek(at)
    head = file.read(16)
    if len(head) < 8 or end - at < 8:
        raise ValueError(f"it ends in the middle of a box header at byte {at}")
    size, kind = struct.unpack(">I4s", head[:8])
    if not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
        raise ValueError(f"there is no MP4 box at byte {at}")
    header = 8
    if size == 1:
        if len(head) < 16:
            raise ValueError(f"it ends in the middle of a box header at byte {at}")
        size, header = struct.unpack(">Q", head[8:])[0], 16
    if size != 0 and size < header:
        raise ValueError(f"the box at byte {at} has an impossible size")
    return kind, header, size


def _duration(file: BinaryIO, start: int, end: int) -> float | None:
    """Find the movie header inside ``moov`` and read its duration."""
    at = start
    while at + 8 <= end:
        try:
            kind, header, size = _box_at(file, at, end)
        except ValueError:
            return None
        if kind == b"mvhd":
            file.seek(at + header)
            return _read_mvhd(file.read(32))
        if size == 0:
            return None
        at += size
    return None


def _read_mvhd(body: bytes) -> float | None:
    try:
        if body[0] == 1:
            scale, duration = struct.unpack(">IQ", body[20:32])
        else:
            scale, duration = struct.unpack(">II", body[12:20])
    except (struct.error, IndexError):
        return None
    return duration / scale if scale else None
