# SPDX-License-Identifier: Apache-2.0
"""The faults that any HTTP response can have: outages, resets, hangs, and slow, truncated or foreign bodies.

Each comes before or after the call is processed; for a submit this decides whether the generation was
purchased. A name that ends in ``_after`` processes the call first.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from wan_sandbox.control.faults import FaultKind, FaultRule

Process = Callable[[], Awaitable[web.StreamResponse]]
#: Builds the JSON of an error response: (status, parameters of the rule) -> body.
ErrorJson = Callable[[int, Mapping[str, Any]], Any]

_STATUS = frozenset({"status", "body", "retry_after", "error_code", "error_message", "shape", "text"})
_REDIRECT = frozenset({"location", "status"})

#: The calls that travel over HTTP; ``generation`` is not a call: its faults decide how a purchase ends.
HTTP_CALLS = ("submit", "status", "result", "cancel", "model", "models", "balance", "media", "bucket.*")

#: The faults of this module, for :meth:`FaultBook.register`.
TRANSPORT_FAULTS = tuple(
    FaultKind(name, about, params, HTTP_CALLS)
    for name, about, params in (
        ("status", "an error answer (or any other status) and nothing is processed", _STATUS),
        ("status_after", "processed, and then an error answer", _STATUS),
        ("reset", "the connection is cut, nothing is processed", frozenset({"clean"})),
        ("reset_after", "processed, then the connection is cut: the lost answer", frozenset({"clean"})),
        ("hang", "no answer until the client leaves, nothing is processed", frozenset({"seconds"})),
        ("hang_after", "processed, and no answer until the client leaves", frozenset({"seconds"})),
        ("html", "HTTP 200 with a login page, nothing is processed", frozenset({"status"})),
        ("html_after", "processed, then HTTP 200 with a login page", frozenset({"status"})),
        ("empty", "HTTP 200 with no body, nothing is processed", frozenset({"status"})),
        ("empty_after", "processed, then HTTP 200 with no body", frozenset({"status"})),
        ("redirect", "a redirect, nothing is processed", _REDIRECT),
        ("redirect_after", "processed, then a redirect", _REDIRECT),
        ("drip", "the true answer, a few bytes at a time", frozenset({"every_s", "bytes", "first_bytes"})),
        ("cut_json", "the true answer, cut in the middle", frozenset({"keep", "honest"})),
        ("delay", "the true answer, but late", frozenset({"seconds"})),
    )
)

#: A private address that no test machine serves: the default target of ``redirect``.
PRIVATE_ADDRESS = "http://169.254.169.254/latest/meta-data/"
LOGIN_PAGE = (
    "<!doctype html><html><head><title>Sign in</title></head><body><h1>Sign in to continue</h1>"
    "<form><input name=user><input name=password type=password></form></body></html>\n"
)
_NO_LINGER = struct.pack("ii", 1, 0)


async def play(request: web.Request, rule: FaultRule, process: Process, *, error_json: ErrorJson) -> web.StreamResponse:
    """Answer a call with the fault of ``rule``. Faults of other modules are left to the server.

    :param process: processes the call and returns the real response.
    :param error_json: how this server writes errors.
    """
    if rule.fault == "delay":
        await asyncio.sleep(float(rule.params.get("seconds", 1)))
        return await process()
    if rule.fault in {"drip", "cut_json"}:
        answer = await _processed(process)
        return await (_drip if rule.fault == "drip" else _cut)(request, rule.params, answer)
    if rule.fault.endswith("_after"):
        answer = await _processed(process)
        if answer.prepared and rule.fault not in {"reset_after", "hang_after"}:
            return answer  # A stream that was already sent cannot be replaced.
    return await _replace(request, rule, error_json, process)


async def _replace(
    request: web.Request, rule: FaultRule, error_json: ErrorJson, process: Process
) -> web.StreamResponse:
    """Replace the real response by another one."""
    params = rule.params
    match rule.fault.removesuffix("_after"):
        case "status":
            return status_answer(params, error_json)
        case "reset":
            return cut_connection(request, clean=bool(params.get("clean", False)))
        case "hang":
            return await hang(request, seconds=params.get("seconds"))
        case "html":
            return web.Response(status=int(params.get("status", 200)), text=LOGIN_PAGE, content_type="text/html")
        case "empty":
            return web.Response(status=int(params.get("status", 200)))
        case "redirect":
            location = str(params.get("location", PRIVATE_ADDRESS))
            return web.Response(status=int(params.get("status", 302)), headers={"Location": location})
        case _:
            return await process()


async def _processed(process: Process) -> web.StreamResponse:
    try:
        return await process()
    except web.HTTPException as answer:
        return answer


def status_answer(params: Mapping[str, Any], error_json: ErrorJson) -> web.Response:
    """Build the response of the fault ``status``: any status, body and ``Retry-After``."""
    status = int(params.get("status", 503))
    headers = {"Retry-After": str(params["retry_after"])} if "retry_after" in params else {}
    kind = params.get("body", "json")
    if kind == "json":
        body = json.dumps(error_json(status, params))
        return web.Response(status=status, headers=headers, text=body, content_type="application/json")
    if kind == "html":
        page = str(params.get("text", f"<html><body><h1>{status} Sandbox outage</h1></body></html>"))
        return web.Response(status=status, headers=headers, text=page, content_type="text/html")
    text = "" if kind == "empty" else str(params.get("text", "upstream connect error or disconnect"))
    return web.Response(status=status, headers=headers, text=text, content_type="text/plain")


def cut_connection(request: web.Request, *, clean: bool = False) -> web.StreamResponse:
    """Drop the client's connection: with a reset, or with ``clean`` by just closing it."""
    transport = request.transport
    if transport is not None:
        raw = transport.get_extra_info("socket")
        if raw is not None and not clean:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
    return web.Response()  # never arrives


