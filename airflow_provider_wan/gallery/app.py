# SPDX-License-Identifier: Apache-2.0
"""The routes behind the tab. Airflow does not guard what a plugin mounts, so each route here guards itself.

Each requires the permission to read the Dag's XComs, and returns only objects that those of one run name. All work is
done in threads of the gallery's own, so that a slow bucket or image host never blocks those of Airflow's API.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from pydantic import BeforeValidator

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.gallery.card_list import CardList, PageQuery, RunView
from airflow_provider_wan.gallery.cards import Card, CardState, TaskInstanceKey, XComRef, file_name
from airflow_provider_wan.gallery.media import Access, Media, ThumbnailCache, VideoVersion
from airflow_provider_wan.gallery.pages import render_message, render_page
from airflow_provider_wan.gallery.run_cards import (
    MANIFEST,
    BatchStatus,
    cards_of,
    image_at,
    image_of_fields,
    problems_of,
    video_at,
    with_record,
)
from airflow_provider_wan.gallery.run_data import RequestStates, RunData
from airflow_provider_wan.gallery.workers import BoundedExecutor, QueueFullError

if TYPE_CHECKING:
    from requests import Response as HttpResponse

log = logging.getLogger(__name__)

_PRIVATE = {
    "Cache-Control": "private, no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_MEDIA_SOURCES = "'self' https://storage.googleapis.com https://*.storage.googleapis.com"
#: How long a picture may keep a connection of the browser, which has six for all of Airflow.
_PICTURE_WAIT_S = 0.5
_PIECE_BYTES = 256 * 1024
_PASSED_ON = ("Content-Length", "Content-Range")

_may_read_xcoms = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))

RunId = Annotated[str, Query(min_length=1, max_length=250)]
Text = Annotated[str, Query(max_length=250)]
#: An empty field of a form is 0.
Least = Annotated[float, BeforeValidator(lambda given: given or 0), Query(ge=0, allow_inf_nan=False)]
Key = Literal["", "return_value", "request", "failed", "refused", "manifest"]


async def _asked_page(
    dag_id: str,
    run_id: RunId,
    state: Text = "all",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
    name: Text = "",
    view: Literal["", "cards", "table", "models"] = "",
    model: Text = "",
    verdict: Literal["", "good", "bad", "none"] = "",
    cost: Least = 0.0,
    seconds: Least = 0.0,
    sort: Text = "",
) -> PageQuery:
    return PageQuery(dag_id, run_id, state, page, name.strip(), view, model, verdict, cost, seconds, sort)


async def _asked_xcom(
    task_id: Annotated[str, Query(min_length=1, max_length=250)],
    map_index: Annotated[int, Query(ge=-1)] = -1,
    key: Key = "return_value",
    index: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
) -> XComRef:
    return XComRef(task_id, map_index, key, index)


AskedPage = Annotated[PageQuery, Depends(_asked_page)]
AskedXCom = Annotated[XComRef, Depends(_asked_xcom)]

app = FastAPI(
    title="Videos of a Dag run",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[_may_read_xcoms],
)
_requests = BoundedExecutor("wan-gallery", threads=8, queued=64)
_readers = ThreadPoolExecutor(8, "wan-gallery-read")
_streams = ThreadPoolExecutor(16, "wan-gallery-stream")
_thumbnails = ThumbnailCache()
_states = RequestStates()

P = ParamSpec("P")
T = TypeVar("T")


async def _work(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in the gallery's own threads."""
    try:
        return await asyncio.wrap_future(_requests.submit(function, *args, **kwargs))
    except QueueFullError as error:
        raise HTTPException(503, "Many pages are being read; try again.", {"Retry-After": "2"}) from error


@app.exception_handler(HTTPException)
async def _on_error(request: Request, error: HTTPException) -> Response:
    """Return errors of pages as a page too: it is shown in a tab."""
    headers = {**_PRIVATE, **(error.headers or {})}
    if not request.url.path.endswith("/videos"):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=headers)
    text = {
        401: "You are not logged in to Airflow.",
        403: "You may not see the videos of this Dag: that takes permission to read its XComs.",
        404: "There is no such Dag run.",
    }.get(error.status_code, str(error.detail))
    return HTMLResponse(render_message(text), error.status_code, headers=headers)


# -- the page ----------------------------------------------------------------------------------------------


