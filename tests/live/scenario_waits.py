# SPDX-License-Identifier: Apache-2.0
"""A single request that waits in a triggerer, for scenarios about triggerers."""

from __future__ import annotations

from demo.airflow_client import TaskKey
from demo.local_airflow import Triggerer
from tests.live.scenario_case import Case

WAIT = "scenario_wait"


def waiting_in_a_triggerer(case: Case) -> tuple[TaskKey, Triggerer, str]:
    """Return a deferred task, its triggerer and its queued request, which a wrong cancel would reach."""
    case.api_fault("generation", "stuck_queue")
    make = case.task(WAIT, case.start(WAIT), "make")
    case.wait_task(make, "deferred")
    case.wait_asked(request_id := case.wait_purchase())
    return make, case.live.airflow.triggerer_of(make), request_id


def goes_on(case: Case, make: TaskKey, request_id: str) -> None:
    """Let its request succeed, and check purchases and videos."""
    case.live.force(request_id, "succeeded")
    case.ends(WAIT, make.run_id)
    assert case.cancels() == []
    case.judge()
