# SPDX-License-Identifier: Apache-2.0
"""Uploads in one request: media, multipart, and ``PUT`` to a signed link."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from wan_sandbox.bucket.call import Call
from wan_sandbox.bucket.content import Content, Spool, flip
from wan_sandbox.bucket.errors import bad_request, checksum_mismatch
from wan_sandbox.bucket.multipart import RelatedParser
from wan_sandbox.bucket.signed import check_access
from wan_sandbox.bucket.store import StoredObject, writable
from wan_sandbox.bucket.wire import json_answer, object_headers, object_resource

MAX_NAME_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Expected:
    """Checksums sent by the client; None where it sent none."""

    crc32c: str | None = None
    md5: str | None = None

    def check(self, content: Content) -> None:
        """Compare them with the content.

        :raises StorageError: 400 if the bytes that arrived differ.
        """
        if self.crc32c is not None and self.crc32c != content.crc32c:
            raise checksum_mismatch("CRC32C", self.crc32c, content.crc32c)
        if self.md5 is not None and self.md5 != content.md5:
            raise checksum_mismatch("MD5", self.md5, content.md5 or "")


def expected(resource: Mapping[str, Any], headers: Mapping[str, str]) -> Expected:
    """Return the client's checksums from the object resource and the headers."""
    given = {
        name.strip().lower(): value.strip()
        for name, _, value in (part.partition("=") for part in headers.get("X-Goog-Hash", "").split(",") if part)
    }
    return Expected(
        crc32c=resource.get("crc32c") or given.get("crc32c"),
        md5=resource.get("md5Hash") or given.get("md5") or headers.get("Content-MD5"),
    )


class Intake:
    """Bytes of one request on their way into a spool; applies the fault ``corrupt`` on the wire."""

    def __init__(self, call: Call, spool: Spool) -> None:
        self._spool = spool
        self._corrupt = call.is_corrupt("wire")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._corrupt and data:
            data, self._corrupt = flip(data, 0), False
        self._spool.write(data)


def check_name(name: object) -> str:
    """Check that Cloud Storage would accept an object name.

    :raises StorageError: 400.
    """
    if not isinstance(name, str) or not name:
        raise bad_request("Required parameter: name")
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES or "\n" in name or "\r" in name:
        raise bad_request("Disallowed unicode characters present in object name, or it is too long.")
    if name in {".", ".."}:
        raise bad_request(f"Invalid object name: {name}")
    return name


def check_start(call: Call, name: str) -> None:
    """Refuse early what would be refused at the end: a missing bucket, or a condition that does not hold."""
    call.conditions.check(call.store.bucket(call.bucket).objects.get(name))


def commit(call: Call, name: str, content: Content, fields: Mapping[str, Any], sums: Expected) -> StoredObject:
    """Store the bytes that arrived, if the checksums match and the conditions still hold."""
    sums.check(content)
    return call.store.commit(
        call.bucket,
        name,
        content.rotten() if content.size and call.is_corrupt("rest") else content,
        conditions=call.conditions,
        fields=fields,
        interval_s=call.write_interval_s,
    )


async def upload_media(call: Call) -> web.StreamResponse:
    """Handle a body that contains only the object."""
    check_start(call, check_name(call.name))
    fields = {"contentType": call.headers.get("Content-Type"), "metadata": None}
    if call.query.get("contentEncoding"):
        fields["contentEncoding"] = call.query["contentEncoding"]
    content = await _whole_body(call)
    stored = commit(call, call.name, content, fields, expected({}, call.headers))
    return json_answer(object_resource(stored, call.base_url))


async def open_multipart(call: Call) -> str:
    """Read a multipart upload up to its metadata, so that fault rules know the object's name.

    :returns: the object's name.
    :raises StorageError: 400.
    """
    parser = RelatedParser(call.headers.get("Content-Type", ""))
    async with aclosing(call.chunks()) as chunks:
        async for chunk in chunks:
            call.early = parser.feed(chunk)
            if parser.metadata is not None:
                break
    call.parser = parser
    return check_name((parser.metadata or {}).get("name") or call.query.get("name"))


async def upload_multipart(call: Call) -> web.StreamResponse:
    """Handle metadata and bytes in one body."""
    if call.parser is None:
        call.name = await open_multipart(call)
    check_start(call, call.name)
    assert call.parser is not None
    content = await _whole_body(call)
    resource = call.parser.metadata or {}
    fields = {"contentType": call.parser.content_type, **writable(resource)}
    stored = commit(call, call.name, content, fields, expected(resource, call.headers))
    return json_answer(object_resource(stored, call.base_url))


async def put_link(call: Call) -> web.StreamResponse:
    """Handle a ``PUT`` to a signed link."""
    check_access(call, call.store.bucket(call.bucket))
    check_start(call, check_name(call.name))
    fields: dict[str, Any] = {
        field: call.headers[header]
        for field, header in (
            ("contentType", "Content-Type"),
            ("contentEncoding", "Content-Encoding"),
            ("contentDisposition", "Content-Disposition"),
            ("contentLanguage", "Content-Language"),
            ("cacheControl", "Cache-Control"),
        )
        if header in call.headers
    }
    fields["metadata"] = {
        unquote(key[len("x-goog-meta-") :]): unquote(value)
        for key, value in call.headers.items()
        if key.lower().startswith("x-goog-meta-")
    }
    content = await _whole_body(call)
    stored = commit(call, call.name, content, fields, expected({}, call.headers))
    kept = ("ETag", "X-Goog-Generation", "X-Goog-Metageneration", "X-Goog-Hash")
    headers = object_headers(stored, public=True)
    return web.Response(headers={name: headers[name] for name in kept})


async def _whole_body(call: Call) -> Content:
    """Yield the object's bytes, from the multipart body if it is one."""
    spool = call.store.contents.spool()
    intake, parser = Intake(call, spool), call.parser
    intake.write(call.early)
    try:
        async for chunk in call.chunks():
            intake.write(chunk if parser is None else parser.feed(chunk))
        if parser is not None:
            parser.finish()
        return spool.seal()
    finally:
        spool.drop()
