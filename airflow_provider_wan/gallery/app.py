# SPDX-License-Identifier: Apache-2.0
"""The routes behind the tab. Airflow does not guard what a plugin mounts, so each route here guards itself.

Every one demands what reading the Dag's XComs demands, and gives only what those of one run name.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any, Literal

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.gallery.batch_cards import FILE_KEYS, MANIFEST, file_of, with_record
from airflow_provider_wan.gallery.cards import Card, Look, Place, film_at, image_at
from airflow_provider_wan.gallery.html import escaped
from airflow_provider_wan.gallery.live import Questions
from airflow_provider_wan.gallery.media import Media, Video, media_of
from airflow_provider_wan.gallery.page import Asked, chosen, render_page, version_of
from airflow_provider_wan.gallery.run_data import RunData
from airflow_provider_wan.gallery.thumbnails import ThumbnailCache, read_image

log = logging.getLogger(__name__)

_PRIVATE = {
    "Cache-Control": "private, no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_RECORDS_AT_ONCE = 8
_MEDIA_SOURCES = "'self' https://storage.googleapis.com https://*.storage.googleapis.com"

_may_read_xcoms = Depends(requires_access_dag(method="GET", access_entity=DagAccessEntity.XCOM))

RunId = Annotated[str, Query(min_length=1, max_length=250)]
State = Annotated[Literal["all", "landed", "open", "todo", "left", "failed", "refused"], Query()]
PageNumber = Annotated[int, Query(ge=1, le=100_000)]
TaskId = Annotated[str, Query(min_length=1, max_length=250)]
MapIndex = Annotated[int, Query(ge=-1)]
Key = Annotated[Literal["", "return_value", "request", "refused", "manifest"], Query()]
ListPlace = Annotated[int, Query(ge=0)]

app = FastAPI(
    title="Videos of a Dag run",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[_may_read_xcoms],
)
_thumbnails = ThumbnailCache()
_questions = Questions()


@app.exception_handler(HTTPException)
def _refuse(request: Request, error: HTTPException) -> Response:
    """Say no in a page where a page was asked for: it is seen in a tab."""
    if not request.url.path.endswith("/videos"):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=_PRIVATE)
    text = {
        401: "You are not logged in to Airflow.",
        403: "You may not see the videos of this Dag: that takes permission to read its XComs.",
        404: "There is no such Dag run.",
    }.get(error.status_code, str(error.detail))
    page = f"<!doctype html><meta charset=utf-8><title>Videos</title><p>{escaped(text)}</p>"
    return HTMLResponse(page, error.status_code, headers=_PRIVATE)


@app.get("/dags/{dag_id}/videos")
def show_videos(
    session: SessionDep, dag_id: str, run_id: RunId, state: State = "all", page: PageNumber = 1
) -> HTMLResponse:
    """Show a page of a run's videos."""
    run = RunData(session, dag_id, run_id)
    if not run.exists():
        # Airflow 3.1 puts a run id into the address as it is, and there a plus sign means a blank.
        run_id = run_id.replace(" ", "+")
        run = RunData(session, dag_id, run_id)
    if not run.exists():
        raise HTTPException(404, "There is no such Dag run.")
    asked = Asked(run_id, state, page)
    cards, notes = run.look(_read_lines)
    shown, pages = chosen(cards, asked)
    shown = run.completed(shown)
    fields = run.rendered_of(card for card in shown if card.record)
    session.close()  # reading a bucket takes a while, and connections to the database are few
    shown = _with_records(shown, fields)
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src 'self'; "
        f"media-src {_MEDIA_SOURCES}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    html = render_page(cards, shown, asked=asked, pages=pages, nonce=nonce, notes=notes)
    return HTMLResponse(html, headers={**_PRIVATE, "Content-Security-Policy": policy})


@app.get("/dags/{dag_id}/live")
def emit_progress(
    session: SessionDep, dag_id: str, run_id: RunId, state: State = "all", page: PageNumber = 1
) -> JSONResponse:
    """Tell what has become of those that a page shows as in progress."""
    run, asked = RunData(session, dag_id, run_id), Asked(run_id, state, page)
    cards, notes = run.look(_read_lines)
    shown, _ = chosen(cards, asked)
    waiting = [card for card in shown if card.look is Look.OPEN and card.request_id]
    fields = run.rendered_of(waiting)
    wanted = [
        (str(card.request_id), str(fields[card.place.task].get("wan_conn_id") or "wan_default"))
        for card in waiting
    ]
    session.close()  # a look at RunComfy takes seconds, and connections to the database are few
    news = {"version": version_of(cards), "figures": notes.figures, "words": _questions.words(wanted)}
    return JSONResponse(news, headers=_PRIVATE)


