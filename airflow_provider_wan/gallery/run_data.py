# SPDX-License-Identifier: Apache-2.0
"""Read the facts about a run: from Airflow's database, and the state of its requests from RunComfy.

Runs in the API server, which has a session of the database. Polling is free, and bounded here.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select, tuple_

from airflow_provider_wan.gallery import OPERATORS
from airflow_provider_wan.gallery.cards import Card, TaskInstanceKey, XComRef
from airflow_provider_wan.gallery.run_cards import (
    FILE_KEYS,
    KEYS,
    MANIFEST,
    RUN_OVER,
    BatchStatus,
    Entry,
    RunTask,
    batches_of,
    image_of_fields,
)
from airflow_provider_wan.gallery.workers import SharedCache
from airflow_provider_wan.model_api import INPUT_PARAMETERS
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: A larger XCom is not one of ours, and parsing it would hold up the page.
_LONGEST_XCOM = 1_000_000
#: Task instances in one query: SQLite allows 32,766 parameters.
_TASKS_A_QUERY = 1000


class RunData:
    """One run in the database, read with a session of the API server."""

    def __init__(self, session: Session, dag_id: str, run_id: str) -> None:
        self._session = session
        self._dag_id = dag_id
        self._run_id = run_id

    def state(self) -> str | None:
        """Return the state of the run; None if there is no such run."""
        query = select(DagRun.state).where(DagRun.dag_id == self._dag_id, DagRun.run_id == self._run_id)
        state = self._session.scalar(query)
        return None if state is None else str(state)

    def close(self) -> None:
        """Give the database connection back, before a slow read: connections are few. The next query takes another."""
        self._session.close()

    def is_over(self) -> bool:
        """Return whether the run has ended."""
        return self.state() in RUN_OVER

    def entries(self, keys: Collection[str] = KEYS, task: TaskInstanceKey | None = None) -> list[Entry]:
        """Return the XComs that cards are made from, of all tasks or of one."""
        query = select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value).where(
            *self._of_run(XComModel, task), XComModel.key.in_(keys)
        )
        return [
            Entry(task_id, map_index, key, _plain(value))
            for task_id, map_index, key, value in self._session.execute(query)
        ]

    def tasks(self, task: TaskInstanceKey | None = None) -> list[RunTask]:
        """Return the task instances of this provider's operators, all or one."""
        table = TaskInstance
        query = select(table.task_id, table.map_index, table.state, table.operator).where(
            *self._of_run(table, task), table.operator.in_(OPERATORS)
        )
        return [
            RunTask(task_id, map_index, None if state is None else str(state), operator)
            for task_id, map_index, state, operator in self._session.execute(query)
        ]

    def _of_run(self, table: Any, task: TaskInstanceKey | None) -> list[Any]:
        conditions = [table.dag_id == self._dag_id, table.run_id == self._run_id]
        return conditions + ([table.task_id == task[0], table.map_index == task[1]] if task else [])

    def batches(
        self, entries: Iterable[Entry], tasks: Iterable[RunTask]
    ) -> list[tuple[BatchStatus, Mapping[str, Any]]]:
        """Return batches, each with the rendered fields of its task."""
        found = batches_of(entries, tasks, run_is_over=self.is_over())
        fields = self.rendered(batch.task for batch in found)
        return [
            (replace(batch, model_id=fields[batch.task].get("model_id") or None), fields[batch.task]) for batch in found
        ]

    def batch(self, task: TaskInstanceKey) -> BatchStatus | None:
        """Return the batch of a task instance."""
        found = self.batches(self.entries(FILE_KEYS, task), self.tasks(task))
        return found[0][0] if found else None

    def xcom(self, ref: XComRef) -> Any:
        """Return the value of one XCom; None if it does not exist."""
        found = self.entries({ref.key} & set(KEYS), ref.task)
        return found[0].value if found else None

    def rendered(self, tasks: Iterable[TaskInstanceKey]) -> dict[TaskInstanceKey, Mapping[str, Any]]:
        """Return the template fields of task instances as they were rendered, secrets masked."""
        keys = sorted(set(tasks))
        found: dict[TaskInstanceKey, Mapping[str, Any]] = {key: {} for key in keys}
        table, fields_of = TaskInstance, RenderedTaskInstanceFields
        for first in range(0, len(keys), _TASKS_A_QUERY):
            some = keys[first : first + _TASKS_A_QUERY]
            # By their task instances: from Airflow 3.4 on, the fields are not stored by the names of these.
            query = (
                select(table.task_id, table.map_index, fields_of.rendered_fields)
                .join(fields_of.task_instance)
                .where(*self._of_run(table, None), tuple_(table.task_id, table.map_index).in_(some))
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


# -- the state at RunComfy ---------------------------------------------------------------------------------------

_FRESH_S = 8.0
_POLLS_AT_ONCE = 6
_POLL_FOR_S = 3.0
_KEPT = 5000

#: Connection id and request id.
RequestKey = tuple[str, str]


class RequestStates:
    """Polls requests, each at most every 8 seconds in this process, however many viewers there are.

    :param poll_for_s: seconds that one page may wait for it.
    """

    def __init__(self, poll_for_s: float = _POLL_FOR_S) -> None:
        self._poll_for_s = poll_for_s
        self._texts = SharedCache(_KEPT, fresh_s=_FRESH_S)

    def texts(self, requests: Iterable[RequestKey]) -> dict[str, str]:
        """Return the text for each request by its id, without those that could not be polled in time."""
        from airflow_provider_wan.hooks.wan import WanHook

        requests = list(requests)
        random.shuffle(requests)  # with too many for the time, each gets its turn
        hooks = {conn_id: WanHook(conn_id) for conn_id, _ in requests}
        deadline = time.monotonic() + self._poll_for_s

        def poll(request: RequestKey) -> str:
            if time.monotonic() >= deadline:
                return ""
            hook = hooks[request[0]]

            def load(earlier: str | None) -> str:
                try:
                    return text_of(hook.get_status(request[1], retry=False))
                except Exception:  # no answer, or no such connection here: the page keeps the earlier text
                    return earlier or ""

            return self._texts.get(request, load)

        with ThreadPoolExecutor(_POLLS_AT_ONCE, "wan-gallery-poll") as pool:
            found = zip(requests, pool.map(poll, requests), strict=True)
            return {request_id: text for (_, request_id), text in found if text}


def text_of(status: RequestStatus) -> str:
    """Return a status as the page shows it."""
    if status.is_over:
        return "finished, landing next"
    if status.state is State.QUEUED and status.queue_position is not None:
        return f"queued, position {status.queue_position}"
    return str(status.state).lower()
