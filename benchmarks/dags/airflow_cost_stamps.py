# SPDX-License-Identifier: Apache-2.0
"""When a batch's code and its trigger came to run, line by line in a file that ``BENCHMARK_STAMPS`` names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow_provider_wan.triggers.wan import WanBatchTrigger


def stamp(dag_id: str, what: str) -> None:
    """Write a line."""
    with open(os.environ["BENCHMARK_STAMPS"], "a") as file:
        file.write(json.dumps({"dag": dag_id, "what": what, "at": time.time()}) + "\n")


class StampedBatchTrigger(WanBatchTrigger):
    """The batch's trigger, which writes down when it begins to watch and when it gives its event.

    :param dag: id of the Dag, for the file.
    """

    def __init__(self, *, dag: str, **given: Any) -> None:
        super().__init__(**given)
        self.dag = dag

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give class and arguments."""
        _, given = super().serialize()
        return "airflow_cost_stamps.StampedBatchTrigger", {**given, "dag": self.dag}

    async def run(self) -> AsyncIterator[Any]:
        """Watch."""
        stamp(self.dag, "watching")
        async for event in super().run():
            stamp(self.dag, "fired")
            yield event
