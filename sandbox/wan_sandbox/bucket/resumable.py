# SPDX-License-Identifier: Apache-2.0
"""Resumable uploads: a session, chunks with ``Content-Range``, 308 until the last one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from aiohttp import web

from wan_sandbox.bucket.call import Call, Emulator, Session
from wan_sandbox.bucket.content import BLOCK_BYTES
from wan_sandbox.bucket.errors import StorageError, bad_request
from wan_sandbox.bucket.store import writable
from wan_sandbox.bucket.upload import (
    Expected,
    Intake,
    check_name,
    check_start,
    commit,
    expected,
)
from wan_sandbox.bucket.wire import json_answer, object_resource

MAX_SESSIONS = 10_000
"""So many are remembered; the oldest go first."""

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """The ``Content-Range`` of a chunk; ``start`` is None for a status query."""

    start: int | None
    stop: int | None
    total: int | None

    @property
    def is_last(self) -> bool:
        """Whether the upload is complete with this chunk."""
        return self.total is not None and (self.start is None or self.stop == self.total)


def read_chunk_range(headers: Mapping[str, str]) -> ChunkRange:
    """Parse ``Content-Range``; a request without one contains the whole object.

    :raises StorageError: 400.
    """
    text = headers.get("Content-Range")
    if text is None:
        length = int(headers.get("Content-Length", "0"))
        return ChunkRange(0, length, length)
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise bad_request(f"Failed to parse Content-Range header: {text!r}")
    first, last, total = found.groups()
    return ChunkRange(
        None if first is None else int(first),
        None if last is None else int(last) + 1,
        None if total == "*" else int(total),
    )


def session_name(emulator: Emulator, upload_id: str) -> str:
    """Return the object name of an upload session, for fault rules; empty if it is unknown."""
    session = emulator.sessions.get(upload_id)
    return session.name if session else ""


async def start_resumable(call: Call) -> web.StreamResponse:
    """Open a session."""
    resource = await call.json()
    call.name = check_name(call.name or resource.get("name"))
    check_start(call, call.name)
    fields = writable(resource)
    fields.setdefault("contentType", call.headers.get("X-Upload-Content-Type"))
    upload_id = secrets.token_urlsafe(32)
    sessions = call.emulator.sessions
    sessions[upload_id] = Session(
        bucket=call.bucket,
        name=call.name,
        query=dict(call.query),
        fields=fields,
        resource=resource,
        spool=call.store.contents.spool(),
    )
    while len(sessions) > MAX_SESSIONS:
        sessions.pop(next(iter(sessions))).spool.drop()
    query = urlencode({"uploadType": "resumable", "name": call.name, "upload_id": upload_id})
    location = f"{call.base_url}/upload/storage/v1/b/{call.bucket}/o?{query}"
    return web.Response(headers={"Location": location, "X-GUploader-UploadID": upload_id})


async def put_chunk(call: Call) -> web.StreamResponse:
    """Store a chunk, answer a status query, or finish the upload."""
    session = _session(call)
    call.name, call.query = session.name, session.query  # the conditions of the start apply
    async with session.lock:  # a retry may arrive while the previous chunk still hangs
        if session.done is not None:
            return json_answer(session.done)
        if session.refusal is not None:
            raise session.refusal
        chunk_range = read_chunk_range(call.headers)
        if chunk_range.start is not None and not await _take(call, session, chunk_range):
            return _incomplete(session)
        if not chunk_range.is_last or session.spool.size < (chunk_range.total or 0):
            return _incomplete(session)
        return _finish(call, session, expected(session.resource, call.headers), chunk_range)


async def cancel_resumable(call: Call) -> web.StreamResponse:
    """Close a session without an object; Cloud Storage answers 499."""
    _session(call).spool.drop()
    del call.emulator.sessions[call.query["upload_id"]]
    return web.Response(status=499, reason="Client Closed Request")


def _session(call: Call) -> Session:
    session = call.emulator.sessions.get(call.query.get("upload_id", ""))
    if session is None:
        raise StorageError(404, "notFound", "Upload session not found: it ended, was cancelled or never began.")
    return session


async def _take(call: Call, session: Session, chunk_range: ChunkRange) -> bool:
    """Append the bytes of a chunk; return False if it would leave a gap."""
    spool = session.spool
    skip = spool.size - (chunk_range.start or 0)
    if skip < 0:
        return False
    intake = Intake(call, spool)
    session.tail.clear()
    try:
        async for chunk in call.chunks():
            fresh, skip = chunk[skip:], max(0, skip - len(chunk))
            session.tail += fresh
            whole = len(session.tail) - len(session.tail) % BLOCK_BYTES
            if whole and session.content is None:
                intake.write(bytes(session.tail[:whole]))
                del session.tail[:whole]
    except BaseException:
        session.tail.clear()
        raise
    if not chunk_range.is_last:
        session.tail.clear()
    elif session.content is None and session.tail:
        intake.write(bytes(session.tail))
        session.tail.clear()
    return True


def _finish(call: Call, session: Session, sums: Expected, chunk_range: ChunkRange) -> web.StreamResponse:
    if session.spool.size != chunk_range.total:
        raise bad_request(f"{session.spool.size} bytes were uploaded where {chunk_range.total} were announced.")
    if session.content is None:
        session.content = session.spool.seal()
    try:
        stored = commit(call, session.name, session.content, session.fields, sums)
    except StorageError as error:
        if error.status != 429:  # after a 429 the client may send the same bytes again
            session.refusal, session.content = error, None
        raise
    session.done = object_resource(stored, call.base_url)
    session.content = None
    return json_answer(session.done)


def _incomplete(session: Session) -> web.Response:
    headers = {"Range": f"bytes=0-{session.spool.size - 1}"} if session.spool.size else {}
    return web.Response(status=308, reason="Resume Incomplete", headers=headers)
