# SPDX-License-Identifier: Apache-2.0
"""A request that has succeeded, its landing, and MP4s made of nothing but boxes."""

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
from airflow_provider_wan.landing.download import Downloader, DownloadPolicy
from airflow_provider_wan.landing.landing import Destination, Landing
from airflow_provider_wan.model_api.faults import RetryPolicy
from tests.sandboxes import INPUTS, MODEL, Bucket
from tests.wires import Wire, read_head

LOG = logging.getLogger("landing")
#: No pause of our own choosing.
QUICK = RetryPolicy(first_s=0.001, max_s=0.001)


def buy(**inputs: Any) -> Record:
    """Buy a request that ends at once; gives what the submit operator would remember of it."""
    submitted = WanHook(retry=QUICK).submit(MODEL, {**INPUTS, **inputs})
    return Record("f" * 64, MODEL, Stage.SUBMITTED, inputs=INPUTS, request_id=submitted.request_id)


def landing(
    bucket: Bucket,
    hosts: Sequence[str] | None = None,
    *,
    sleep: Callable[[float], None] = lambda _: None,
    **policy: Any,
) -> Landing:
    """Give a landing that does not pause between its tries unless told to."""
    hook = WanHook(retry=QUICK)
    bounds = DownloadPolicy(hosts or hook.settings.download_hosts, stall_s=10)
    return Landing(hook, bucket.client, Downloader(replace(bounds, **policy), LOG, sleep=sleep), LOG)


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


def mp4(payload: bytes = b"frames", *, moov: bytes | None = None) -> bytes:
    """Write the smallest file that has all that a whole MP4 has."""
    head = box(b"ftyp", b"isom\0\0\0\1isom")
    return head + box(b"moov", mvhd() if moov is None else moov) + box(b"mdat", payload)


@dataclass(frozen=True)
class Serving:
    """How one connection to a file server goes.

    :param cut: bytes of the body after which the connection ends; None: all of it is sent.
    :param framing: ``length`` (an honest Content-Length), ``chunked``, or ``close`` (the end is the end).
    :param ranges: ``yes`` (with If-Range), ``no``, or ``blind`` (If-Range is not looked at).
    """

    data: bytes
    etag: str | None = '"1"'
    cut: int | None = None
    framing: Literal["length", "chunked", "close"] = "length"
    ranges: Literal["yes", "no", "blind"] = "yes"
    content_type: str = "video/mp4"


class FileServer(Wire):
    """Serves a file, each connection as planned; the last plan stands for all further ones."""

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
