# SPDX-License-Identifier: Apache-2.0
"""Calls on one object that upload no content: metadata, delete, copy and compose."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.call import Call
from wan_sandbox.bucket.conditions import Conditions, from_query
from wan_sandbox.bucket.content import Content, Spool
from wan_sandbox.bucket.errors import bad_request, no_such_object
from wan_sandbox.bucket.store import WRITABLE_FIELDS, StoredObject, writable
from wan_sandbox.bucket.upload import check_name
from wan_sandbox.bucket.wire import json_answer, object_resource

MAX_COMPONENTS = 32
"""So many objects may be composed at once in Cloud Storage."""


async def get_object(call: Call) -> web.StreamResponse:
    """Return an object's resource."""
    stored = _requested_object(call)
    call.conditions.check_read(stored)
    return json_answer(object_resource(stored, call.base_url), headers={"ETag": stored.etag})


async def delete_object(call: Call) -> web.StreamResponse:
    """Remove an object."""
    stored = _requested_object(call)
    call.conditions.check(stored)
    call.store.delete(stored, interval_s=call.write_interval_s)
    return web.Response(status=204)


async def patch_object(call: Call) -> web.StreamResponse:
    """Change the given metadata; other fields are kept."""
    return _change(call, await call.json())


async def update_object(call: Call) -> web.StreamResponse:
    """Replace all metadata; fields that are not given are removed."""
    changes = await call.json()
    stored = _requested_object(call)
    gone: dict[str, Any] = {field: None for field in WRITABLE_FIELDS if field != "storageClass"}
    if isinstance(changes.get("metadata"), dict):
        old: Mapping[str, str] = stored.fields.get("metadata") or {}
        gone["metadata"] = {**dict.fromkeys(old), **changes["metadata"]}
    return _change(call, {**gone, **{key: value for key, value in changes.items() if key != "metadata"}})


def _change(call: Call, changes: Mapping[str, Any]) -> web.StreamResponse:
    stored = _requested_object(call)
    call.conditions.check(stored)
    changed = call.store.change_fields(stored, changes, interval_s=call.write_interval_s)
    return json_answer(object_resource(changed, call.base_url))


async def rewrite_object(call: Call) -> web.StreamResponse:
    """Copy an object, in one step whatever its size."""
    stored = await _copy(call)
    size = str(stored.content.size)
    return json_answer(
        {
            "kind": "storage#rewriteResponse",
            "totalBytesRewritten": size,
            "objectSize": size,
            "done": True,
            "resource": object_resource(stored, call.base_url),
        }
    )


async def copy_object(call: Call) -> web.StreamResponse:
    """Copy an object with the older call."""
    return json_answer(object_resource(await _copy(call), call.base_url))


async def move_object(call: Call) -> web.StreamResponse:
    """Rename an object within its bucket."""
    source = _source(call)
    stored = await _copy(call)
    if source.name != stored.name:
        call.store.delete(source)
    return json_answer(object_resource(stored, call.base_url))


async def _copy(call: Call) -> StoredObject:
    given = writable(await call.json())
    source = _source(call)
    bucket, name = call.target
    return call.store.commit(
        bucket,
        check_name(name),
        source.content,
        conditions=from_query(call.query),
        fields=given or source.fields,
        component_count=source.component_count,
        interval_s=call.write_interval_s,
    )


def _source(call: Call) -> StoredObject:
    source = call.store.bucket(call.bucket).get(call.name, call.number("sourceGeneration"))
    from_query(call.query, source=True).check_read(source)
    return source


async def compose_object(call: Call) -> web.StreamResponse:
    """Concatenate objects into a new one, which has no MD5."""
    body = await call.json()
    given = body.get("sourceObjects")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_COMPONENTS:
        raise bad_request(f"The number of source objects must be between 1 and {MAX_COMPONENTS}.")
    call.conditions.check(call.store.bucket(call.bucket).objects.get(call.name))
    sources = [_component(call, entry) for entry in given]
    spool = call.store.contents.spool()
    try:
        content = await asyncio.to_thread(_joined, spool, [source.content for source in sources])
    finally:
        spool.drop()
    destination = body.get("destination")
    stored = call.store.commit(
        call.bucket,
        check_name(call.name),
        content,
        conditions=call.conditions,
        fields=writable(destination if isinstance(destination, dict) else {}),
        component_count=sum(source.component_count or 1 for source in sources),
        interval_s=call.write_interval_s,
    )
    if body.get("deleteSourceObjects"):
        _delete_sources(call, sources, stored)
    return json_answer(object_resource(stored, call.base_url))


def _component(call: Call, entry: Any) -> StoredObject:
    """Return one source of a composition, at the generation and under the condition of its entry."""
    if not isinstance(entry, dict) or not entry.get("name"):
        raise bad_request("Each source object needs a name.")
    generation = entry.get("generation")
    source = call.store.bucket(call.bucket).get(str(entry["name"]), None if generation is None else int(generation))
    wanted = (entry.get("objectPreconditions") or {}).get("ifGenerationMatch")
    Conditions(generation=None if wanted is None else int(wanted)).check(source)
    return source


def _joined(spool: Spool, parts: list[Content]) -> Content:
    for part in parts:
        for block in part.blocks():
            spool.write(block)
    return spool.seal(with_md5=False)


def _delete_sources(call: Call, sources: list[StoredObject], made: StoredObject) -> None:
    objects = call.store.bucket(call.bucket).objects
    for source in sources:
        if source.name != made.name and objects.get(source.name) is source:
            call.store.delete(source)


def _requested_object(call: Call) -> StoredObject:
    if not call.name:
        raise no_such_object(call.bucket, call.name)
    return call.store.bucket(call.bucket).get(call.name, call.number("generation"))
