# SPDX-License-Identifier: Apache-2.0
"""Access to links: public buckets allow anonymous reads; everything else needs a V4 signed URL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from wan_sandbox.bucket.call import Call
from wan_sandbox.bucket.errors import StorageError, forbidden
from wan_sandbox.bucket.store import Bucket

ALGORITHMS = frozenset({"GOOG4-RSA-SHA256", "GOOG4-HMAC-SHA256"})
MAX_EXPIRES_S = 7 * 24 * 3600
"""The longest that a V4 signed URL may live in Cloud Storage."""
CLOCK_SKEW = timedelta(minutes=15)
_PARTS = ("credential", "date", "expires", "signedheaders", "signature")


def check_access(call: Call, home: Bucket) -> None:
    """Check the signature of a link.

    The signature must be present and well-formed, but is not verified: the server has no keys.

    :raises StorageError: 400 for an expired or malformed signed URL, 403 for an unsigned one on a private bucket or one
        that writes.
    """
    signed = {
        key.lower().removeprefix("x-goog-"): value
        for key, value in call.query.items()
        if key.lower().startswith("x-goog-")
    }
    if "algorithm" in signed or "signature" in signed:
        _check_signed(signed, call.headers)
    elif not (home.public and call.request.method in {"GET", "HEAD"}):
        raise forbidden(f"{call.bucket}/{call.name}")


def _check_signed(signed: Mapping[str, str], headers: Mapping[str, str]) -> None:
    if signed.get("algorithm") not in ALGORITHMS:
        raise _malformed(f"X-Goog-Algorithm must be one of {', '.join(sorted(ALGORITHMS))}")
    for part in _PARTS:
        if not signed.get(part):
            raise _malformed(f"X-Goog-{part} is missing")
    try:
        begins = datetime.strptime(signed["date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expires_s = int(signed["expires"])
        bytes.fromhex(signed["signature"])
    except ValueError:
        raise _malformed("X-Goog-Date, X-Goog-Expires or X-Goog-Signature cannot be read") from None
    if not 0 < expires_s <= MAX_EXPIRES_S:
        raise _malformed(f"X-Goog-Expires must be between 1 and {MAX_EXPIRES_S} seconds")
    ends = begins + timedelta(seconds=expires_s)
    now = datetime.now(UTC)
    if now >= ends:
        raise StorageError(
            400,
            "invalid",
            "Invalid argument.",
            xml_code="ExpiredToken",
            details=f"The provided token has expired. Request signature expired at: {ends.isoformat()}",
        )
    if now < begins - CLOCK_SKEW:
        raise StorageError(403, "forbidden", "The signed URL is not valid yet.", xml_code="AccessDenied")
    missing = [name for name in signed["signedheaders"].split(";") if name not in headers]
    if missing:
        raise StorageError(
            403,
            "forbidden",
            "The request signature we calculated does not match the signature you provided. "
            f"Signed header not sent: {missing[0]}",
            xml_code="SignatureDoesNotMatch",
        )


def _malformed(details: str) -> StorageError:
    return StorageError(400, "invalid", "Invalid argument.", details=details)
