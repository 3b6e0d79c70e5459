# SPDX-License-Identifier: Apache-2.0
"""The contact sheet of the demo's videos."""

from __future__ import annotations

from pathlib import Path

from airflow_provider_wan.gallery.cards import Card, CardState, CardVideo, XComRef
from airflow_provider_wan.gallery.media import thumbnail_of
from airflow_provider_wan.gallery.pages import render_contact_sheet, with_thumbnail
from demo.daily_content import PROMPTS
from demo.gallery import PHOTOS
from demo.table import Row


def write(folder: Path, rows: list[Row]) -> Path:
    """Write ``index.html`` into the folder of the videos, and return its path."""
    path = folder / "index.html"
    page = render_contact_sheet([_card(row) for row in rows], title="What make demo has made")
    path.write_text(page, encoding="utf-8")
    return path


def _card(row: Row) -> Card:
    state = CardState.LANDED if row.landed else CardState.REFUSED if row.refused else CardState.TASK_FAILED
    name = Path(row.uri).name
    card = Card(
        state,
        XComRef(""),
        image=row.image,
        inputs={"prompt": PROMPTS.get(row.image, "")},
        cost_usd=row.cost_usd,
        error=row.refused or row.problem or None,
        videos=(CardVideo(row.uri, src=f"./{name}"),) if row.landed else (),
    )
    return with_thumbnail(card, thumbnail_of((PHOTOS / row.image).read_bytes(), name=row.image))