@app.get("/dags/{dag_id}/videos")
async def show_videos(session: SessionDep, query: AskedPage) -> HTMLResponse:
    """Show a page of a run's videos."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src 'self'; "
        f"media-src {_MEDIA_SOURCES}; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    )
    html = await _work(_render, session, query, nonce)
    return HTMLResponse(html, headers={**_PRIVATE, "Content-Security-Policy": policy})


def _render(session: Any, query: PageQuery, nonce: str) -> str:
    data = RunData(session, query.dag_id, query.run_id)
    if data.state() is None:
        # Airflow 3.1 puts a run id into the address as it is, and there a plus sign means a blank.
        query = replace(query, run_id=query.run_id.replace(" ", "+"))
        data = RunData(session, query.dag_id, query.run_id)
    if data.state() is None:
        raise HTTPException(404, "There is no such Dag run.")
    run = _read_run(data, query)
    shown, total = run.page(query)
    shown = data.completed(shown)
    fields = data.rendered(card.ref.task for card in shown if card.record)
    data.close()
    shown = list(_readers.map(lambda card: _with_record(card, fields), shown))
    return render_page(run, shown, query=query, total=total, nonce=nonce)


def _read_run(data: RunData, query: PageQuery) -> RunView:
    """Read the XComs and batch files of a run."""
    entries, tasks, is_over = data.entries(), data.tasks(), data.is_over()
    batches = data.batches(entries, tasks)
    cards = cards_of(entries, tasks, batches={batch.task for batch, _ in batches}, run_is_over=is_over)
    if query.is_narrow or query.sort:  # all cards need the image and the model that their task was given
        cards = data.completed(cards)
    data.close()
    images = list(_readers.map(lambda batch: _images(*batch), batches))
    return RunView(
        cards,
        [(batch, found) for (batch, _), found in zip(batches, images, strict=True)],
        is_over=is_over,
        problems=problems_of([batch for batch, _ in batches], entries),
        uses_provider=bool(tasks or entries),
    )


def _images(batch: BatchStatus, fields: Mapping[str, Any]) -> CardList | None:
    try:
        return Access.of_fields(fields).media().images(batch) if batch.uri else None
    except Exception as error:  # no such connection here: the page states that nothing could be read
        log.warning("The file of a batch cannot be read: %s", type(error).__name__)
        return None


def _with_record(card: Card, fields: Mapping[TaskInstanceKey, Mapping[str, Any]]) -> Card:
    """Return a card of a batch, completed from the journal."""
    if not card.record or not card.request_id:
        return card
    try:
        return with_record(card, Access.of_fields(fields[card.ref.task]).media().record(card.record))
    except Exception as error:  # the page shows the card without it
        log.warning("A record cannot be read: %s", type(error).__name__)
        return card


@app.get("/dags/{dag_id}/live")
async def show_progress(session: SessionDep, query: AskedPage) -> JSONResponse:
    """Return the state of the requests that a page shows as in progress."""
    return JSONResponse(await _work(_progress, RunData(session, query.dag_id, query.run_id), query), headers=_PRIVATE)


def _progress(data: RunData, query: PageQuery) -> dict[str, Any]:
    run = _read_run(data, query)
    shown, _ = run.page(query)
    waiting = [card for card in shown if card.state is CardState.OPEN and card.request_id]
    fields = data.rendered(card.ref.task for card in waiting)
    data.close()
    requests = [(Access.of_fields(fields[card.ref.task]).wan_conn_id, str(card.request_id)) for card in waiting]
    return {
        "version": run.version,
        "progress": "\n".join(run.progress),
        "states": _states.texts(requests),
    }


# -- videos and pictures -----------------------------------------------------------------------------------


@app.get("/dags/{dag_id}/video")
async def show_video(
    session: SessionDep, request: Request, dag_id: str, run_id: RunId, ref: AskedXCom, download: bool = False
) -> Response:
    """Redirect the browser to a signed address of a video, or stream the video.

    :param download: whether the browser saves it as a file instead of playing it.
    """

    def find(video: VideoVersion, media: Media) -> Response:
        name = quote(file_name(video.uri), safe="")
        disposition = f"attachment; filename*=UTF-8''{name}" if download else "inline"
        if address := media.signed_address(video, disposition=disposition):
            return RedirectResponse(address, 307, headers=_PRIVATE)
        asked = request.headers
        part = media.part(video, range_header=asked.get("range"), if_range=asked.get("if-range"))
        headers = {**_PRIVATE, "Cache-Control": "private, max-age=300", "Content-Disposition": disposition}
        headers |= {"ETag": video.etag, "Accept-Ranges": "bytes"}
        headers |= {name: part.headers[name] for name in _PASSED_ON if name in part.headers}
        return StreamingResponse(_stream(part), part.status_code, headers=headers, media_type="video/mp4")

    return await _work(_of_video, RunData(session, dag_id, run_id), ref, find)


@app.get("/dags/{dag_id}/poster")
async def show_poster(session: SessionDep, dag_id: str, run_id: RunId, ref: AskedXCom) -> Response:
    """Send the poster frame of a video: the picture beside it that was made when it landed."""
    data = RunData(session, dag_id, run_id)
    jpeg = await _work(_of_video, data, ref, lambda video, media: media.poster(video))
    if jpeg is None:
        raise HTTPException(404, "This video has no poster frame.")
    return _picture(jpeg)


def _named(data: RunData, ref: XComRef) -> tuple[Any, Mapping[str, Any]]:
    """Return what a reference names, and the rendered fields of its task.

    It names the value of an XCom, or an image of a batch, whose card is returned.
    """
    fields = data.rendered([ref.task])[ref.task]
    of_batch = ref.key == MANIFEST
    found = data.batch(ref.task) if of_batch else data.xcom(ref)
    data.close()
    if not of_batch:
        return found, fields
    images = _images(found, fields) if found else None
    return images and images.card(ref.index), fields


def _of_video(data: RunData, ref: XComRef, find: Callable[[VideoVersion, Media], T]) -> T:
    """Call a function with a video that this run names and that the provider landed."""
    found, fields = _named(data, ref)
    try:
        media = Access.of_fields(fields).media()
        if isinstance(found, Card):
            known = found.videos and found.request_id
            video = media.find_landed(found.videos[0].uri, str(found.request_id)) if known else None
        else:
            plain = video_at(found, ref.index)
            video = VideoVersion.of(plain) if plain else None
        if video is None:
            raise HTTPException(404, "This run has no such video.")
        if not media.is_what_landed(video):
            raise HTTPException(404, "The video that landed is not in the bucket any more.")
        return find(video, media)
    except ValueError as error:
        raise HTTPException(404, str(error)) from error
    except WanError as error:
        raise HTTPException(502, str(error)) from error


async def _stream(part: HttpResponse) -> AsyncIterator[bytes]:
    """Stream a video; each piece is read in one of the gallery's threads."""
    loop, pieces = asyncio.get_running_loop(), part.iter_content(_PIECE_BYTES)
    try:
        while piece := await loop.run_in_executor(_streams, next, pieces, b""):
            yield piece
    finally:
        _streams.submit(part.close)