@app.get("/dags/{dag_id}/video")
def show_video(
    session: SessionDep,
    request: Request,
    dag_id: str,
    run_id: RunId,
    task_id: TaskId,
    map_index: MapIndex = -1,
    key: Key = "return_value",
    place: ListPlace = 0,
) -> Response:
    """Send the browser to a signed address of a video, or pass the video on."""
    run = RunData(session, dag_id, run_id)
    where = Place(task_id, map_index, key, place)
    value, fields = _xcom(run, where), run.rendered(task_id, map_index)
    session.close()
    try:
        media = _media(fields)
        video = _video(media, where, value)
        if video is None:
            raise HTTPException(404, "This run has no such video.")
        if not media.is_what_landed(video):
            raise HTTPException(404, "The video that landed is not in the bucket any more.")
        address = media.signed_address(video)
        if address is not None:
            return RedirectResponse(address, 307, headers=_PRIVATE)
        part = media.part(
            video, range_header=request.headers.get("range"), if_range=request.headers.get("if-range")
        )
    except ValueError as error:
        raise HTTPException(404, str(error)) from error
    except WanError as error:
        raise HTTPException(502, str(error)) from error
    headers = {
        **_PRIVATE,
        **part.headers,
        "Cache-Control": "private, max-age=300",
        "Content-Disposition": "inline",
    }
    return StreamingResponse(part.body, part.status, headers=headers, media_type="video/mp4")


@app.get("/dags/{dag_id}/image")
def show_image(
    session: SessionDep,
    dag_id: str,
    run_id: RunId,
    task_id: TaskId,
    map_index: MapIndex = -1,
    key: Key = "return_value",
    place: ListPlace = 0,
) -> Response:
    """Send a small picture of a source image."""
    run = RunData(session, dag_id, run_id)
    fields = run.rendered(task_id, map_index)
    where = Place(task_id, map_index, key, place)
    value = _xcom(run, where)
    session.close()
    if key == MANIFEST:
        value = _read_lines(str(value), fields)
    uri = image_at(value, place) if key else str(fields.get("img_url") or "")
    jpeg = _thumbnails.get(uri, lambda: _read_image(uri, fields)) if uri else None
    if jpeg is None:
        raise HTTPException(404, "There is no picture of it.")
    headers = {**_PRIVATE, "Cache-Control": "private, max-age=3600"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def _xcom(run: RunData, where: Place) -> Any:
    """Give the value behind a place: of a batch, the address of its file."""
    if where.key != MANIFEST:
        return run.xcom(where)
    named = (file_of(key, run.xcom(replace(where, key=key))) for key in reversed(FILE_KEYS))
    return next(filter(None, named), None)


def _video(media: Media, where: Place, value: Any) -> Video | None:
    """Find the video that stands at a place."""
    if where.key == MANIFEST:
        lines = media.lines(value) if value else []
        line = lines[where.place] if where.place < len(lines) else {}
        known = line.get("uri") and line.get("request_id")
        return media.landed_as(line["uri"], line["request_id"]) if known else None
    plain = film_at(value, where.place)
    return Video.of(plain) if plain else None


def _read_lines(uri: str, fields: Mapping[str, Any]) -> list[Any]:
    try:
        return _media(fields).lines(uri)
    except Exception as error:  # no such connection here: the page says that nothing could be read
        log.warning("The file of a batch can't be read: %s", type(error).__name__)
        return []


def _with_records(cards: list[Card], fields: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Card]:
    """Read what the journal knows of the cards of batches on a page.

    :param fields: the rendered fields of their tasks.
    """

    def read(card: Card) -> Card:
        if not card.record or not card.request_id:
            return card
        try:
            return with_record(card, _media(fields[card.place.task]).record(card.record))
        except Exception as error:  # the page shows what it has
            log.warning("A record can't be read: %s", type(error).__name__)
            return card

    with ThreadPoolExecutor(_RECORDS_AT_ONCE, "wan-gallery") as pool:
        return list(pool.map(read, cards))


def _read_image(uri: str, fields: Any) -> bytes:
    from airflow_provider_wan.hooks.wan import WanHook

    try:
        allow_private = WanHook(str(fields.get("wan_conn_id") or "wan_default")).settings.allow_private_images
    except Exception:  # no such connection here: then only what anybody may read
        allow_private = False
    return read_image(uri, allow_private=allow_private, gcp_conn_id=_given(fields.get("gcp_conn_id")))


def _media(fields: Any) -> Media:
    chain = fields.get("impersonation_chain")
    accounts = (chain,) if isinstance(chain, str) and _given(chain) else tuple(chain or ())
    return media_of(_given(fields.get("gcp_conn_id")), accounts or None)


def _given(value: Any) -> str | None:
    """Give a rendered field that was set; Airflow keeps an unset one as null or as the word None."""
    return str(value) if value not in (None, "", "None") else None
