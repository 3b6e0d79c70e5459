# SPDX-License-Identifier: Apache-2.0
"""A bucket: the Cloud Storage JSON API as ``google-cloud-storage`` uses it.

It enforces preconditions, pages listings, resumes uploads, verifies checksums, and serves requests
concurrently. ``STORAGE_EMULATOR_HOST`` points the client here.

===========  ===================================================================== ``content``  the bytes of
objects, in memory or in temporary files ``store``    buckets and objects; the only module that changes them
``routes``   the handler of each path ``upload``, ``resumable``, ``download``, ``listing``, ``objects``,
``buckets``, ``batch``: the handlers ``faults``   the faults of storage ``control``  the routes under
``/_sandbox/`` ===========  =====================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

from aiohttp import ClientPayloadError, web

from wan_sandbox.bucket.batch import Part, answer_batch
from wan_sandbox.bucket.call import Call, Counts, Emulator, Shape
from wan_sandbox.bucket.control import add_control_routes
from wan_sandbox.bucket.errors import StorageError
from wan_sandbox.bucket.faults import BUCKET_FAULTS, perform
from wan_sandbox.bucket.resumable import read_chunk_range, session_name, start_resumable
from wan_sandbox.bucket.routes import Route, find_route
from wan_sandbox.bucket.store import Store
from wan_sandbox.bucket.upload import open_multipart, upload_multipart
from wan_sandbox.control.faults import FaultBook, FaultRule
from wan_sandbox.control.routes import add_fault_routes

MAX_JSON_BYTES = 64 * 1024 * 1024
"""Bound on bodies that are read at once: resources and batches. Objects are streamed, without a bound."""

EMULATOR: web.AppKey[Emulator] = web.AppKey("emulator", Emulator)


def bucket_app(
    faults: FaultBook,
    *,
    buckets: Iterable[str] = (),
    public: bool = True,
    latency_s: float = 0.0,
    bytes_per_s: float = 0.0,
    write_interval_s: float = 0.0,
) -> web.Application:
    """Build the bucket's server.

    :param faults: fault rules; calls are named ``bucket.get``, ``bucket.metadata``, ``bucket.upload``,
        ``bucket.upload.start``, ``bucket.upload.chunk``, ``bucket.list``, ``bucket.delete``, ``bucket.update``,
        ``bucket.compose``, ``bucket.copy`` and ``bucket.admin``.
    :param buckets: created at the start and after each reset.
    :param public: whether unsigned links may be read; ``POST /_sandbox/buckets`` sets it for one bucket.
    :param latency_s: time before each response, default 0.
    :param bytes_per_s: limit for each upload and download; default 0, no limit.
    :param write_interval_s: minimum time between two changes of one object, else 429; default 0, no limit (Cloud
        Storage accepts about one per second).
    """
    faults.register(BUCKET_FAULTS)
    store = Store(public=public, write_interval_s=write_interval_s)
    names = tuple(buckets)
    for name in names:
        store.create_bucket(name)
    emulator = Emulator(store=store, faults=faults, shape=Shape(latency_s, bytes_per_s), counts=Counts())

    async def serve(request: web.Request) -> web.StreamResponse:
        return await _serve(emulator, request)

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        yield
        store.contents.close()

    app = web.Application(client_max_size=MAX_JSON_BYTES)
    app[EMULATOR] = emulator
    app.cleanup_ctx.append(lifetime)
    add_control_routes(app, emulator, names)
    add_fault_routes(app, faults)
    app.router.add_route("*", "/{path:.*}", serve)
    return app


async def _serve(emulator: Emulator, request: web.Request) -> web.StreamResponse:
    if emulator.shape.latency_s > 0:
        await asyncio.sleep(emulator.shape.latency_s)
    raw_path = request.raw_path.partition("?")[0]
    if raw_path.startswith("/batch/storage/v1"):
        try:
            return await answer_batch(request, lambda part: _answer_part(emulator, request, part))
        except StorageError as error:
            return error.as_json()
    return await _answer(
        emulator,
        request,
        method=request.method,
        raw_path=raw_path,
        query=request.query,
        headers=request.headers,
    )


async def _answer_part(emulator: Emulator, request: web.Request, part: Part) -> web.StreamResponse:
    return await _answer(
        emulator,
        request,
        method=part.method,
        raw_path=part.raw_path,
        query=part.query,
        headers=part.headers,
        body=part.body,
    )


async def _answer(
    emulator: Emulator,
    request: web.Request,
    *,
    method: str,
    raw_path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> web.StreamResponse:
    """Answer one call: a request or a part of a batch."""
    try:
        route = find_route(method, raw_path, query)
    except StorageError as error:
        return error.as_json()
    call = Call(
        emulator=emulator,
        request=request,
        kind=route.kind,
        query=query,
        headers=headers,
        bucket=route.bucket,
        name=route.name,
        target=route.target,
        body=body,
    )
    emulator.counts.calls[call.kind] += 1
    try:
        call.name = call.name or await _name_in_body(call, route)
        call.rule = _pick_rule(call)
        answer = await perform(call, route.handler, as_xml=route.as_xml)
    except StorageError as error:
        answer = error.as_json()
    except (ConnectionError, ClientPayloadError):  # the client disconnected in the middle of its body
        answer = web.Response(status=499, reason="Client Closed Request")
    emulator.counts.statuses[f"{call.kind} {answer.status}"] += 1
    return answer


async def _name_in_body(call: Call, route: Route) -> str:
    """Return the object name of an upload whose path does not contain it; fault rules may need it."""
    if route.handler is upload_multipart:
        return await open_multipart(call)
    if route.handler is start_resumable:
        return str((await call.json()).get("name") or "")
    return session_name(call.emulator, call.query.get("upload_id", ""))


def _pick_rule(call: Call) -> FaultRule | None:
    """Return the fault rule that hits a call.

    A rule for ``bucket.upload`` matches every upload once, whatever its protocol: a resumable one is hit at
    the chunk that would complete it.
    """
    faults = call.emulator.faults
    subject = {"object": call.name, "name": call.name, "bucket": call.bucket, "target": call.target[1]}
    rule = faults.pick(call.kind, subject=subject)
    if rule is None and call.kind == "bucket.upload.chunk":
        try:
            completes = read_chunk_range(call.headers).is_last
        except StorageError:
            completes = False
        if completes:
            rule = faults.pick("bucket.upload", subject=subject)
    return rule