async def hang(request: web.Request, *, seconds: float | None = None) -> web.StreamResponse:
    """Send nothing until the client disconnects, or for a number of seconds; then drop the connection."""
    waited_s = 0.0
    while (seconds is None or waited_s < float(seconds)) and is_connected(request):
        await asyncio.sleep(0.05)
        waited_s += 0.05
    return cut_connection(request)


def is_connected(request: web.Request) -> bool:
    """Return whether the client is still connected."""
    return request.transport is not None and not request.transport.is_closing()


async def write_slowly(
    request: web.Request, answer: web.StreamResponse, body: bytes, *, every_s: float, step: int
) -> None:
    """Write ``step`` bytes, wait, and repeat until the end or until the client disconnects."""
    for start in range(0, len(body), step):
        if not is_connected(request):
            return
        await answer.write(body[start : start + step])
        await asyncio.sleep(every_s)


async def _drip(request: web.Request, params: Mapping[str, Any], answer: web.StreamResponse) -> web.StreamResponse:
    body = body_of(answer)
    if body is None:
        return answer
    first = int(params.get("first_bytes", 0))
    slow = web.StreamResponse(status=answer.status, headers=answer.headers)
    slow.content_length = len(body)
    await slow.prepare(request)
    if first:
        await slow.write(body[:first])
    every_s, step = float(params.get("every_s", 0.5)), int(params.get("bytes", 1))
    await write_slowly(request, slow, body[first:], every_s=every_s, step=step)
    return slow


async def _cut(request: web.Request, params: Mapping[str, Any], answer: web.StreamResponse) -> web.StreamResponse:
    """Send a part of the response: with the length of the part (``honest``), or with the full length and then
    a cut.
    """
    body = body_of(answer)
    if body is None:
        return answer
    kept = body[: int(len(body) * float(params.get("keep", 0.5)))]
    honest = bool(params.get("honest", True))
    cut = web.StreamResponse(status=answer.status, headers=answer.headers)
    cut.content_length = len(kept) if honest else len(body)
    await cut.prepare(request)
    await cut.write(kept)
    if not honest:
        await asyncio.sleep(0.02)  # lets the kernel send the part before the connection closes
        cut_connection(request, clean=True)
    return cut


def body_of(answer: web.StreamResponse) -> bytes | None:
    """Return the body of a response that was not sent yet; None for a stream."""
    if answer.prepared or not isinstance(answer, web.Response):
        return None
    return bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else (answer.text or "").encode()
