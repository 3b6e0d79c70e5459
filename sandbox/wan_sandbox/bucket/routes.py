# SPDX-License-Identifier: Apache-2.0
"""Maps paths to handlers.

Paths are split before they are decoded: an object's name may contain slashes, which clients write as ``%2F``,
so ``a%2Fcompose`` is a name and ``a/compose`` is a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from wan_sandbox.bucket import buckets, objects
from wan_sandbox.bucket.download import get_link, get_media
from wan_sandbox.bucket.errors import StorageError, bad_request
from wan_sandbox.bucket.faults import Handler
from wan_sandbox.bucket.listing import list_objects
from wan_sandbox.bucket.resumable import cancel_resumable, put_chunk, start_resumable
from wan_sandbox.bucket.upload import put_link, upload_media, upload_multipart


@dataclass(frozen=True, slots=True)
class Route:
    """The handler of a request.

    :param kind: the call's name in fault rules and counts.
    :param as_xml: whether errors are written in the format of the XML API.
    """

    kind: str
    handler: Handler
    bucket: str = ""
    name: str = ""
    target: tuple[str, str] = ("", "")
    as_xml: bool = False


_BUCKETS = {"GET": ("bucket.admin", buckets.list_buckets), "POST": ("bucket.admin", buckets.insert_bucket)}
_BUCKET = {
    "GET": ("bucket.metadata", buckets.get_bucket),
    "PATCH": ("bucket.admin", buckets.patch_bucket),
    "PUT": ("bucket.admin", buckets.patch_bucket),
    "DELETE": ("bucket.admin", buckets.delete_bucket),
}
_OBJECT = {
    "GET": ("bucket.metadata", objects.get_object),
    "PATCH": ("bucket.update", objects.patch_object),
    "PUT": ("bucket.update", objects.update_object),
    "DELETE": ("bucket.delete", objects.delete_object),
}
_UPLOADS = {
    "media": ("bucket.upload", upload_media),
    "multipart": ("bucket.upload", upload_multipart),
    "resumable": ("bucket.upload.start", start_resumable),
}
_COPIES = {"rewriteTo": objects.rewrite_object, "copyTo": objects.copy_object}
_LINKS = {
    "GET": ("bucket.get", get_link),
    "HEAD": ("bucket.metadata", get_link),
    "PUT": ("bucket.upload", put_link),
}


def find_route(method: str, raw_path: str, query: Mapping[str, str]) -> Route:
    """Return the route of a request.

    :param raw_path: the path as received, still encoded, without the query.
    :raises StorageError: 404 or 405.
    """
    match raw_path.lstrip("/").split("/"):
        case ["storage", "v1", "b"]:
            return _pick(method, _BUCKETS)
        case ["storage", "v1", "b", bucket, *rest]:
            return _in_bucket(method, decode(bucket), rest, query)
        case ["download", "storage", "v1", "b", bucket, "o", *name] if method in {"GET", "HEAD"}:
            return Route("bucket.get", get_media, decode(bucket), decode("/".join(name)))
        case ["upload", "storage", "v1", "b", bucket, "o"]:
            return _upload(method, decode(bucket), query)
        case [bucket, *name] if bucket and any(name):
            kind, handler = _choose(method, _LINKS)
            return Route(kind, handler, decode(bucket), decode("/".join(name)), as_xml=True)
    raise StorageError(404, "notFound", "Not Found")


def _in_bucket(method: str, bucket: str, rest: list[str], query: Mapping[str, str]) -> Route:
    match rest:
        case []:
            return _pick(method, _BUCKET, bucket)
        case ["iam", "testPermissions"] if method == "GET":
            return Route("bucket.admin", buckets.check_permissions, bucket)
        case ["o"]:
            return _pick(method, {"GET": ("bucket.list", list_objects)}, bucket)
        case ["o", name, "compose"] if method == "POST":
            return Route("bucket.compose", objects.compose_object, bucket, decode(name))
        case ["o", name, ("rewriteTo" | "copyTo") as verb, "b", other, "o", copy] if method == "POST":
            target = (decode(other), decode(copy))
            return Route("bucket.copy", _COPIES[verb], bucket, decode(name), target)
        case ["o", name, "moveTo", "o", moved] if method == "POST":
            return Route("bucket.copy", objects.move_object, bucket, decode(name), (bucket, decode(moved)))
        case ["o", *name]:
            if method in {"GET", "HEAD"} and query.get("alt") == "media":
                return Route("bucket.get", get_media, bucket, decode("/".join(name)))
            return _pick(method, _OBJECT, bucket, decode("/".join(name)))
    raise StorageError(404, "notFound", "Not Found")


def _upload(method: str, bucket: str, query: Mapping[str, str]) -> Route:
    if query.get("upload_id"):
        kind, handler = _choose(
            method,
            {
                "PUT": ("bucket.upload.chunk", put_chunk),
                "POST": ("bucket.upload.chunk", put_chunk),
                "DELETE": ("bucket.upload.cancel", cancel_resumable),
            },
        )
        return Route(kind, handler, bucket)
    if method not in {"POST", "PUT"} or query.get("uploadType") not in _UPLOADS:
        raise bad_request(f"Invalid value for uploadType: {query.get('uploadType')!r}")
    kind, handler = _UPLOADS[query["uploadType"]]
    return Route(kind, handler, bucket, query.get("name", ""))


def _pick(method: str, table: Mapping[str, tuple[str, Handler]], bucket: str = "", name: str = "") -> Route:
    kind, handler = _choose(method, table)
    return Route(kind, handler, bucket, name)


def _choose(method: str, table: Mapping[str, tuple[str, Handler]]) -> tuple[str, Handler]:
    try:
        return table[method]
    except KeyError:
        raise StorageError(405, "methodNotAllowed", f"{method} is not possible here.") from None


def decode(segment: str) -> str:
    """Decode a segment of a path.

    :raises StorageError: 400 if it is not UTF-8.
    """
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise bad_request("The path is not valid UTF-8.") from None
