# SPDX-License-Identifier: Apache-2.0
"""The faults of video files and of the way they are sent; each changes a good :class:`Plan`."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from wan_sandbox.control.faults import FaultKind, FaultRule
from wan_sandbox.runcomfy.studio import CHUNK_BYTES, Video

MEDIA_CALLS = ("media",)
_AT = frozenset({"bytes", "part"})

MEDIA_FAULTS = (
    FaultKind("login_page", "HTTP 200 with a login page instead of the video", frozenset({"status"}), MEDIA_CALLS),
    FaultKind("expired", "403: the link has expired", frozenset(), MEDIA_CALLS),
    FaultKind("empty_file", "a file of no bytes", frozenset(), MEDIA_CALLS),
    FaultKind("cut_file", "a truncated file with an honest length", _AT, MEDIA_CALLS),
    FaultKind("drop_at", "the connection is cut after a number of bytes; a Range request resumes", _AT, MEDIA_CALLS),
    FaultKind("stall", "stalls after a number of bytes", _AT | {"seconds"}, MEDIA_CALLS),
    FaultKind("wrong_length", "promises more or fewer bytes than it sends", frozenset({"add"}), MEDIA_CALLS),
    FaultKind("promise", "promises a huge length and stalls", _AT | {"length", "seconds"}, MEDIA_CALLS),
    FaultKind("endless", "sends zeros without a length, up to a number of bytes", frozenset({"bytes"}), MEDIA_CALLS),
    FaultKind("wrong_type", "another content type", frozenset({"content_type"}), MEDIA_CALLS),
    FaultKind("no_type", "no content type", frozenset(), MEDIA_CALLS),
    FaultKind("garbage", "random bytes under the name of an MP4", frozenset({"bytes"}), MEDIA_CALLS),
    FaultKind("chunked", "sent in chunks, without a length", frozenset(), MEDIA_CALLS),
    FaultKind("changed_etag", "another file, with another ETag, at each call", frozenset(), MEDIA_CALLS),
    FaultKind("no_etag", "no ETag and no Last-Modified", frozenset(), MEDIA_CALLS),
    FaultKind("no_ranges", "answers a Range with the whole file", frozenset(), MEDIA_CALLS),
    FaultKind("wrong_range", "answers a Range with another part than the one asked for", frozenset(), MEDIA_CALLS),
    FaultKind("shape", "a slow line", frozenset({"latency_s", "bytes_per_s"}), MEDIA_CALLS),
)


@dataclass(slots=True)
class Plan:
    """How a file will be sent.

    :param length: what the answer says; None sends chunks without a length.
    :param cut_after: bytes of this answer after which the connection is cut.
    :param stall_after: bytes of this answer after which nothing more comes.
    :param step: so many bytes, then a pause of ``every_s``.
    """

    video: Video
    headers: dict[str, str]
    start: int
    stop: int
    status: int = 200
    length: int | None = field(init=False)
    cut_after: int | None = None
    stall_after: int | None = None
    stall_s: float | None = None
    step: int | None = None
    every_s: float = 0.0
    latency_s: float = 0.0
    bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        self.length = self.stop - self.start


@dataclass(frozen=True, slots=True)
class CutVideo:
    """The first part of another file."""

    video: Video
    size_bytes: int

    @property
    def etag(self) -> str:
        """Identity of the part."""
        return f"{self.video.etag}-{self.size_bytes}"

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``stop``."""
        return self.video.read(start, min(stop, self.size_bytes))


@dataclass(frozen=True, slots=True)
class OtherVideo:
    """Another file that is still a good MP4: it ends with an empty ``free`` box, one more each time."""

    video: Video
    number: int

    @property
    def etag(self) -> str:
        """Identity of this version."""
        return f"{self.video.etag}-v{self.number}"

    @property
    def size_bytes(self) -> int:
        """Size with the boxes."""
        return self.video.size_bytes + 8 * self.number

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``stop``."""
        size = self.video.size_bytes
        if start < size:
            yield from self.video.read(start, min(stop, size))
        if stop > size:
            tail = struct.pack(">I4s", 8, b"free") * self.number
            yield tail[max(0, start - size) : stop - size]


@dataclass(frozen=True, slots=True)
class Garbage:
    """Random bytes, or zeros; the same ones for the same label."""

    label: str
    size_bytes: int
    zeros: bool = False

    @property
    def etag(self) -> str:
        """Identity of the file."""
        return f"garbage-{self.label}"

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``stop``."""
        while start < stop:
            block, offset = divmod(start, CHUNK_BYTES)
            data = bytes(CHUNK_BYTES) if self.zeros else self._random_block(block)
            part = data[offset : offset + stop - start]
            start += len(part)
            yield part

    def _random_block(self, number: int) -> bytes:
        return random.Random(f"{self.label} {number}").randbytes(CHUNK_BYTES)


def spoil_file(rule: FaultRule, video: Video) -> Video:
    """Replace the file itself, where the fault is about the file."""
    params = rule.params
    match rule.fault:
        case "empty_file":
            return CutVideo(video, 0)
        case "cut_file":
            return CutVideo(video, _bytes(params, video.size_bytes))
        case "changed_etag":
            return OtherVideo(video, rule.hits)
        case "garbage":
            return Garbage(video.etag, int(params.get("bytes", video.size_bytes)))
        case "endless":
            return Garbage(video.etag, int(params.get("bytes", 10**10)), zeros=True)
        case _:
            return video


def spoil_sending(rule: FaultRule, plan: Plan) -> None:
    """Change how the file is sent, where the fault is about the sending."""
    params = rule.params
    size = plan.stop - plan.start
    match rule.fault:
        case "drop_at":
            plan.cut_after = _bytes(params, size)
        case "stall":
            plan.stall_after, plan.stall_s = _bytes(params, size), params.get("seconds")
        case "wrong_length":
            plan.length = max(0, size + int(params.get("add", 1000)))
        case "promise":
            plan.length = int(params.get("length", 10**10))
            plan.stall_after, plan.stall_s = _bytes(params, size), params.get("seconds")
        case "wrong_type":
            plan.headers["Content-Type"] = str(params.get("content_type", "text/plain"))
        case "no_type":
            plan.headers["Content-Type"] = ""
        case "chunked" | "endless":
            plan.length = None
        case "no_etag":
            plan.headers.pop("ETag")
            plan.headers.pop("Last-Modified")
        case "wrong_range" if plan.status == 206:
            plan.start, whole = 0, plan.video.size_bytes
            plan.length = plan.stop
            plan.headers["Content-Range"] = f"bytes 0-{plan.stop - 1}/{whole}"
        case "shape":
            plan.latency_s = float(params.get("latency_s", 0))
            plan.bytes_per_s = float(params["bytes_per_s"]) if "bytes_per_s" in params else None
        case "drip":
            plan.step, plan.every_s = int(params.get("bytes", 1)), float(params.get("every_s", 0.5))


def _bytes(params: dict[str, Any], size: int) -> int:
    """Read where something happens: ``bytes``, or ``part`` of the size; default: the middle."""
    if "bytes" in params:
        return min(int(params["bytes"]), size)
    return int(size * float(params.get("part", 0.5)))
