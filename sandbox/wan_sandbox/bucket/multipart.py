# SPDX-License-Identifier: Apache-2.0
"""Streaming parser of a ``multipart/related`` upload: metadata first, then the object's bytes."""

from __future__ import annotations

import re
from email.parser import BytesParser
from typing import Any

from wan_sandbox.bucket.errors import StorageError, bad_request
from wan_sandbox.bucket.wire import read_json

MAX_HEAD_BYTES = 4 * 1024 * 1024
"""Bound on everything before the object's bytes."""

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class RelatedParser:
    """Feed it the body; it returns the object's bytes, and has the metadata as soon as they start.

    :param content_type: header of the request, which names the boundary.
    :raises StorageError: 400, here and in every method, if the body is malformed.
    """

    def __init__(self, content_type: str) -> None:
        found = re.search(r"boundary=(?:\"([^\"]+)\"|'([^']+)'|([^;\s]+))", content_type)
        if found is None:
            raise bad_request("A multipart upload needs a boundary in its Content-Type.")
        boundary = next(group for group in found.groups() if group).encode()
        self._first = b"--" + boundary
        self._delimiter = b"\n--" + boundary
        self._buffer = bytearray()
        self._ended = False
        self.metadata: dict[str, Any] | None = None
        self.content_type: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Add the next bytes of the body, and return the complete bytes of the object."""
        self._buffer += data
        if self.metadata is None and not self._read_head():
            return b""
        if self._ended:
            return b""
        return self._read_payload()

    def finish(self) -> None:
        """Check that the body is complete."""
        if not self._ended:
            raise bad_request("The multipart body ended before its last boundary.")

    def _read_head(self) -> bool:
        """Parse both part headers and the metadata once they are complete."""
        start = self._buffer.find(self._first)
        first = _BLANK_LINE.search(self._buffer, max(start, 0))
        middle = -1 if first is None else self._buffer.find(self._delimiter, first.end())
        second = None if middle < 0 else _BLANK_LINE.search(self._buffer, middle)
        if first is None or second is None:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise bad_request("The metadata of the multipart upload is too long.")
            return False
        self.metadata = read_json(bytes(self._buffer[first.end() : middle]))
        head_starts = self._buffer.find(b"\n", middle + 1) + 1
        headers = BytesParser().parsebytes(bytes(self._buffer[head_starts : second.end()]))
        if headers.get("Content-Transfer-Encoding", "binary").lower() not in {"binary", "8bit", "7bit"}:
            raise StorageError(400, "invalid", "Content-Transfer-Encoding must be binary.")
        self.content_type = headers.get("Content-Type")
        del self._buffer[: second.end()]
        return True

    def _read_payload(self) -> bytes:
        at = self._buffer.find(self._delimiter)
        # The line break before the boundary belongs to it, and may be \r\n or \n.
        if at < 0:
            keep = min(len(self._buffer), len(self._delimiter) + 1)
            sure = len(self._buffer) - keep
            payload = bytes(memoryview(self._buffer)[:sure])
            del self._buffer[:sure]
            return payload
        after = at + len(self._delimiter)
        if len(self._buffer) < after + 2:
            payload_end = max(0, at - 1)
            payload = bytes(self._buffer[:payload_end])
            del self._buffer[:payload_end]
            return payload
        if self._buffer[after : after + 2] != b"--":
            raise bad_request("A multipart upload has exactly two parts.")
        payload = bytes(self._buffer[: at - 1 if at and self._buffer[at - 1] == 0x0D else at])
        self._ended = True
        self._buffer.clear()
        return payload
