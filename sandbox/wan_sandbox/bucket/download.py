# SPDX-License-Identifier: Apache-2.0
"""Reads of objects: whole, in ranges, and by public and signed links."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

from aiohttp import web
from aiohttp.payload import Payload

from wan_sandbox.bucket.call import Call, Counts, Pacer
from wan_sandbox.bucket.conditions import read_etags
from wan_sandbox.bucket.content import BLOCK_BYTES, Content
from wan_sandbox.bucket.errors import StorageError, range_not_satisfiable
from wan_sandbox.bucket.signed import check_access
from wan_sandbox.bucket.store import StoredObject
from wan_sandbox.bucket.wire import clean, object_headers

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_WHOLE_BODY_FAULTS = frozenset({"drip", "cut_json"})


class Blocks(Payload):
    """The body of a download, read block by block while it is sent."""

    def __init__(self, blocks: Iterator[bytes], *, size: int | None, counts: Counts, pacer: Pacer) -> None:
        super().__init__(blocks)
        self._size = size
        self._counts, self._pacer = counts, pacer

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raise an error: the body is read once, while it is sent."""
        raise TypeError("the body of a download cannot be read as text")

    async def write(self, writer: Any) -> None:
        """Send the body, counted and at the speed of the link."""
        for block in self._value:
            await writer.write(block)
            self._counts.bytes_read += len(block)
            await self._pacer.passed(len(block))


async def get_media(call: Call) -> web.StreamResponse:
    """Answer ``alt=media``."""
    stored = call.store.bucket(call.bucket).get(call.name, call.number("generation"))
    call.conditions.check_read(stored)
    return answer(call, stored, object_headers(stored, public=False))


async def get_link(call: Call) -> web.StreamResponse:
    """Answer a public or signed link, ``GET`` or ``HEAD /{bucket}/{object}``."""
    home = call.store.bucket(call.bucket)
    check_access(call, home)
    stored = home.get(call.name, call.number("generation"))
    call.conditions.check_read(stored)
    headers = object_headers(stored, public=True)
    for key, header in (
        ("response-content-type", "Content-Type"),
        ("response-content-disposition", "Content-Disposition"),
    ):
        if call.query.get(key):
            headers[header] = clean(call.query[key])
    return answer(call, stored, headers)


def answer(call: Call, stored: StoredObject, headers: dict[str, str]) -> web.StreamResponse:
    """Build the response with the requested bytes, which are not sent yet."""
    content = stored.content
    if _must_unzip(call, stored):
        del headers["Content-Encoding"]
        headers["Warning"] = "214 UploadServer gunzipped"
        return _respond(call, 200, headers, _unzipped(content), None)
    requested = _requested_range(call, stored)
    start, stop = requested or (0, content.size)
    if requested is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
    if (call.is_corrupt("rest") or call.is_corrupt("wire")) and stop > start:
        content = content.rotten(at=(start + stop) // 2)
    return _respond(call, 206 if requested else 200, headers, content.blocks(start, stop), stop - start)


def _respond(
    call: Call, status: int, headers: dict[str, str], blocks: Iterator[bytes], size: int | None
) -> web.Response:
    counts = call.emulator.counts
    if call.rule is not None and call.rule.fault in _WHOLE_BODY_FAULTS:
        body = b"".join(blocks)  # these faults need the body in memory
        counts.bytes_read += len(body)
        return web.Response(status=status, headers=headers, body=body)
    pacer = Pacer(call.emulator.shape.bytes_per_s)
    payload = Blocks(blocks, size=size, counts=counts, pacer=pacer)
    return web.Response(status=status, headers=headers, body=payload)


def _requested_range(call: Call, stored: StoredObject) -> tuple[int, int] | None:
    """Return the first byte of ``Range`` and the one after the last, or None for the whole object.

    A range that cannot be parsed is ignored, as HTTP requires, and so is one whose ``If-Range`` names another
    version of the object.
    """
    found = _RANGE.fullmatch(call.headers.get("Range", "").replace(" ", ""))
    if found is None or not any(found.groups()):
        return None
    if_range = call.headers.get("If-Range")
    if if_range is not None and not read_etags(if_range) & stored.etags:
        return None
    size = stored.content.size
    first, last = found.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    if last and first and int(last) < int(first):
        return None
    if start >= size:
        raise range_not_satisfiable(size)
    return start, stop


def _must_unzip(call: Call, stored: StoredObject) -> bool:
    if stored.fields.get("contentEncoding") != "gzip":
        return False
    return "gzip" not in call.headers.get("Accept-Encoding", "").lower()


def _unzipped(content: Content) -> Iterator[bytes]:
    unzip = zlib.decompressobj(wbits=31)
    try:
        for block in content.blocks():
            data = unzip.decompress(block, BLOCK_BYTES)
            while data:
                yield data
                data = unzip.decompress(unzip.unconsumed_tail, BLOCK_BYTES)
    except zlib.error as error:
        raise StorageError(503, "backendError", f"The stored bytes are no gzip: {error}") from error
