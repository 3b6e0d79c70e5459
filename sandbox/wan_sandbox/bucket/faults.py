# SPDX-License-Identifier: Apache-2.0
"""Faults of the bucket: those of any HTTP response, and those of storage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.call import Call
from wan_sandbox.bucket.errors import (
    StorageError,
    forbidden,
    precondition_failed,
    quota_exceeded,
)
from wan_sandbox.control.faults import FaultKind
from wan_sandbox.control.transport import TRANSPORT_FAULTS, cut_connection, play

_BUCKET = ("bucket.*",)
_CHANGES = ("bucket.upload", "bucket.upload.chunk", "bucket.delete", "bucket.update", "bucket.co*")

#: All kinds of faults of a bucket, for :meth:`FaultBook.register`.
BUCKET_FAULTS = (
    *TRANSPORT_FAULTS,
    FaultKind(
        "corrupt",
        "one byte is flipped: in the stored object (at=rest, the checksums stay), or on the wire (at=wire)",
        frozenset({"at"}),
        ("bucket.get", "bucket.upload", "bucket.upload.chunk"),
    ),
    FaultKind("precondition", "412, nothing is processed", calls=_BUCKET),
    FaultKind("quota", "429 with Google's words, nothing is processed", calls=_BUCKET),
    FaultKind("forbidden", "403 with Google's words, nothing is processed", calls=_BUCKET),
    FaultKind("lost_ack", "processed, then the connection is cut: an ambiguous write", calls=_BUCKET),
    FaultKind(
        "write_rate",
        "429 for a change of an object that was changed less than interval_s (1) before",
        frozenset({"interval_s"}),
        _CHANGES,
    ),
)

Handler = Callable[[Call], Awaitable[web.StreamResponse]]


async def perform(call: Call, handler: Handler, *, as_xml: bool) -> web.StreamResponse:
    """Process a call, with the fault of its rule.

    :param as_xml: the format of errors: XML for links, JSON for everything else.
    """
    say = StorageError.as_xml if as_xml else StorageError.as_json

    async def process() -> web.StreamResponse:
        try:
            return await handler(call)
        except StorageError as error:
            return say(error)

    rule = call.rule
    if rule is None or rule.fault in {"corrupt", "write_rate"}:
        return await process()
    match rule.fault:
        case "precondition":
            return say(precondition_failed())
        case "quota":
            return say(quota_exceeded())
        case "forbidden":
            return say(forbidden(f"{call.bucket}/{call.name}"))
        case "lost_ack":
            answer = await process()
            return answer if answer.status >= 400 else cut_connection(call.request)
        case _:
            return await play(call.request, rule, process, error_json=google_error)


def google_error(status: int, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of an artificial error, as Google writes it."""
    message = str(params.get("error_message", "We encountered an internal error. Please try again."))
    reason = str(params.get("error_code", "backendError"))
    entry = {"message": message, "domain": "global", "reason": reason}
    return {"error": {"code": status, "message": message, "errors": [entry]}}
