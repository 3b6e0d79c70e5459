# SPDX-License-Identifier: Apache-2.0
"""Calls about buckets themselves."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.call import Call
from wan_sandbox.bucket.errors import bad_request, precondition_failed
from wan_sandbox.bucket.store import Bucket
from wan_sandbox.bucket.wire import bucket_resource, json_answer

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_SERVERS_OWN = frozenset(
    {"kind", "id", "name", "selfLink", "projectNumber", "generation", "metageneration", "etag"}
    | {"timeCreated", "updated", "acl", "defaultObjectAcl"}
)


async def insert_bucket(call: Call) -> web.StreamResponse:
    """Create a bucket; one with ``publicAccessPrevention: enforced`` serves no unsigned links."""
    body = await call.json()
    name = body.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"Invalid bucket name: {name!r}")
    fields = {key: value for key, value in body.items() if key not in _SERVERS_OWN}
    made = call.store.create_bucket(name, public=_publicity(fields), fields=fields)
    return json_answer(bucket_resource(made, call.base_url))


async def get_bucket(call: Call) -> web.StreamResponse:
    """Return a bucket's resource."""
    bucket = call.store.bucket(call.bucket)
    call.conditions.check_read(bucket)
    return json_answer(bucket_resource(bucket, call.base_url))


async def list_buckets(call: Call) -> web.StreamResponse:
    """List all buckets, in one page."""
    prefix = call.query.get("prefix", "")
    found = sorted(name for name in call.store.buckets if name.startswith(prefix))
    items = [bucket_resource(call.store.bucket(name), call.base_url) for name in found]
    return json_answer({"kind": "storage#buckets", "items": items})


async def patch_bucket(call: Call) -> web.StreamResponse:
    """Change a bucket's metadata."""
    body = await call.json()
    bucket = call.store.bucket(call.bucket)
    _check(call, bucket)
    for key, value in body.items():
        if key not in _SERVERS_OWN:
            bucket.fields[key] = value
    public = _publicity(bucket.fields)
    bucket.public = bucket.public if public is None else public
    bucket.metageneration += 1
    bucket.updated_at = datetime.now(UTC)
    return json_answer(bucket_resource(bucket, call.base_url))


async def delete_bucket(call: Call) -> web.StreamResponse:
    """Remove an empty bucket."""
    _check(call, call.store.bucket(call.bucket))
    call.store.delete_bucket(call.bucket)
    return web.Response(status=204)


async def check_permissions(call: Call) -> web.StreamResponse:
    """Answer that the caller has every permission in the query."""
    call.store.bucket(call.bucket)
    asked = call.request.query.getall("permissions", [])
    return json_answer({"kind": "storage#testIamPermissionsResponse", "permissions": asked})


def _check(call: Call, bucket: Bucket) -> None:
    conditions = call.conditions
    if conditions.metageneration not in {None, bucket.metageneration}:
        raise precondition_failed()
    if conditions.not_metageneration == bucket.metageneration:
        raise precondition_failed()


def _publicity(fields: dict[str, Any]) -> bool | None:
    configuration = fields.get("iamConfiguration")
    word = configuration.get("publicAccessPrevention") if isinstance(configuration, dict) else None
    return {"enforced": False, "inherited": True}.get(str(word))
