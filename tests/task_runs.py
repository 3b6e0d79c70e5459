# SPDX-License-Identifier: Apache-2.0
"""Run one operator or sensor as a worker and a triggerer do, without the rest of Airflow."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.exceptions import TaskDeferred

if TYPE_CHECKING:
    import pytest

    from wan_sandbox.server import Sandbox


def connect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, **extra: Any) -> None:
    """Point ``wan_default`` at the sandbox with more in its extra, such as ``timeout``."""
    connection = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    connection["extra"] |= extra
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", json.dumps(connection))


def purchases(sandbox: Sandbox) -> list[str]:
    """Return the ids of all purchased requests from the sandbox's ledger."""
    return [bought["request_id"] for bought in sandbox.ledger()["purchases"]]


def posts(sandbox: Sandbox) -> int:
    """Return how many POSTs arrived, whatever their outcome."""
    return int(sandbox.ledger()["submits_seen"])


class StoreInMemory:
    """Airflow's task state store as one task uses it; survives its tries."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.trouble: Exception | None = None

    def get(self, key: str, default: Any = None) -> Any:
        self._check()
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._check()
        self.values[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self._check()
        self.values.pop(key, None)

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble


@dataclass
class TaskInstance:
    """The part of a task instance that a task uses."""

    task_id: str = "task"
    run_id: str = "manual__1"
    map_index: int | None = -1
    dag_id: str = "dag"
    xcoms: dict[str, Any] = field(default_factory=dict)
    first_reschedule_date: Any = None

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def get_first_reschedule_date(self, context: Any) -> Any:
        return self.first_reschedule_date


def make_context(
    *, run_id: str = "manual__1", map_index: int = -1, store: Any = None, task_id: str = "task", **more: Any
) -> dict[str, Any]:
    """Return the context of one try; ``store`` is its task state store, if it has one."""
    context: dict[str, Any] = {"ti": TaskInstance(task_id, run_id, map_index), **more}
    return context if store is None else {**context, "task_state_store": store}


@dataclass
class Deferred:
    """A task that waits in the triggerer."""

    task: Any
    context: Mapping[str, Any]
    trigger: Any
    method_name: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def resume(self) -> Any:
        """Run its trigger until it fires, then resume the task with the event."""
        event = asyncio.run(first_event(self.trigger))
        self.events.append(event)
        return getattr(self.task, self.method_name)(self.context, event)


def start(task: Any, context: Mapping[str, Any]) -> Any:
    """Execute a task; return its result, or a :class:`Deferred` with the deserialized trigger."""
    try:
        return task.execute(context)
    except TaskDeferred as deferred:
        if deferred.timeout is not None:  # it would start again with each deferral
            raise AssertionError("a wait has an absolute deadline, in its trigger") from None
        return Deferred(task, context, deserialized(deferred.trigger), deferred.method_name)


def run(task: Any, context: Mapping[str, Any]) -> Any:
    """Execute a task, through the triggerer if it defers; return its result."""
    result = start(task, context)
    return result.resume() if isinstance(result, Deferred) else result


def deserialized(trigger: Any) -> Any:
    """Return a trigger as deserialized from the database."""
    path, kwargs = trigger.serialize()
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))


async def first_event(trigger: Any) -> dict[str, Any]:
    async for event in trigger.run():
        payload: dict[str, Any] = json.loads(json.dumps(event.payload))
        return payload
    raise AssertionError("the trigger ended without an event")
