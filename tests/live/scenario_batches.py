# SPDX-License-Identifier: Apache-2.0
"""Facts about batches in live scenarios: processes and triggers of one task, and the batch's reports."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import Any

import psutil
import requests

from demo.airflow_client import TaskKey
from tests.live.scenario_case import Case

WAITING = "Waiting for them in the triggerer."
"""The line of the log with which a batch leaves its worker."""


def processes_of(case: Case, task: TaskKey) -> list[str]:
    """Titles of the living processes of one task: its own, and the executor's worker that supervises it.

    Airflow puts the id of the task instance, or its run and task, into the titles of both.
    """
    [ti_id] = case.database.task_instance("id", task) or [None]
    titles = []
    for own in case.live.airflow.processes:
        for pid in own.pids():
            with suppress(psutil.Error):
                titles.append(" ".join(psutil.Process(pid).cmdline()))
    return [title for title in titles if str(ti_id) in title or task.run_id in title]


def triggers_of(case: Case, run_id: str) -> list[str]:
    """Classes of the triggers that a run waits for, a row of Airflow's table each."""
    found = case.database.row(
        "SELECT coalesce(string_agg(trigger.classpath, ' '), '') FROM trigger "
        "JOIN task_instance ON task_instance.trigger_id = trigger.id WHERE task_instance.run_id = %s",
        run_id,
    )
    return str(found[0]).split() if found else []


def comes_back(case: Case, task: TaskKey) -> int:
    """How often a batch has left its worker for the triggerer."""
    return case.log(task).count(WAITING)


def manifest_of(case: Case, task: TaskKey) -> list[dict[str, Any]]:
    """The lines of the manifest that the summary names."""
    uri = case.live.client.xcom(task, "summary")["manifest"]
    path = uri.removeprefix("gs://")
    reply = requests.get(f"{case.live.sandbox.bucket_url}/{path}", timeout=30)
    reply.raise_for_status()
    return [json.loads(line) for line in reply.text.splitlines()]


def outcomes_of(case: Case, task: TaskKey) -> Counter[str]:
    """How many images have ended how, by the manifest."""
    return Counter(line["outcome"] for line in manifest_of(case, task))
