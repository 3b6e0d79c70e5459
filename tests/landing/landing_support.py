# SPDX-License-Identifier: Apache-2.0
"""A succeeded request, its landing, and MP4s that contain only boxes."""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.download import Downloader, video_rules
from airflow_provider_wan.landing.landing import Destination, Landing
from airflow_provider_wan.model_api.faults import RetryPolicy
from tests.raw_servers import RawServer, read_head
from tests.sandboxes import INPUTS, MODEL, Bucket

LOG = logging.getLogger("landing")
#: No pause between retries, except a server's Retry-After.
QUICK = RetryPolicy(first_s=0.001, max_s=0.001)


def buy(**inputs: Any) -> Record:
    """Buy a request that ends at once; return the record that the submit operator would write."""
    submitted = WanHook(retry=QUICK).submit(MODEL, {**INPUTS, **inputs})
    return Record("f" * 64, MODEL, Stage.SUBMITTED, inputs=INPUTS, request_id=submitted.request_id)


def landing(
    bucket: Bucket,
    hosts: Sequence[str] | None = None,
    *,
    sleep: Callable[[float], None] = lambda _: None,
    checks: VideoChecks | None = None,
    **bounds: Any,
) -> Landing:
    """Give a landing that does not pause between its tries unless told to."""
    hook = WanHook(retry=QUICK)
    rules = video_rules(hosts or hook.settings.download_hosts, stall_s=10)
    return Landing(hook, bucket.client, Downloader(replace(rules, **bounds), LOG, sleep=sleep), LOG, checks=checks)


def to(bucket: Bucket, name: str = "v/clip.mp4", **more: Any) -> Destination:
    return Destination(bucket.name, name, **more)


def box(kind: bytes, body: bytes = b"", *, size: int | None = None, wide: bool = False) -> bytes:
    """Write an MP4 box.

    :param size: another size than the true one.
    :param wide: with a 64-bit size.
    """
    if wide:
        return struct.pack(">I4sQ", 1, kind, 16 + len(body) if size is None else size) + body
    return struct.pack(">I4s", 8 + len(body) if size is None else size, kind) + body


def mvhd(duration: int = 5000, scale: int = 1000, *, version: int = 0) -> bytes:
    if version:
        return box(b"mvhd", struct.pack(">IQQIQ", 1 << 24, 0, 0, scale, duration) + bytes(80))
    return box(b"mvhd", struct.pack(">IIIII", 0, 0, 0, scale, duration) + bytes(80))


def table(kind: bytes, layout: str, *entries: tuple[int, ...], count: int | None = None) -> bytes:
    """Write a full box with a table."""
    rows = b"".join(struct.pack(layout, *entry) for entry in entries)
    return box(kind, struct.pack(">II", 0, len(entries) if count is None else count) + rows)


def trak(
    offset: int, sizes: Sequence[int], *, handler: bytes = b"vide", ticks: int = 1000, wide: bool = False
) -> bytes:
    """Write a track whose samples lie in one chunk.

    :param ticks: of each sample, of which 1000 are a second.
    :param wide: with 64-bit chunk offsets.
    """
    stbl = (
        table(b"stts", ">II", (len(sizes), ticks))
        + box(b"stsz", struct.pack(">III", 0, 0, len(sizes)) + struct.pack(f">{len(sizes)}I", *sizes))
        + table(b"stsc", ">III", (1, len(sizes), 1))
        + table(b"co64" if wide else b"stco", ">Q" if wide else ">I", (offset,))
    )
    mdia = (
        box(b"mdhd", struct.pack(">IIIII", 0, 0, 0, 1000, ticks * len(sizes)) + bytes(4))
        + box(b"hdlr", bytes(8) + handler + bytes(13))
        + box(b"minf", box(b"stbl", stbl))
    )
    tkhd = box(b"tkhd", struct.pack(">IIII", 7, 0, 0, 1) + bytes(68))
    return box(b"trak", tkhd + box(b"mdia", mdia))


def moov(offset: int, sizes: Sequence[int], *, header: bytes | None = None, **more: Any) -> bytes:
    return box(b"moov", (mvhd() if header is None else header) + trak(offset, sizes, **more))


FTYP = box(b"ftyp", b"isom\0\0\0\1isom")


def mp4(payload: bytes = b"frames", *, last: bool = False, wide: bool = False, **more: Any) -> bytes:
    """Write the smallest file that is a whole video.

    :param last: with its header at the end.
    :param wide: with 64-bit sizes and offsets.
    """
    media = box(b"mdat", payload, wide=wide)
    head = 16 if wide else 8
    if last:
        return FTYP + media + moov(len(FTYP) + head, [len(payload)], wide=wide, **more)
    length = len(moov(0, [len(payload)], wide=wide, **more))
    return FTYP + moov(len(FTYP) + length + head, [len(payload)], wide=wide, **more) + media


@dataclass(frozen=True)
class Serving:
    """How one connection to a file server goes.

    :param cut: bytes of the body after which the connection ends; None: all of it is sent.
    :param framing: ``length`` (an honest Content-Length), ``chunked``, or ``close`` (the end is the end).
    :param ranges: ``yes`` (with If-Range), ``no``, or ``blind`` (If-Range is ignored).
    :param more: header lines to add.
    """

    data: bytes
    etag: str | None = '"1"'
    cut: int | None = None
    framing: Literal["length", "chunked", "close"] = "length"
    ranges: Literal["yes", "no", "blind"] = "yes"
    content_type: str = "video/mp4"
    more: str = ""


class FileServer(RawServer):
    """Serves a file, each connection as planned; the last plan is used for all later ones."""

    def __init__(self, *plans: Serving) -> None:
        super().__init__(self._send)
        self.plans = plans
        self.heads: list[str] = []

    def _send(self, sock: socket.socket) -> None:
        head = read_head(sock).decode("latin-1")
        plan = self.plans[min(len(self.heads), len(self.plans) - 1)]
        self.heads.append(head)
        start, size = self._start(plan, head), len(plan.data)
        lines = [f"Content-Type: {plan.content_type}", "Connection: close"]
        if plan.more:
            lines.append(plan.more)
        if plan.etag is not None:
            lines.append(f"ETag: {plan.etag}")
        if start:
            lines.append(f"Content-Range: bytes {start}-{size - 1}/{size}")
        if plan.framing == "length":
            lines.append(f"Content-Length: {size - start}")
        elif plan.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        status = "206 Partial Content" if start else "200 OK"
        sock.sendall("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())
        body = plan.data[start:]
        part = body if plan.cut is None else body[: plan.cut]
        if plan.framing != "chunked":
            sock.sendall(part)
            return
        for at in range(0, len(part), 1000):
            piece = part[at : at + 1000]
            sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        if len(part) == len(body):
            sock.sendall(b"0\r\n\r\n")

    @staticmethod
    def _start(plan: Serving, head: str) -> int:
        asked = re.search(r"^range: bytes=(\d+)-\r$", head, re.IGNORECASE | re.MULTILINE)
        same = re.search(r"^if-range: (.*)\r$", head, re.IGNORECASE | re.MULTILINE)
        if not asked or plan.ranges == "no" or int(asked[1]) >= len(plan.data):
            return 0
        if plan.ranges == "yes" and same and same[1] != plan.etag:
            return 0
        return int(asked[1])
