# SPDX-License-Identifier: Apache-2.0
"""The bucket's control routes under ``/_sandbox/``: objects, counts of calls, seeding and link speed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.call import Emulator
from wan_sandbox.bucket.content import Content
from wan_sandbox.bucket.errors import StorageError, bad_request, no_such_bucket
from wan_sandbox.bucket.wire import read_json

MAX_SEED_BYTES = 1024 * 1024 * 1024
_PATTERN = hashlib.sha256(b"sandbox").digest() * 2048  # 64 KiB that do not compress well

Control = Callable[[Emulator, web.Request], Awaitable[dict[str, Any]]]


def add_control_routes(app: web.Application, emulator: Emulator, buckets: Iterable[str]) -> None:
    """Add the control routes.

    :param buckets: created again by a reset.
    """
    names = tuple(buckets)

    async def reset(emulator: Emulator, request: web.Request) -> dict[str, Any]:
        for session in emulator.sessions.values():
            session.spool.drop()
        emulator.sessions.clear()
        emulator.store.reset()
        emulator.counts.clear()
        for name in names:
            emulator.store.create_bucket(name)
        return {"reset": True}

    def add(method: str, path: str, control: Control) -> None:
        app.router.add_route(method, f"/_sandbox/{path}", functools.partial(_answer, emulator, control))

    add("GET", "health", health)
    add("POST", "reset", reset)
    add("GET", "objects", show_objects)
    add("GET", "calls", show_calls)
    add("DELETE", "calls", clear_calls)
    add("POST", "seed", seed)
    add("POST", "buckets", make_bucket)
    add("GET", "shape", show_shape)
    add("POST", "shape", set_shape)


async def _answer(emulator: Emulator, control: Control, request: web.Request) -> web.Response:
    try:
        return web.json_response(await control(emulator, request))
    except StorageError as error:
        return web.json_response({"error": error.message}, status=error.status)


async def health(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Answer that the server is up."""
    return {"ok": True, "buckets": sorted(emulator.store.buckets)}


async def show_objects(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Return a bucket's objects, and how often each name was ever written, including deleted ones."""
    bucket, prefix = request.query.get("bucket", ""), request.query.get("prefix", "")
    home = emulator.store.bucket(bucket)
    objects = [
        {
            "name": name,
            "size_bytes": stored.content.size,
            "generation": stored.generation,
            "metageneration": stored.metageneration,
            "crc32c": stored.content.crc32c,
            "content_type": stored.fields.get("contentType"),
            "metadata": stored.fields.get("metadata") or {},
            "writes": home.writes[name],
        }
        for name in home.names
        if name.startswith(prefix)
        for stored in (home.objects[name],)
    ]
    written = {name: count for name, count in home.writes.items() if name.startswith(prefix)}
    return {"bucket": bucket, "objects": objects, "writes": written}


async def show_calls(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Return the number of calls by kind and by status, and the object bytes transferred."""
    counts = emulator.counts
    return {
        "calls": dict(counts.calls),
        "statuses": dict(counts.statuses),
        "bytes_read": counts.bytes_read,
        "bytes_written": counts.bytes_written,
    }


async def clear_calls(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Reset the counts."""
    emulator.counts.clear()
    return {"cleared": True}


async def make_bucket(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Create a bucket, or make an existing one public or private: ``{name, public}``."""
    body = read_json(await request.read())
    name, public = str(body.get("name") or ""), bool(body.get("public", emulator.store.public))
    if not name:
        raise no_such_bucket(name)
    if name in emulator.store.buckets:
        emulator.store.bucket(name).public = public
    else:
        emulator.store.create_bucket(name, public=public)
    return {"name": name, "public": public}


async def seed(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Create many objects in one call.

    ``{bucket, prefix, count, size, suffix, content_type, metadata, text}``: names are the prefix, a number
    with six digits and the suffix; alternatively ``objects`` maps names to their metadata. All share one
    content: ``text`` or ``size`` bytes. ``texts`` maps names to a text of their own.
    """
    body = read_json(await request.read())
    try:
        count, size = int(body.get("count", 1)), int(body.get("size", 0))
    except (TypeError, ValueError):
        raise bad_request("count and size must be numbers.") from None
    if count < 0 or not 0 <= size <= MAX_SEED_BYTES:
        raise bad_request(f"count must be 0 or more, size between 0 and {MAX_SEED_BYTES}.")
    text = body.get("text")
    content = _content(emulator, size, None if text is None else str(text).encode())
    prefix, suffix = str(body.get("prefix", "")), str(body.get("suffix", ""))
    metadata = body.get("metadata") or {}
    objects = body.get("objects") or {f"{prefix}{number:06d}{suffix}": metadata for number in range(count)}
    fields = {name: {"contentType": body.get("content_type"), "metadata": objects[name]} for name in objects}
    texts = body.get("texts") or {}
    own = {name: _content(emulator, 0, str(text).encode()) for name, text in texts.items()}
    made = emulator.store.seed(str(body.get("bucket") or "sandbox"), fields, content, own)
    return {"created": made}


def _content(emulator: Emulator, size: int, data: bytes | None) -> Content:
    spool = emulator.store.contents.spool()
    if data is not None:
        spool.write(data)
    else:
        for start in range(0, size, len(_PATTERN)):
            spool.write(_PATTERN[: min(len(_PATTERN), size - start)])
    return spool.seal()


async def show_shape(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Return the latency and speed of the link."""
    shape, store = emulator.shape, emulator.store
    return {
        "latency_s": shape.latency_s,
        "bytes_per_s": shape.bytes_per_s,
        "write_interval_s": store.write_interval_s,
    }


async def set_shape(emulator: Emulator, request: web.Request) -> dict[str, Any]:
    """Set the latency and speed of the link: ``{latency_s, bytes_per_s, write_interval_s}``; 0 is no limit."""
    body = read_json(await request.read())
    try:
        values = {key: max(0.0, float(value)) for key, value in body.items()}
    except (TypeError, ValueError):
        raise bad_request("latency_s, bytes_per_s and write_interval_s must be numbers.") from None
    emulator.shape.latency_s = values.get("latency_s", emulator.shape.latency_s)
    emulator.shape.bytes_per_s = values.get("bytes_per_s", emulator.shape.bytes_per_s)
    emulator.store.write_interval_s = values.get("write_interval_s", emulator.store.write_interval_s)
    return await show_shape(emulator, request)
