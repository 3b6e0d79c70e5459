# SPDX-License-Identifier: Apache-2.0
"""Batches: many small calls in one ``multipart/mixed`` request, as ``client.batch()`` sends them."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.parser import BytesParser
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web
from multidict import CIMultiDict

from wan_sandbox.bucket.errors import bad_request

MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """One call of a batch."""

    method: str
    raw_path: str
    query: dict[str, str]
    headers: CIMultiDict[str]
    body: bytes


async def answer_batch(
    request: web.Request, perform_part: Callable[[Part], Awaitable[web.StreamResponse]]
) -> web.Response:
    """Process the calls of a batch in order, and answer them in one response.

    :raises StorageError: 400 for a body that is not a batch.
    """
    parts = read_parts(request.headers.get("Content-Type", ""), await request.read())
    boundary = f"batch_{secrets.token_hex(8)}"
    lines: list[bytes] = []
    for number, part in enumerate(parts):
        answer = await perform_part(part)
        lines.append(
            f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n".encode()
        )
        lines.append(_write(answer) + b"\r\n")
    lines.append(f"--{boundary}--\r\n".encode())
    headers = {"Content-Type": f"multipart/mixed; boundary={boundary}"}
    return web.Response(body=b"".join(lines), headers=headers)


def read_parts(content_type: str, body: bytes) -> list[Part]:
    """Parse a batch request.

    :raises StorageError: 400.
    """
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    if not message.is_multipart():
        raise bad_request("A batch must be multipart/mixed.")
    found: Any = message.get_payload()
    if len(found) > MAX_PARTS:
        raise bad_request(f"A batch has at most {MAX_PARTS} calls.")
    return [_read(str(part.get_payload()).encode("utf-8", "surrogateescape")) for part in found]


def _read(text: bytes) -> Part:
    first, _, rest = text.lstrip().partition(b"\n")
    words = first.decode("utf-8", "replace").split()
    if len(words) < 2:
        raise bad_request("A part of a batch must begin with a request line.")
    address = urlsplit(words[1])
    inner = BytesParser().parsebytes(rest)
    return Part(
        method=words[0],
        raw_path=address.path,
        query=dict(parse_qsl(address.query, keep_blank_values=True)),
        headers=CIMultiDict({key: str(value) for key, value in inner.items()}),
        body=str(inner.get_payload()).encode("utf-8", "surrogateescape").strip(),
    )


def _write(answer: web.StreamResponse) -> bytes:
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = "Unknown"
    body = answer.body if isinstance(answer, web.Response) else b""
    body = bytes(body) if isinstance(body, bytes | bytearray) else b""
    kind = answer.headers.get("Content-Type", "application/json; charset=UTF-8")
    head = f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
