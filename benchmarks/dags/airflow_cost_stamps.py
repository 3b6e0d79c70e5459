# SPDX-License-Identifier: Apache-2.0
"""Record when the batch's code and its trigger run, one JSON line each, in the file of ``BENCHMARK_STAMPS``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow_provider_wan.triggers.wan import WanBatchTrigger


def stamp(dag_id: str, event: str) -> None:
    """Append a line."""
    with open(os.environ["BENCHMARK_STAMPS"], "a") as file:
        file.write(json.dumps({"dag": dag_id, "event": event, "at": time.time()}) + "\n")


class StampedBatchTrigger(WanBatchTrigger):
    """The batch's trigger, which records when it starts to wait and when it fires.

    :param dag: id of the Dag, for the file.
    """

    def __init__(self, *, dag: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.dag = dag
        self.arguments = arguments

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and arguments."""
        return "airflow_cost_stamps.StampedBatchTrigger", {**self.arguments, "dag": self.dag}

    async def run(self) -> AsyncIterator[Any]:
        """Wait, and record start and event."""
        stamp(self.dag, "waiting")
        async for event in super().run():
            stamp(self.dag, "fired")
            yield event
