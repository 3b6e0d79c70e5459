# SPDX-License-Identifier: Apache-2.0
"""What Airflow's database knows of a run's videos. Runs in the API server, the one place with such a session."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select, tuple_

from airflow_provider_wan.gallery.batch_cards import MANIFEST, Sheet, cards_of_lines, notes_of, sheets_of
from airflow_provider_wan.gallery.cards import KEYS, Card, Entry, Notes, Place, Submitter, cards_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

ReadLines = Callable[[str, Mapping[str, Any]], Sequence[Any]]

#: Classes of tasks that submit; those that have left no XCom yet are shown too.
_SUBMITTERS = ("WanSubmitOperator", "WanDecoratedOperator", "WanBatchOperator")
#: A run may be many batches, and a page waits for the files of all of them.
_FILES_AT_ONCE = 8
#: A larger XCom is not one of ours, and parsing it would hold up the page.
_LONGEST_XCOM = 1_000_000
#: Template fields of the model's inputs, as a task shows them before it has returned anything.
_INPUTS = (
    "prompt",
    "img_url",
    "negative_prompt",
    "template",
    "resolution",
    "duration",
    "prompt_extend",
    "seed",
)


class RunData:
    """One run, as the database has it.

    :param session: of the API server.
    """

    def __init__(self, session: Session, dag_id: str, run_id: str) -> None:
        self._session = session
        self._dag_id = dag_id
        self._run_id = run_id

    def exists(self) -> bool:
        """Tell whether there is such a run."""
        query = select(DagRun.id).where(DagRun.dag_id == self._dag_id, DagRun.run_id == self._run_id)
        return self._session.scalar(query) is not None

    def look(self, read_lines: ReadLines) -> tuple[list[Card], Notes]:
        """Give a card for every wanted video of the run, and what is to be said besides.

        The connection to the database is given back before anything is read from a bucket.

        :param read_lines: gives the lines of a batch's file; called from threads with its address and the rendered
            fields of the batch.
        """
        query = select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value).where(
            XComModel.dag_id == self._dag_id, XComModel.run_id == self._run_id, XComModel.key.in_(KEYS)
        )
        entries = [
            Entry(task_id, map_index, key, _plain(value))
            for task_id, map_index, key, value in self._session.execute(query)
        ]
        sheets = sheets_of(entries)
        places = {sheet.task for sheet in sheets}
        cards = cards_of(entries, self._submitters(), places)
        fields = self._rendered(places)
        self._session.close()

        def read(sheet: Sheet) -> list[Card]:
            if sheet.uri is None:
                return []
            return cards_of_lines(sheet, read_lines(sheet.uri, fields.get(sheet.task, {})))

        unread = []
        with ThreadPoolExecutor(_FILES_AT_ONCE, "wan-gallery") as pool:
            for sheet, of_batch in zip(sheets, pool.map(read, sheets), strict=True):
                cards += of_batch
                if sheet.uri and not of_batch:
                    unread.append(sheet)
        return cards, notes_of(sheets, entries, unread)

    def xcom(self, place: Place) -> Any:
        """Give the value of one XCom; None where there is none."""
        query = select(XComModel.value).where(
            XComModel.dag_id == self._dag_id,
            XComModel.run_id == self._run_id,
            XComModel.task_id == place.task_id,
            XComModel.map_index == place.map_index,
            XComModel.key == place.key,
        )
        return _plain(self._session.scalar(query)) if place.key in KEYS else None

    def rendered(self, task_id: str, map_index: int) -> Mapping[str, Any]:
        """Give the template fields of a task instance as they were rendered, secrets masked."""
        return self._rendered({(task_id, map_index)}).get((task_id, map_index), {})

    def rendered_of(self, cards: Iterable[Card]) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Give the same for the task instances of cards."""
        wanted = {card.place.task for card in cards}
        return {one: {} for one in wanted} | self._rendered(wanted)

    def completed(self, cards: Iterable[Card]) -> list[Card]:
        """Add the inputs to cards whose task has not returned them, from its rendered fields."""
        cards = list(cards)
        # Not of a batch: what its rows say overrides what its fields say.
        rendered = self.rendered_of(card for card in cards if not card.inputs and card.place.key != MANIFEST)
        return [_with_fields(card, rendered.get(card.place.task)) for card in cards]

    def _submitters(self) -> list[Submitter]:
        query = select(TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state).where(
            TaskInstance.dag_id == self._dag_id,
            TaskInstance.run_id == self._run_id,
            TaskInstance.operator.in_(_SUBMITTERS),
        )
        return [
            Submitter(task_id, map_index, None if state is None else str(state))
            for task_id, map_index, state in self._session.execute(query)
        ]

    def _rendered(self, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], Mapping[str, Any]]:
        if not wanted:
            return {}
        table = RenderedTaskInstanceFields
        query = select(table.task_id, table.map_index, table.rendered_fields).where(
            table.dag_id == self._dag_id,
            table.run_id == self._run_id,
            tuple_(table.task_id, table.map_index).in_(sorted(wanted)),
        )
        return {
            (task_id, map_index): fields if isinstance(fields, Mapping) else {}
            for task_id, map_index, fields in self._session.execute(query)
        }


def _plain(value: Any) -> Any:
    """Give an XCom's value: a worker stores it as JSON, and the column is JSON again."""
    if isinstance(value, str) and len(value) <= _LONGEST_XCOM:
        try:
            return json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, (dict, list)) else None


def _with_fields(card: Card, fields: Mapping[str, Any] | None) -> Card:
    if not fields or card.inputs:
        return card
    inputs = {name: fields[name] for name in _INPUTS if fields.get(name) not in (None, "", "None")}
    image = card.image or (str(inputs["img_url"]) if "img_url" in inputs else None)
    return replace(card, inputs=inputs, image=_without_query(image))


def _without_query(url: str | None) -> str | None:
    return url.split("?")[0] if url else None
