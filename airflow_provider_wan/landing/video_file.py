# SPDX-License-Identifier: Apache-2.0
"""Check that a file is a whole video: MP4 (also QuickTime and fragmented MP4) or WebM.

A file that was cut before it was served comes with a Content-Length that agrees; only its structure shows the cut. A
whole video has a header, a video track with samples, a duration above 0, and media data where its tables say.

Sources: ISO/IEC 14496-12 (boxes; 4.2 box header, 8.2.2 mvhd, 8.7 sample tables, 8.8 fragments), and RFC 8794 with
RFC 9559 (EBML and Matroska, of which WebM is a subset).
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

_MOST_BOXES = 100_000
#: Headers are read into memory; an hour of video at 60 frames a second has less than 10 MB.
_HEADER_MAX_BYTES = 64 * 1024 * 1024
#: The type of the box that holds a C2PA manifest (C2PA specification, "Embedding manifests into BMFF-based assets").
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_EBML = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True, slots=True)
class VideoFile:
    """The properties of a whole video file, from its headers.

    :param content_type: ``video/mp4``, ``video/quicktime`` or ``video/webm``.
    :param duration_s: its length in seconds; None where the header of a WebM does not say.
    :param open_ended: whether its last part runs "to the end of the file", so that its structure cannot show a cut.
    :param has_c2pa: whether it has a C2PA box (Content Credentials), which says where it comes from.
    :param largest_frame_bytes: of its video track; 0 where the structure of a WebM does not say.
    """

    content_type: str
    duration_s: float | None
    open_ended: bool
    has_c2pa: bool = False
    largest_frame_bytes: int = field(default=0, compare=False)


def check_video_file(file: BinaryIO, size_bytes: int) -> VideoFile:
    """Check that a file is a whole video.

    :param file: a seekable binary file; its position is left anywhere.
    :param size_bytes: its size.
    :raises ValueError: it is not; the message gives the reason as a clause.
    """
    file.seek(0)
    is_webm = file.read(4) == _EBML
    try:
        return _check_webm(file, size_bytes) if is_webm else _check_mp4(file, size_bytes)
    except (struct.error, IndexError):
        raise ValueError("its header is damaged") from None


# -- MP4 -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Track:
    """The contents of a track's boxes.

    :ivar handler: ``vide``, ``soun`` or another.
    :ivar defaults: duration and size of a fragment's sample, where the fragment does not say.
    """

    handler: bytes = b""
    scale: int = 0
    samples: int = 0
    size_bytes: int = 0
    largest_bytes: int = 0
    ticks: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list)
    defaults: tuple[int, int] = (0, 0)


def _check_mp4(file: BinaryIO, size_bytes: int) -> VideoFile:
    seen: set[bytes] = set()
    moov, moofs, media = b"", [], []
    content_type = "video/mp4"
    at, open_ended, has_c2pa = 0, False, False
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
            raise ValueError(f"it is cut: its box {name!r} should end at byte {end}, the file at {size_bytes}")
        if kind == b"ftyp" and not seen:
            content_type = "video/quicktime" if _read(file, at + header, end)[:4] == b"qt  " else content_type
        elif kind == b"moov":
            moov = _read(file, at + header, end)
        elif kind == b"moof":
            moofs.append((at, at + header, end))
        elif kind == b"mdat":
            media.append((at + header, end))
        elif kind == b"uuid":
            has_c2pa |= _read(file, at + header, min(at + header + 16, end)) == _C2PA_UUID
        seen.add(kind)
        at = end
    else:
        raise ValueError("it has more boxes than a video has")
    missing = [kind.decode() for kind in (b"ftyp", b"moov", b"mdat") if kind not in seen]
    if missing:
        raise ValueError(f"it is cut or no video: it has no {' and no '.join(map(repr, missing))} box")
    tracks, duration_s = _read_moov(moov)
    for start, body_at, end in moofs:
        _read_moof(_read(file, body_at, end), start, tracks)
    duration_s = _check_tracks(tracks, duration_s, media)
    largest = max(track.largest_bytes for track in tracks.values() if track.handler == b"vide")
    return VideoFile(content_type, duration_s, open_ended, has_c2pa, largest)


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    if end - start > _HEADER_MAX_BYTES:
        raise ValueError("its header is larger than that of a video")
    file.seek(start)
    return file.read(end - start)


def _box_at(file: BinaryIO, at: int, end: int) -> tuple[bytes, int, int]:
    """Read a box header: type, length of the header, size of the box (0: to the end)."""
    file.seek(at)
    return _box_header(file.read(16), at, end)


def _box_header(head: bytes, at: int, end: int) -> tuple[bytes, int, int]:
    if len(head) < 8 or end - at < 8:
        raise ValueError(f"it ends in the middle of a box header at byte {at}")
    size, kind = struct.unpack(">I4s", head[:8])
    if not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
        raise ValueError(f"there is no MP4 box at byte {at}")
    header = 8
    if size == 1:
        if len(head) < 16:
            raise ValueError(f"it ends in the middle of a box header at byte {at}")
        size, header = struct.unpack(">Q", head[8:16])[0], 16
    if size != 0 and size < header:
        raise ValueError(f"the box at byte {at} has an impossible size")
    return kind, header, size


def _boxes(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of each box inside another; boxes after a damaged one are left out."""
    at = 0
    while at + 8 <= len(body):
        try:
            kind, header, size = _box_header(body[at : at + 16], at, len(body))
        except ValueError:  # QuickTime ends some lists with four zero bytes
            return
        end = len(body) if size == 0 else at + size
        if end > len(body):
            return
        yield kind, body[at + header : end]
        at = end


