# SPDX-License-Identifier: Apache-2.0
"""What the live scenarios stand on: tasks and triggerers that can be killed, frozen and found again."""

from __future__ import annotations

import os

from harness_scenarios import Live, scenario

from demo.airflow_client import TaskKey
from demo.local_airflow import Triggerer


def start_run(live: Live, dag_id: str, **conf: object) -> str:
    live.airflow.wait_for_dags(dag_id)
    live.airflow.client.unpause(dag_id)
    return live.airflow.client.trigger(dag_id, conf)


def assert_succeeded(live: Live, dag_id: str, run_id: str, *, timeout_s: float = 90) -> None:
    state = live.airflow.client.wait_run(dag_id, run_id, timeout_s=timeout_s)
    assert state == "success", live.airflow.client.why_failed(dag_id, run_id)


@scenario
def test_a_task_that_defers_is_woken_by_the_triggerer(live: Live) -> None:
    run_id = start_run(live, "harness_defer", wait_s=1)

    assert_succeeded(live, "harness_defer", run_id)
    assert live.airflow.client.xcom(TaskKey("harness_defer", run_id, "after")) == "woken up"
    log = live.airflow.client.task_log(TaskKey("harness_defer", run_id, "wait"))
    assert "Trigger fired event" in log


@scenario
def test_a_killed_task_process_is_retried(live: Live) -> None:
    run_id = start_run(live, "harness_kill")
    task = TaskKey("harness_kill", run_id, "sleep_on_the_first_try")

    pid = live.airflow.kill_task(task)

    assert_succeeded(live, "harness_kill", run_id)
    assert live.airflow.client.xcom(task) == 2
    assert pid != os.getpid()


@scenario
def test_a_task_whose_machine_died_is_retried_for_want_of_a_heartbeat(live: Live) -> None:
    run_id = start_run(live, "harness_kill")
    task = TaskKey("harness_kill", run_id, "sleep_on_the_first_try")

    live.airflow.kill_task(task, with_supervisor=True)

    assert_succeeded(live, "harness_kill", run_id)
    assert live.airflow.client.xcom(task) == 2


@scenario
def test_a_deferred_task_can_be_marked_failed_and_cleared(live: Live) -> None:
    run_id = start_run(live, "harness_defer", wait_s=600)
    task = TaskKey("harness_defer", run_id, "wait")
    client = live.airflow.client
    client.wait_task(task, "deferred", timeout_s=60)

    client.clear(task)
    second = client.wait_task(task, "deferred", timeout_s=60, try_number=2)
    client.set_state(task, "failed")

    assert second["try_number"] == 2
    assert client.wait_run("harness_defer", run_id, timeout_s=60) == "failed"


def deferred_run(live: Live, *, wait_s: float) -> tuple[TaskKey, Triggerer]:
    run_id = start_run(live, "harness_defer", wait_s=wait_s)
    task = TaskKey("harness_defer", run_id, "wait")
    live.airflow.client.wait_task(task, "deferred", timeout_s=60)
    return task, live.airflow.triggerer_of(task)


@scenario(alone=True)
def test_the_triggers_of_a_frozen_triggerer_are_taken_over(live: Live) -> None:
    task, frozen = deferred_run(live, wait_s=15)
    live.airflow.start_triggerer()

    frozen.process.pause()
    try:
        live.airflow.wait_taken_over(task, lost=frozen)
        assert_succeeded(live, "harness_defer", task.run_id)
    finally:
        frozen.process.resume()


@scenario(alone=True)
def test_the_triggers_of_a_killed_triggerer_are_taken_over(live: Live) -> None:
    task, killed = deferred_run(live, wait_s=15)

    live.airflow.kill_triggerer(killed)
    live.airflow.start_triggerer()

    live.airflow.wait_taken_over(task, lost=killed)
    assert_succeeded(live, "harness_defer", task.run_id)
