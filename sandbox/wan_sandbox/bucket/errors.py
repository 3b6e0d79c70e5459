# SPDX-License-Identifier: Apache-2.0
"""Errors of Cloud Storage, in the JSON and XML formats that its clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from xml.sax.saxutils import escape

from aiohttp import web


class StorageError(Exception):
    """A response other than success.

    :param status: HTTP status.
    :param reason: the API's reason, e.g. ``conditionNotMet``.
    :param message: in the words of Cloud Storage.
    :param xml_code: the code of the XML API where it is not the usual one, e.g. ``ExpiredToken``.
    :param details: further text, for the XML API only.
    :param headers: of the response.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        xml_code: str = "",
        details: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.xml_code = xml_code or _XML_CODES.get(status, "InternalError")
        self.details = details
        self.headers = headers

    def as_json(self) -> web.Response:
        """Return the error in the format of the JSON API."""
        if self.status == 304:  # Not Modified has no body
            return web.Response(status=304)
        entry = {"message": self.message, "domain": "global", "reason": self.reason}
        if self.reason == "conditionNotMet":
            entry |= {"locationType": "header", "location": "If-Match"}
        body = {"error": {"code": self.status, "message": self.message, "errors": [entry]}}
        return web.Response(
            status=self.status,
            body=json.dumps(body).encode(),
            content_type="application/json",
            charset="UTF-8",
            headers=self.headers,
        )

    def as_xml(self) -> web.Response:
        """Return the error in the format of the XML API, which public and signed links use."""
        if self.status == 304:
            return web.Response(status=304)
        details = f"<Details>{escape(self.details)}</Details>" if self.details else ""
        body = (
            "<?xml version='1.0' encoding='UTF-8'?>"
            f"<Error><Code>{self.xml_code}</Code><Message>{escape(self.message)}</Message>{details}</Error>"
        )
        return web.Response(
            status=self.status,
            body=body.encode(),
            content_type="application/xml",
            charset="UTF-8",
            headers=self.headers,
        )


_XML_CODES = {
    400: "InvalidArgument",
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "Conflict",
    411: "MissingContentLength",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "SlowDown",
    503: "ServiceUnavailable",
}


def bad_request(message: str) -> StorageError:
    """Return a 400: something in the request cannot be parsed."""
    return StorageError(400, "invalid", message)


def no_such_bucket(bucket: str) -> StorageError:
    """Return a 404: the bucket does not exist."""
    return StorageError(404, "notFound", f"The specified bucket does not exist: {bucket}", xml_code="NoSuchBucket")


def no_such_object(bucket: str, name: str) -> StorageError:
    """Return a 404: the object, or that generation of it, does not exist."""
    return StorageError(404, "notFound", f"No such object: {bucket}/{name}")


def precondition_failed() -> StorageError:
    """Return a 412: a condition of the request does not hold."""
    return StorageError(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")


def not_modified() -> StorageError:
    """Return a 304: the condition of a read says that the caller already has this version."""
    return StorageError(304, "notModified", "Not Modified")


def mutation_rate(bucket: str, name: str) -> StorageError:
    """Return a 429: more than about one update per second of one object."""
    return StorageError(
        429,
        "rateLimitExceeded",
        f"The object {bucket}/{name} exceeded the rate limit for object mutation operations "
        "(create, update, and delete). Please reduce your request rate.",
    )


def quota_exceeded() -> StorageError:
    """Return a 429: the project exceeds its quota."""
    return StorageError(
        429, "rateLimitExceeded", "The project exceeded the rate limit for requests. Please retry later."
    )


def forbidden(what: str) -> StorageError:
    """Return a 403: the caller lacks a role."""
    return StorageError(
        403,
        "forbidden",
        f"Anonymous caller does not have access to {what}. Permission denied on resource (or it may not exist).",
    )


def range_not_satisfiable(size: int) -> StorageError:
    """Return a 416: the range starts after the end."""
    return StorageError(
        416,
        "requestedRangeNotSatisfiable",
        "Request range not satisfiable",
        headers={"Content-Range": f"bytes */{size}"},
    )


def checksum_mismatch(kind: str, given: str, computed: str) -> StorageError:
    """Return a 400: the bytes that arrived differ from the client's checksum."""
    return StorageError(
        400,
        "invalid",
        f"Provided {kind} hash {given!r} doesn't match calculated {kind} hash {computed!r}.",
        xml_code="BadDigest",
    )
