# SPDX-License-Identifier: Apache-2.0
"""Serves the videos under ``/media``: public links that expire, with ETag, Range and If-Range."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from email.utils import formatdate

from aiohttp import web

from wan_sandbox.control.faults import FaultRule
from wan_sandbox.control.transport import LOGIN_PAGE, cut_connection, hang, is_connected, play
from wan_sandbox.runcomfy.api_faults import error_json
from wan_sandbox.runcomfy.generations import Generation, Phase
from wan_sandbox.runcomfy.media_faults import Plan, spoil_file, spoil_sending
from wan_sandbox.runcomfy.studio import Video, WebMVideo
from wan_sandbox.runcomfy.world import World

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")
_NAME = re.compile(r"(video|image)-(\d{1,3})(?:\.(mp4|webm|png))?\Z")
_EXPIRED = '<?xml version="1.0"?><Error><Code>ExpiredToken</Code><Message>Request has expired</Message></Error>'
#: The smallest PNG: one transparent pixel, for models that also give out an image.
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d4944415478da63fcffff3f030005fe02fea1399d1e0000000049454e44ae426082"
)


def link(world: World, origin: str, generation: Generation, name: str) -> str:
    """Build a fresh public link to a file of a result.

    :param origin: scheme, host and port that the client sees.
    """
    expires = str(int(time.time() + world.settings.link_ttl_seconds))
    path = f"/media/{generation.request_id}/{name}"
    return f"{origin}{path}?Expires={expires}&Signature={_signature(world, path, expires)}"


def _signature(world: World, path: str, expires: str) -> str:
    return hmac.new(world.secret, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()


class Media:
    """The handler of ``/media``."""

    def __init__(self, world: World) -> None:
        self._world = world

    def add_routes(self, app: web.Application) -> None:
        """Serve ``GET /media/{request_id}/{name}``."""
        app.router.add_get("/media/{request_id}/{name}", self.serve)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one download, or a part of one."""
        world, request_id = self._world, request.match_info["request_id"]
        world.ledger.calls["media"] += 1
        world.ledger.check_waited("media", request_id)
        leak = self._leak(request)
        if leak is not None:
            return leak
        generation = world.generations.get(request_id)
        subject = generation.subject() if generation else {}
        rule = world.faults.pick("media", request_id, subject)
        if rule is None:
            return await self._file(request, generation, None)
        world.ledger.faults[f"media:{rule.fault}"] += 1
        if rule.fault == "drip":
            return await self._file(request, generation, rule)
        answer = await play(request, rule, lambda: self._file(request, generation, rule), error_json=error_json)
        if "Retry-After" in answer.headers:
            world.ledger.tell_to_wait("media", request_id, answer.headers["Retry-After"])
        return answer

    def _leak(self, request: web.Request) -> web.Response | None:
        """Refuse a download that brings a token along: storage hosts must never see one."""
        ledger, where = self._world.ledger, ""
        if "Authorization" in request.headers:
            where = "Authorization"
        elif any(token in request.raw_path for token in self._world.tokens):
            where = "URL"
        if not where:
            return None
        ledger.see_leaked_token(path=request.path, where=where)
        return web.Response(status=400, text="A credential was sent to a public link.\n")

    async def _file(
        self, request: web.Request, generation: Generation | None, rule: FaultRule | None
    ) -> web.StreamResponse:
        name = _NAME.match(request.match_info["name"])
        if generation is None or name is None:
            return web.Response(status=404, text="Not found\n")
        fault = rule.fault if rule else ""
        if fault == "expired" or not self._is_valid(request):
            return web.Response(status=403, text=_EXPIRED, content_type="application/xml")
        if fault == "login_page":
            status = int(rule.params.get("status", 200)) if rule else 200
            return web.Response(status=status, text=LOGIN_PAGE, content_type="text/html")
        if generation.phase is not Phase.SUCCEEDED:
            return web.Response(status=404, text="Not found\n")
        if name.group(1) == "image":
            return web.Response(body=_PNG, content_type="image/png")
        is_webm = name.group(3) == "webm"
        video: Video = WebMVideo() if is_webm else await self._world.video(generation, int(name.group(2)))
        content_type = "video/webm" if is_webm else "video/mp4"
        plan = self._plan(request, generation, video, content_type, rule)
        if isinstance(plan, web.Response):
            return plan
        if rule is not None:
            spoil_sending(rule, plan)
        return await send(request, plan)

    def _is_valid(self, request: web.Request) -> bool:
        expires, signature = request.query.get("Expires", ""), request.query.get("Signature", "")
        right = hmac.compare_digest(signature.encode(), _signature(self._world, request.path, expires).encode())
        return right and time.time() < int(expires)

    def _plan(
        self,
        request: web.Request,
        generation: Generation,
        video: Video,
        content_type: str,
        rule: FaultRule | None,
    ) -> Plan | web.Response:
        if rule is not None:
            video = spoil_file(rule, video)
        size, etag = video.size_bytes, f'"{video.etag}"'
        modified = formatdate(generation.finished_at or 0, usegmt=True)
        headers = {"Content-Type": content_type, "ETag": etag, "Last-Modified": modified}
        wants_part = not (rule and rule.fault in {"no_ranges", "endless"})
        headers["Accept-Ranges"] = "bytes" if wants_part else "none"
        part = None
        if wants_part and request.headers.get("If-Range", etag) in {etag, modified}:
            part = _part(request.headers.get("Range", ""), size)
        if part is None:
            return Plan(video, headers, 0, size)
        start, stop = part
        if start >= stop:
            headers = {"Content-Range": f"bytes */{size}", "ETag": etag}
            return web.Response(status=416, headers=headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Plan(video, headers, start, stop, status=206)


def _part(header: str, size: int) -> tuple[int, int] | None:
    """Read a Range header as (start, stop); None means the whole file, start >= stop that nothing fits."""
    match = _RANGE.match(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size if int(last) else 0
    stop = min(size, int(last) + 1) if last else size
    return int(first), stop


async def send(request: web.Request, plan: Plan) -> web.StreamResponse:
    """Send a file according to its plan."""
    answer = web.StreamResponse(status=plan.status, headers=plan.headers)
    if plan.length is None:
        answer.enable_chunked_encoding()
    else:
        answer.content_length = plan.length
    if plan.latency_s:
        await asyncio.sleep(plan.latency_s)
    await answer.prepare(request)
    if request.method == "HEAD":
        return answer
    ends = [at for at in (plan.cut_after, plan.stall_after) if at is not None]
    stop = min([plan.stop, *(plan.start + at for at in ends)])
    await _write(request, answer, plan, stop)
    if plan.stall_after is not None:
        return await hang(request, seconds=plan.stall_s)
    if plan.cut_after is not None or (plan.length is not None and plan.length > stop - plan.start):
        await asyncio.sleep(0.02)  # lets the kernel send the written bytes before the connection is closed
        return cut_connection(request, clean=True)
    return answer


async def _write(request: web.Request, answer: web.StreamResponse, plan: Plan, stop: int) -> None:
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    for chunk in plan.video.read(plan.start, stop):
        for start in range(0, len(chunk), plan.step or len(chunk)):
            if not is_connected(request):
                return
            piece = chunk[start : start + (plan.step or len(chunk))]
            await answer.write(piece)
            sent += len(piece)
            if plan.step:
                await asyncio.sleep(plan.every_s)
            elif plan.bytes_per_s:
                await asyncio.sleep(max(0.0, began + sent / plan.bytes_per_s - loop.time()))