@app.get("/dags/{dag_id}/image")
async def show_image(session: SessionDep, dag_id: str, run_id: RunId, ref: AskedXCom) -> Response:
    """Send a small picture of a source image, or "not yet" if it takes longer than a moment to make."""
    uri, access = await _work(_find_image, RunData(session, dag_id, run_id), ref)
    try:
        picture = asyncio.wrap_future(_thumbnails.get(uri, access)) if uri else None
        jpeg = await asyncio.wait_for(asyncio.shield(picture), _PICTURE_WAIT_S) if picture else None
    except (TimeoutError, QueueFullError) as error:
        raise HTTPException(503, "The picture is not ready yet.", {"Retry-After": "2"}) from error
    if jpeg is None:
        raise HTTPException(404, "There is no picture of it.")
    return _picture(jpeg)


def _picture(jpeg: bytes) -> Response:
    headers = {**_PRIVATE, "Cache-Control": "private, max-age=3600"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def _find_image(data: RunData, ref: XComRef) -> tuple[str, Access]:
    """Return the address of a source image, and how the task may read it."""
    found, fields = _named(data, ref)
    uri = (found.image if isinstance(found, Card) else image_at(found, ref.index)) or ""
    access = Access.of_fields(fields)
    uri = uri or image_of_fields(fields)
    return uri, replace(access, allow_private=access.reads_private_images()) if uri else access
