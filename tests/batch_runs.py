# SPDX-License-Identifier: Apache-2.0
"""Run the batch operator as workers and a triggerer do, without the rest of Airflow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.triggers.wan import WanBatchTrigger

IMAGES = [f"https://images.example.com/{number:03d}.jpg" for number in range(12)]


class TaskInstance:
    """The part of a task instance that the operator uses."""

    dag_id, run_id, task_id, map_index, try_number = "dag", "run", "batch", -1, 1

    def __init__(self, map_index: int = -1) -> None:
        self.map_index = map_index
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))


def operator(**changes: Any) -> WanBatchOperator:
    given: dict[str, Any] = {
        "images": IMAGES,
        "bucket_name": "videos",
        "object_name": "out/",
        "prompt": "waves",
        "check_image": False,
        "max_in_flight": 6,
        "timeout": 120,
    }
    return WanBatchOperator(task_id="batch", **{**given, **changes})


@dataclass
class BatchTry:
    """One try of a batch, from start to end.

    :param tasks: a new operator for each part of the try, as if each part ran in its own process.
    """

    tasks: list[WanBatchOperator] = field(default_factory=list)
    triggers: list[WanBatchTrigger] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def links(self) -> list[dict[str, str]]:
        """Return the link targets after each part."""
        return [
            {link.name: link.get_link(task, ti_key=None) for link in task.operator_extra_links} for task in self.tasks
        ]


def run_try(
    ti: TaskInstance,
    *,
    outlet_events: Any = None,
    before: Callable[[str], None] = lambda part: None,
    **changes: Any,
) -> BatchTry:
    """Run a try as a worker and a triggerer do, and keep the exception it raises.

    :param before: called with ``"worker"`` or ``"triggerer"`` before each part of the try.
    """
    played = BatchTry()
    context = {"ti": ti, "outlet_events": outlet_events}
    event: dict[str, Any] | None = None
    while True:
        task = operator(**changes)
        played.tasks.append(task)
        before("worker")
        try:
            if event is None:
                played.summary = task.execute(context)
            else:
                played.summary = task.execute_complete(context, event)
            return played
        except TaskDeferred as deferred:
            path, given = deferred.trigger.serialize()
            assert path == "airflow_provider_wan.triggers.wan_batch.WanBatchTrigger"
            trigger = WanBatchTrigger(**json.loads(json.dumps(given)))
            played.triggers.append(trigger)
        except Exception as error:
            played.error = error
            return played
        before("triggerer")
        event = json.loads(json.dumps(asyncio.run(_first_event(trigger))))


async def _first_event(trigger: WanBatchTrigger) -> Any:
    return (await anext(trigger.run())).payload


def play(ti: TaskInstance, **changes: Any) -> tuple[dict[str, Any], list[WanBatchTrigger]]:
    """Run a try to its end, and raise its exception."""
    played = run_try(ti, **changes)
    if played.error is not None:
        raise played.error
    return played.summary, played.triggers