def _find(body: bytes, *path: bytes) -> bytes:
    """Return the body of the first box at a path, empty if it does not exist."""
    for kind in path:
        body = next((inner for found, inner in _boxes(body) if found == kind), b"")
    return body


def _read_moov(moov: bytes) -> tuple[dict[int, _Track], float | None]:
    """Read the header of the movie: its tracks by id, and its length in seconds if it says one."""
    mvhd = _find(moov, b"mvhd")
    if not mvhd:
        raise ValueError("it is no video: its header has no 'mvhd' box")
    tracks = {}
    for kind, trak in _boxes(moov):
        if kind == b"trak":
            tkhd = _find(trak, b"tkhd")
            track_id = struct.unpack_from(">I", tkhd, 20 if tkhd[0] == 1 else 12)[0]
            tracks[track_id] = _read_track(_find(trak, b"mdia"))
    for kind, trex in _boxes(_find(moov, b"mvex")):
        if kind == b"trex":
            track_id, _, duration, size = struct.unpack_from(">4I", trex, 4)
            tracks.setdefault(track_id, _Track()).defaults = (duration, size)
    return tracks, _length_s(mvhd)[1]


def _length_s(header: bytes) -> tuple[int, float | None]:
    """Read the time scale and the length in seconds of an ``mvhd`` or ``mdhd``."""
    if header[0] == 1:
        scale, ticks, unknown = *struct.unpack_from(">IQ", header, 20), 2**64 - 1
    else:
        scale, ticks, unknown = *struct.unpack_from(">II", header, 12), 2**32 - 1
    return scale, ticks / scale if scale and ticks not in (0, unknown) else None


def _read_track(mdia: bytes) -> _Track:
    track = _Track(handler=_find(mdia, b"hdlr")[8:12])
    if mdhd := _find(mdia, b"mdhd"):
        track.scale = _length_s(mdhd)[0]
    if track.handler not in (b"vide", b"soun"):
        return track
    stbl = _find(mdia, b"minf", b"stbl")
    for count, delta in _entries(_find(stbl, b"stts"), ">II"):
        track.ticks += count * delta
    bytes_before, track.largest_bytes = _sample_sizes(stbl)
    track.samples, track.size_bytes = len(bytes_before) - 1, bytes_before[-1]
    offsets = [at for (at,) in _entries(_find(stbl, b"co64"), ">Q") or _entries(_find(stbl, b"stco"), ">I")]
    runs = _entries(_find(stbl, b"stsc"), ">III")
    first_sample = 0
    for number, (first_chunk, per_chunk, _) in enumerate(runs):
        next_chunk = runs[number + 1][0] if number + 1 < len(runs) else len(offsets) + 1
        for at in offsets[max(first_chunk - 1, 0) : max(next_chunk - 1, 0)]:
            end = min(first_sample + per_chunk, track.samples)
            track.chunks.append((at, bytes_before[end] - bytes_before[first_sample]))
            first_sample = end
    if first_sample < track.samples:
        raise ValueError(f"its tables place {first_sample} of the {track.samples} samples of a track")
    return track


