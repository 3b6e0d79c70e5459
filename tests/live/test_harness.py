# SPDX-License-Identifier: Apache-2.0
"""What the live scenarios stand on: tasks and triggerers that can be killed, frozen and found again."""

from __future__ import annotations

from demo.airflow_client import TaskKey
from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario


@scenario
def test_a_task_that_defers_is_woken_by_the_triggerer(live: Live) -> None:
    run_id = live.start("harness_defer", {"wait_s": 1})

    live.assert_ends("harness_defer", run_id)
    assert live.client.xcom(TaskKey("harness_defer", run_id, "after")) == "woken up"
    log = live.client.task_log(TaskKey("harness_defer", run_id, "wait"))
    assert "Trigger fired event" in log


@scenario
def test_a_killed_task_process_is_retried(live: Live) -> None:
    run_id = live.start("harness_kill")
    task = TaskKey("harness_kill", run_id, "sleep_on_the_first_try")

    live.airflow.kill_task(task)

    live.assert_ends("harness_kill", run_id)
    assert live.client.xcom(task) == 2


@scenario
def test_a_task_whose_machine_died_is_retried_for_want_of_a_heartbeat(live: Live) -> None:
    run_id = live.start("harness_kill")
    task = TaskKey("harness_kill", run_id, "sleep_on_the_first_try")

    live.airflow.kill_task(task, with_supervisor=True)

    live.assert_ends("harness_kill", run_id)
    assert live.client.xcom(task) == 2


@scenario
def test_an_account_of_its_own_has_a_connection_whose_token_can_be_rotated(live: Live) -> None:
    conn_id = live.account("harness", concurrency=1)
    live.set_connection(conn_id, "another-token")

    run_id = live.start("harness_connection", {"conn_id": conn_id})

    live.assert_ends("harness_connection", run_id)
    seen = live.client.xcom(TaskKey("harness_connection", run_id, "read"))
    assert seen == f"{live.sandbox.url} {len('another-token')} {live.sandbox.url}"


@scenario
def test_a_deferred_task_can_be_marked_failed_and_cleared(live: Live) -> None:
    run_id = live.start("harness_defer", {"wait_s": 600})
    task = TaskKey("harness_defer", run_id, "wait")
    client = live.client
    client.wait_task(task, "deferred", timeout_s=60)

    client.clear(task)
    second = client.wait_task(task, "deferred", timeout_s=60, try_number=2)
    client.set_state(task, "failed")

    assert second["try_number"] == 2
    assert client.wait_run("harness_defer", run_id, timeout_s=60) == "failed"
