# SPDX-License-Identifier: Apache-2.0
"""Objects and buckets as clients see them: JSON resources and response headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from aiohttp import web

from wan_sandbox.bucket.errors import StorageError
from wan_sandbox.bucket.store import Bucket, StoredObject

DEFAULT_TYPE = "application/octet-stream"


def timestamp(when: datetime) -> str:
    """Return a time in the format of the JSON API."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def object_resource(stored: StoredObject, base_url: str) -> dict[str, Any]:
    """Return an object as ``storage#object``.

    :param base_url: of this server as the client calls it.
    """
    path = f"storage/v1/b/{quote(stored.bucket, safe='')}/o/{quote(stored.name, safe='')}"
    created, content = timestamp(stored.created_at), stored.content
    resource: dict[str, Any] = {
        "kind": "storage#object",
        "id": f"{stored.bucket}/{stored.name}/{stored.generation}",
        "selfLink": f"{base_url}/{path}",
        "mediaLink": f"{base_url}/download/{path}?generation={stored.generation}&alt=media",
        "name": stored.name,
        "bucket": stored.bucket,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "storageClass": "STANDARD",
        "size": str(content.size),
        "crc32c": content.crc32c,
        "etag": stored.etag,
        "timeCreated": created,
        "updated": created if stored.metageneration == 1 else timestamp(stored.updated_at),
        "timeStorageClassUpdated": created,
        "timeFinalized": created,
    }
    if content.md5 is not None:
        resource["md5Hash"] = content.md5
    if stored.component_count is not None:
        resource["componentCount"] = stored.component_count
    resource.update({key: value for key, value in stored.fields.items() if value not in (None, {})})
    return resource


def bucket_resource(bucket: Bucket, base_url: str) -> dict[str, Any]:
    """Return a bucket as ``storage#bucket``."""
    return {
        "location": "US",
        "locationType": "multi-region",
        "storageClass": "STANDARD",
        "iamConfiguration": {"publicAccessPrevention": "inherited" if bucket.public else "enforced"},
        **bucket.fields,
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{base_url}/storage/v1/b/{quote(bucket.name, safe='')}",
        "projectNumber": "0",
        "generation": str(bucket.generation),
        "metageneration": str(bucket.metageneration),
        "etag": next(iter(bucket.etags)),
        "timeCreated": timestamp(bucket.created_at),
        "updated": timestamp(bucket.updated_at),
    }


def object_headers(stored: StoredObject, *, public: bool) -> dict[str, str]:
    """Return the headers of a download; the Python client compares ``X-Goog-Hash`` with the bytes it
    received.

    :param public: for the XML API: quoted MD5 tag, custom metadata as headers.
    """
    fields, content = stored.fields, stored.content
    hashes = f"crc32c={content.crc32c}" + (f",md5={content.md5}" if content.md5 else "")
    headers = {
        "Content-Type": clean(fields.get("contentType") or DEFAULT_TYPE),
        "ETag": f'"{stored.public_etag}"' if public else stored.etag,
        "Last-Modified": format_datetime(stored.updated_at.replace(microsecond=0), usegmt=True),
        "Cache-Control": clean(
            fields.get("cacheControl")
            or ("public, max-age=3600" if public else "no-cache, no-store, max-age=0, must-revalidate")
        ),
        "Accept-Ranges": "bytes",
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": hashes,
        "X-Goog-Storage-Class": "STANDARD",
        "X-Goog-Stored-Content-Encoding": clean(fields.get("contentEncoding") or "identity"),
        "X-Goog-Stored-Content-Length": str(content.size),
    }
    for field, header in (
        ("contentEncoding", "Content-Encoding"),
        ("contentDisposition", "Content-Disposition"),
        ("contentLanguage", "Content-Language"),
    ):
        if fields.get(field):
            headers[header] = clean(fields[field])
    if public:
        metadata: Mapping[str, str] = fields.get("metadata") or {}
        headers |= {
            f"x-goog-meta-{quote(key, safe='')}": quote(value, safe=" !#$&'()*+,/:;<=>?@[]")
            for key, value in metadata.items()
        }
    return headers


def clean(value: str) -> str:
    """Remove line breaks from a client's text, to make it safe for a header."""
    return "".join(char for char in str(value) if char.isprintable())


def json_answer(
    body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON response."""
    return web.Response(
        status=status,
        body=json.dumps(body, separators=(",", ":")).encode(),
        content_type="application/json",
        charset="UTF-8",
        headers=headers,
    )


def read_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object; an empty body is an empty object.

    :raises StorageError: 400.
    """
    if not raw.strip():
        return {}
    try:
        value = json.loads(raw)
    except ValueError:
        raise StorageError(400, "parseError", "Parse Error") from None
    if not isinstance(value, dict):
        raise StorageError(400, "parseError", "Parse Error: a JSON object was expected.")
    return value
