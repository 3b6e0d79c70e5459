# SPDX-License-Identifier: Apache-2.0
"""Read the facts about a run's videos from Airflow's database. Runs in the API server, which has a session for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select, tuple_

from airflow_provider_wan.gallery.batches import FILE_KEYS, MANIFEST, file_of
from airflow_provider_wan.gallery.cards import (
    BUYS_NOTHING,
    KEYS,
    SUBMITTERS,
    Card,
    Entry,
    RunTask,
    TaskInstanceKey,
    XComRef,
    image_of_fields,
)
from airflow_provider_wan.model_api import INPUT_PARAMETERS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: A larger XCom is not one of ours, and parsing it would hold up the page.
_LONGEST_XCOM = 1_000_000
#: Task instances in one query: SQLite allows 32,766 parameters.
_TASKS_A_QUERY = 1000


class RunData:
    """One run in the database.

    :param session: of the API server.
    """

    def __init__(self, session: Session, dag_id: str, run_id: str) -> None:
        self._session = session
        self._dag_id = dag_id
        self._run_id = run_id

    def state(self) -> str | None:
        """Return the state of the run; None if there is no such run."""
        query = select(DagRun.state).where(DagRun.dag_id == self._dag_id, DagRun.run_id == self._run_id)
        state = self._session.scalar(query)
        return None if state is None else str(state)

    def entries(self) -> list[Entry]:
        """Return the XComs that cards are made from."""
        query = select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value).where(
            XComModel.dag_id == self._dag_id, XComModel.run_id == self._run_id, XComModel.key.in_(KEYS)
        )
        return [
            Entry(task_id, map_index, key, _plain(value))
            for task_id, map_index, key, value in self._session.execute(query)
        ]

    def tasks(self) -> list[RunTask]:
        """Return the task instances of this provider's operators."""
        query = select(
            TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state, TaskInstance.operator
        ).where(
            TaskInstance.dag_id == self._dag_id,
            TaskInstance.run_id == self._run_id,
            TaskInstance.operator.in_(SUBMITTERS | BUYS_NOTHING),
        )
        return [
            RunTask(task_id, map_index, None if state is None else str(state), operator)
            for task_id, map_index, state, operator in self._session.execute(query)
        ]

    def xcom(self, ref: XComRef) -> Any:
        """Return the value of one XCom, for a batch the address of its file; None if it does not exist."""
        if ref.key == MANIFEST:
            named = (file_of(key, self.xcom(replace(ref, key=key))) for key in reversed(FILE_KEYS))
            return next(filter(None, named), None)
        query = select(XComModel.value).where(
            XComModel.dag_id == self._dag_id,
            XComModel.run_id == self._run_id,
            XComModel.task_id == ref.task_id,
            XComModel.map_index == ref.map_index,
            XComModel.key == ref.key,
        )
        return _plain(self._session.scalar(query)) if ref.key in KEYS else None

    def rendered(self, tasks: Iterable[TaskInstanceKey]) -> dict[TaskInstanceKey, Mapping[str, Any]]:
        """Return the template fields of task instances as they were rendered, secrets masked."""
        keys = sorted(set(tasks))
        found: dict[TaskInstanceKey, Mapping[str, Any]] = {key: {} for key in keys}
        table = RenderedTaskInstanceFields
        for first in range(0, len(keys), _TASKS_A_QUERY):
            query = select(table.task_id, table.map_index, table.rendered_fields).where(
                table.dag_id == self._dag_id,
                table.run_id == self._run_id,
                tuple_(table.task_id, table.map_index).in_(keys[first : first + _TASKS_A_QUERY]),
            )
            for task_id, map_index, fields in self._session.execute(query):
                if isinstance(fields, Mapping):
                    found[task_id, map_index] = fields
        return found

    def completed(self, cards: Iterable[Card]) -> list[Card]:
        """Return cards with the inputs of their tasks, if the tasks have not returned them."""
        cards = list(cards)
        # Not those of a batch: its rows override its fields.
        rendered = self.rendered(card.ref.task for card in cards if _lacks_inputs(card))
        return [_with_fields(card, rendered.get(card.ref.task)) for card in cards]


def _lacks_inputs(card: Card) -> bool:
    return not card.inputs and card.ref.key != MANIFEST


def _plain(value: Any) -> Any:
    """Return an XCom's value: a worker stores it as JSON text, and the column is JSON again."""
    if isinstance(value, str) and len(value) <= _LONGEST_XCOM:
        try:
            return json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, (dict, list)) else None


def _with_fields(card: Card, fields: Mapping[str, Any] | None) -> Card:
    if not fields or not _lacks_inputs(card):
        return card
    inputs = {name: fields[name] for name in INPUT_PARAMETERS if fields.get(name) not in (None, "", "None")}
    image = card.image or image_of_fields(fields)
    if not image.startswith("gs://"):
        image = image.split("?")[0]  # the signature of a link
    model_id = card.model_id or fields.get("model_id") or None
    return replace(card, inputs=inputs, image=image or None, model_id=model_id)