def _entries(box: bytes, layout: str) -> list[tuple[int, ...]]:
    """Read the table of a full box: version and flags, a count, and so many entries."""
    if not box:
        return []
    count, size = struct.unpack_from(">I", box, 4)[0], struct.calcsize(layout)
    return list(struct.iter_unpack(layout, box[8 : 8 + min(count, len(box) // size) * size]))


def _sample_sizes(stbl: bytes) -> tuple[Sequence[int], int]:
    """Return the bytes before each sample and, as the last, all of them; and the size of the largest sample."""
    sizes: Iterable[int] = ()
    if stsz := _find(stbl, b"stsz"):
        size, count = struct.unpack_from(">II", stsz, 4)
        if size:
            return range(0, size * (count + 1), size), size if count else 0
        sizes = struct.unpack_from(f">{count}I", stsz, 12)
    elif stz2 := _find(stbl, b"stz2"):
        bits, count = stz2[7], struct.unpack_from(">I", stz2, 8)[0]
        if bits == 4:
            sizes = [(stz2[12 + n // 2] >> (0 if n % 2 else 4)) & 15 for n in range(count)]
        else:
            sizes = struct.unpack_from(f">{count}{'H' if bits == 16 else 'B'}", stz2, 12)
    return [0, *itertools.accumulate(sizes)], max(sizes, default=0)


def _read_moof(moof: bytes, moof_at: int, tracks: dict[int, _Track]) -> None:
    """Add the samples of a fragment to their tracks (8.8.7 tfhd, 8.8.8 trun)."""
    data_at = moof_at
    for kind, traf in _boxes(moof):
        if kind != b"traf":
            continue
        tfhd = _find(traf, b"tfhd")
        flags, track_id = struct.unpack_from(">II", tfhd, 0)
        track = tracks.setdefault(track_id, _Track())
        values = iter(struct.unpack(f">{(len(tfhd) - 8) // 4}I", tfhd[8 : 8 + (len(tfhd) - 8) // 4 * 4]))
        base = moof_at if flags & 0x20000 else data_at
        if flags & 0x1:
            base = next(values, 0) << 32 | next(values, 0)
        if flags & 0x2:
            next(values, 0)
        duration = next(values, 0) if flags & 0x8 else track.defaults[0]
        size = next(values, 0) if flags & 0x10 else track.defaults[1]
        data_at = base
        for inner, trun in _boxes(traf):
            if inner == b"trun":
                data_at = _read_trun(trun, track, base, data_at, duration, size)


def _read_trun(trun: bytes, track: _Track, base: int, data_at: int, duration: int, size: int) -> int:
    """Add one run of samples; return where its data ends."""
    flags, count = struct.unpack_from(">II", trun, 0)
    at = 8
    if flags & 0x1:
        data_at = base + int(struct.unpack_from(">i", trun, at)[0])
        at += 4
    at += 4 if flags & 0x4 else 0
    columns = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    ticks, size_bytes = count * duration, count * size
    if columns:
        width = len(columns)
        table = struct.unpack_from(f">{count * width}I", trun, at)
        ticks = sum(table[columns.index(0x100) :: width]) if 0x100 in columns else ticks
        if 0x200 in columns:
            sizes = table[columns.index(0x200) :: width]
            size_bytes, size = sum(sizes), max(sizes, default=0)
    track.largest_bytes = max(track.largest_bytes, size)
    track.samples += count
    track.ticks += ticks
    track.size_bytes += size_bytes
    track.chunks.append((data_at, size_bytes))
    return int(data_at + size_bytes)


def _check_tracks(tracks: dict[int, _Track], duration_s: float | None, media: list[tuple[int, int]]) -> float:
    """Check that there is a video track, and that its data is in the file; return its length in seconds."""
    videos = [track for track in tracks.values() if track.handler == b"vide"]
    if not videos:
        raise ValueError("it is no video: it has no video track")
    if not any(track.samples and track.size_bytes for track in videos):
        raise ValueError("it is no video: its video track has no samples")
    if duration_s is None:
        duration_s = max(track.ticks / track.scale if track.scale else 0.0 for track in videos)
    if not duration_s:
        raise ValueError("it is no video: its duration is 0")
    begins = [begin for begin, _ in media]
    for track in tracks.values():
        for start, size in track.chunks:
            place = bisect.bisect(begins, start) - 1
            if size and (place < 0 or start + size > media[place][1]):
                raise ValueError(f"its media data is not whole: bytes {start} to {start + size} are not there")
    return duration_s


# -- WebM ------------------------------------------------------------------------------------------------------

_SEGMENT, _INFO, _TRACKS, _CLUSTER = 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
_SCALE, _DURATION, _TRACK_ENTRY, _TRACK_TYPE, _DOC_TYPE = 0x2AD7B1, 0x4489, 0xAE, 0x83, 0x4282
_SIMPLE_BLOCK, _BLOCK_GROUP = 0xA3, 0xA0
_VIDEO = b"\x01"


def _check_webm(file: BinaryIO, size_bytes: int) -> VideoFile:
    _, body_at, end, _ = _element_at(file, 0, size_bytes)
    doc_type = dict(_elements(_read(file, body_at, end))).get(_DOC_TYPE, b"").rstrip(b"\0")
    segment, at, segment_end, open_ended = _element_at(file, end, size_bytes)
    if doc_type not in (b"webm", b"matroska") or segment != _SEGMENT:
        raise ValueError("it is no WebM: it has no segment")
    info: dict[int, bytes] = {}
    has_video = has_samples = False
    for _ in range(_MOST_BOXES):
        if at == segment_end:
            break
        kind, body_at, end, is_unknown = _element_at(file, at, segment_end)
        open_ended = open_ended or is_unknown
        if kind == _INFO:
            info = dict(_elements(_read(file, body_at, end)))
        elif kind == _TRACKS:
            for entry, body in _elements(_read(file, body_at, end)):
                has_video |= entry == _TRACK_ENTRY and dict(_elements(body)).get(_TRACK_TYPE) == _VIDEO
        elif kind == _CLUSTER:
            has_samples = has_samples or _has_block(file, body_at, end)
        at = end
    else:
        raise ValueError("it has more elements than a video has")
    if not (has_video and has_samples):
        raise ValueError("it is cut or no video: it has no video track or no samples")
    return VideoFile("video/webm", _webm_duration_s(info), open_ended)


def _webm_duration_s(info: dict[int, bytes]) -> float | None:
    duration = info.get(_DURATION)
    if duration is None:  # a live recording
        return None
    ticks = struct.unpack(">d" if len(duration) == 8 else ">f", duration)[0]
    duration_s = ticks * int.from_bytes(info.get(_SCALE, b"\x0f\x42\x40"), "big") / 1e9
    if not duration_s > 0:
        raise ValueError("it is no video: its duration is 0")
    return float(duration_s)


def _number(data: bytes, at: int, *, keep_marker: bool) -> tuple[int, int, bool]:
    """Read a number of variable length: its value, its length, and whether all its bits are set ("unknown")."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > 8 or at + length > len(data):
        raise ValueError("it ends in the middle of an element, or is damaged")
    value = int.from_bytes(data[at : at + length], "big")
    bits = value & ((1 << 7 * length) - 1)
    return (value if keep_marker else bits), length, bits == (1 << 7 * length) - 1


def _element_at(file: BinaryIO, at: int, limit: int) -> tuple[int, int, int, bool]:
    """Read an element's header: its id, where its body begins and ends, and whether it has no size (to the limit)."""
    file.seek(at)
    head = file.read(16)
    if not head:
        raise ValueError("it is cut")
    kind, id_length, _ = _number(head, 0, keep_marker=True)
    size, size_length, is_unknown = _number(head, id_length, keep_marker=False)
    body_at = at + id_length + size_length
    end = limit if is_unknown else body_at + size
    if end > limit or body_at > limit:
        raise ValueError(f"it is cut: an element should end at byte {end}, the file at {limit}")
    return kind, body_at, end, is_unknown


def _elements(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        kind, id_length, _ = _number(body, at, keep_marker=True)
        size, size_length, _ = _number(body, at + id_length, keep_marker=False)
        at += id_length + size_length
        yield kind, body[at : at + size]
        at += size


def _has_block(file: BinaryIO, at: int, end: int) -> bool:
    for _ in range(10):
        if at >= end:
            return False
        kind, body_at, element_end, _ = _element_at(file, at, end)
        if kind in (_SIMPLE_BLOCK, _BLOCK_GROUP) and element_end > body_at:
            return True
        at = element_end
    return False
