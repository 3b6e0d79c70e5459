# SPDX-License-Identifier: Apache-2.0
"""The state of the emulator, and one call to it, which every handler gets."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.conditions import Conditions, from_request
from wan_sandbox.bucket.content import Content, Spool
from wan_sandbox.bucket.errors import StorageError, bad_request
from wan_sandbox.bucket.multipart import RelatedParser
from wan_sandbox.bucket.store import Store
from wan_sandbox.bucket.wire import read_json
from wan_sandbox.control.faults import FaultBook, FaultRule

GCS_WRITE_INTERVAL_S = 1.0
"""Cloud Storage takes about one change a second of one object."""


@dataclass(slots=True)
class Shape:
    """A slow link, for benchmarks.

    :param latency_s: time before each response.
    :param bytes_per_s: limit for each upload or download; 0 is no limit.
    """

    latency_s: float = 0.0
    bytes_per_s: float = 0.0


@dataclass(slots=True)
class Counts:
    """Counts of calls, responses and bytes."""

    calls: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    bytes_written: int = 0

    def clear(self) -> None:
        """Reset the counts."""
        self.calls.clear()
        self.statuses.clear()
        self.bytes_read = self.bytes_written = 0


@dataclass(slots=True)
class Session:
    """One resumable upload; kept long after its end, for clients that query it again."""

    bucket: str
    name: str
    query: Mapping[str, str]
    fields: Mapping[str, Any]
    resource: Mapping[str, Any]
    spool: Spool
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Bytes of an incomplete chunk: only multiples of 256 KiB are persisted.
    tail: bytearray = field(default_factory=bytearray)
    content: Content | None = None
    #: Its final answer, repeated to a client that queries again: the object's resource or the error.
    done: dict[str, Any] | None = None
    refusal: StorageError | None = None


@dataclass(slots=True)
class Emulator:
    """The state of one bucket server."""

    store: Store
    faults: FaultBook
    shape: Shape
    counts: Counts = field(default_factory=Counts)
    sessions: dict[str, Session] = field(default_factory=dict)


class Pacer:
    """Limits one stream to a number of bytes per second."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._started = time.monotonic()
        self._passed = 0

    async def passed(self, size: int) -> None:
        """Wait until ``size`` more bytes fit the limit."""
        self._passed += size
        if self._bytes_per_s > 0:
            due = self._started + self._passed / self._bytes_per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))


@dataclass(slots=True)
class Call:
    """One call to the bucket: an HTTP request, or a part of a batch.

    :param kind: the name that fault rules use, such as ``bucket.get``.
    :param bucket: from the path, decoded; empty if there is none.
    :param name: of the object, from the path, decoded; empty if there is none.
    :param target: bucket and name of a copy's destination.
    :param rule: the fault that hit this call and that its handler must play.
    :param body: of a part of a batch; None for a separate request.
    :param parser: of a multipart upload whose metadata was already read, to learn the object's name.
    :param early: bytes of the object that were read together with that metadata.
    """

    emulator: Emulator
    request: web.Request
    kind: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    bucket: str = ""
    name: str = ""
    target: tuple[str, str] = ("", "")
    rule: FaultRule | None = None
    body: bytes | None = None
    parser: RelatedParser | None = None
    early: bytes = b""
    received: int = 0

    @property
    def store(self) -> Store:
        """The buckets."""
        return self.emulator.store

    @property
    def base_url(self) -> str:
        """The URL of this server as the client calls it; links in responses must point to it."""
        return f"{self.request.scheme}://{self.request.host}"

    @property
    def conditions(self) -> Conditions:
        """The client's preconditions for the object."""
        return from_request(self.query, self.headers)

    @property
    def write_interval_s(self) -> float:
        """Minimum time between changes of one object that the fault ``write_rate`` sets; 0 is no limit."""
        if self.rule is None or self.rule.fault != "write_rate":
            return 0.0
        return float(self.rule.params.get("interval_s", GCS_WRITE_INTERVAL_S))

    def is_corrupt(self, where: str) -> bool:
        """Return whether the fault ``corrupt`` flips a byte of this call: at ``rest`` or on the ``wire``."""
        if self.rule is None or self.rule.fault != "corrupt":
            return False
        return str(self.rule.params.get("at", "rest")) == where

    async def json(self) -> dict[str, Any]:
        """Return the body as a JSON object; an empty body is an empty object.

        :raises StorageError: 400.
        """
        raw = await self.request.read() if self.body is None else self.body
        return read_json(raw)

    def number(self, key: str) -> int | None:
        """Return a number from the query.

        :raises StorageError: 400.
        """
        text = self.query.get(key)
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise bad_request(f"Invalid value for {key}: {text!r}") from None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives, counted and at the speed of the link.

        :raises StorageError: 400 if it ends before its announced length.
        """
        counts, pacer = self.emulator.counts, Pacer(self.emulator.shape.bytes_per_s)
        async for chunk in self.request.content.iter_any():
            self.received += len(chunk)
            counts.bytes_written += len(chunk)
            yield chunk
            await pacer.passed(len(chunk))
        promised = self.request.content_length
        if promised is not None and self.received != promised:
            raise bad_request(f"The body ended after {self.received} of {promised} bytes.")
