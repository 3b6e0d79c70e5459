# SPDX-License-Identifier: Apache-2.0
"""The operators run by Airflow itself: task state store, retries, mapping, teardowns, skipping."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.execution_time import context

from tests.dag_runs import DagFolder
from tests.sandboxes import INPUTS
from tests.task_runs import connect, posts, purchases
from wan_sandbox.server import Sandbox

INPUT_LINES = f"prompt={INPUTS['prompt']!r}, img_url={INPUTS['img_url']!r}, check_image=False, poll_interval=0.05"
needs_the_store = pytest.mark.skipif(
    not hasattr(context, "TaskStateStoreAccessor"), reason="Airflow has a task state store since 3.3"
)


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, sandbox, timeout=30, not_found_patience=0.05)
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")


@needs_the_store
def test_try_that_fails_after_its_purchase_does_not_buy_again(sandbox: Sandbox, dags: DagFolder) -> None:
    """The only trace of the first try is in Airflow's own task state store."""
    run = dags.write(
        f"""
        WanSubmitOperator(
            task_id="generate", {INPUT_LINES}, wait_for_completion=True, timeout=0.3, retries=1,
        )
        """
    )
    sandbox.control("speed", {"generation_seconds": 3600})
    stuck = run()
    assert stuck.states() == {"generate": "failed"}
    assert len(purchases(sandbox)) == posts(sandbox) == 1, "both tries waited for the same request"
    assert {cancel["outcome"] for cancel in sandbox.ledger()["cancels"]} == {"not_cancellable"}


def test_failed_generation_is_bought_again_by_the_retry(sandbox: Sandbox, dags: DagFolder) -> None:
    sandbox.add_fault("generation", "fail", count=1)
    run = dags.write(f'WanSubmitOperator(task_id="generate", {INPUT_LINES}, wait_for_completion=True, retries=1)')()
    assert run.states() == {"generate": "success"}
    assert run.xcom("generate")["state"] == "succeeded"
    assert len(purchases(sandbox)) == 2


def test_lost_submission_is_not_retried(sandbox: Sandbox, dags: DagFolder) -> None:
    sandbox.add_fault("submit", "reset_after")
    run = dags.write(f'WanSubmitOperator(task_id="submit", {INPUT_LINES}, retries=3)')()
    assert run.states() == {"submit": "failed"}
    assert posts(sandbox) == 1


def test_refusal_is_not_retried_and_overload_is(sandbox: Sandbox, dags: DagFolder) -> None:
    write = dags.write(f'WanSubmitOperator(task_id="submit", {INPUT_LINES}, retries=3)')
    sandbox.add_fault("submit", "no_balance")
    assert write().states() == {"submit": "failed"}
    assert posts(sandbox) == 1
    sandbox.clear_faults()
    sandbox.add_fault("submit", "status", status=429, retry_after=600, count=2)
    assert write().states() == {"submit": "success"}
    assert len(purchases(sandbox)) == 1


def test_submit_wait_and_land_are_mapped(sandbox: Sandbox, dags: DagFolder) -> None:
    run = dags.write(
        f"""
        submit = WanSubmitOperator.partial(task_id="submit", img_url={INPUTS["img_url"]!r}, check_image=False).expand(
            prompt=["one", "two", "three"]
        )
        wait = WanRequestSensor.partial(task_id="wait", poke_interval=0.05).expand(request=submit.output)
        land = WanToGCSOperator.partial(task_id="land", bucket_name="videos", object_name="mapped/")
        land.expand(request=wait.output)
        """
    )()
    assert set(run.states().values()) == {"success"}
    landed = [run.xcom("land", map_index=index)[0]["request_id"] for index in range(3)]
    assert sorted(landed) == sorted(purchases(sandbox))


def test_values_rendered_from_the_run_reach_the_api(sandbox: Sandbox, dags: DagFolder) -> None:
    run = dags.write(
        f"""
        WanSubmitOperator(
            task_id="submit", img_url={INPUTS["img_url"]!r}, check_image=False,
            prompt="{{{{ dag_run.conf['prompt'] }}}}",
            seed="{{{{ params.seed }}}}", duration="{{{{ params.duration }}}}",
            prompt_extend="{{{{ params.extend }}}}", template="{{{{ params.effect }}}}",
            resolve="{{{{ dag_run.conf.get('resolve') }}}}", request="{{{{ dag_run.conf.get('request') }}}}",
        )
        """,
        params={"seed": 7, "duration": 5, "extend": False, "effect": None},
    )
    markup = "<b>é</b> {{ not_jinja }} 'x' \\ 漢 \u202e ; DROP"
    assert run({"prompt": markup}).states() == {"submit": "success"}
    [bought] = sandbox.ledger()["purchases"]
    assert bought["inputs"] == {
        "prompt": markup,
        "img_url": INPUTS["img_url"],
        "seed": 7,
        "duration": 5,
        "prompt_extend": False,
    }
    taken = run({"prompt": "another", "request": bought["request_id"]})
    assert taken.xcom("submit")["request_id"] == bought["request_id"]
    unsettled = run({"prompt": "a third", "resolve": {INPUTS["img_url"]: bought["request_id"]}})
    assert "pass request=" in unsettled.xcom("submit", key="failed")["error"], "this run left no open claim"
    assert posts(sandbox) == 1


def test_unsuitable_image_skips_only_its_own_tasks(sandbox: Sandbox, dags: DagFolder) -> None:
    run = dags.write(
        f"""
        submit = WanSubmitOperator.partial(
            task_id="submit", img_url={INPUTS["img_url"]!r}, check_image=False, on_invalid="skip"
        ).expand(prompt=["good", "bad" * 400])
        WanRequestSensor.partial(task_id="wait", poke_interval=0.05).expand(request=submit.output)
        """
    )()
    states = run.states()
    assert (states["submit[0]"], states["submit[1]"]) == ("success", "skipped")
    assert run.state == "success"
    assert "800" in run.xcom("submit", key="refused", map_index=1)[0]["rule"]
    assert len(purchases(sandbox)) == 1


def test_teardown_cancels_queued_requests_when_the_run_fails(sandbox: Sandbox, dags: DagFolder) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    write = dags.write(
        f"""
        submit = WanSubmitOperator(task_id="submit", {INPUT_LINES}, variation="{{{{ run_id }}}}")

        @task
        def spoil():
            raise RuntimeError("for another reason")

        take_back = WanCancelOperator(task_id="take_back", request=submit.output)
        submit >> spoil() >> take_back.as_teardown(setups=submit)
        """
    )
    running, queued = write(), write()
    for run in (running, queued):
        assert run.states() == {"submit": "success", "spoil": "failed", "take_back": "success"}
    assert running.xcom("take_back")["outcome"] == "not_cancellable"
    assert queued.xcom("take_back")["cancelled"] is True


def test_teardown_does_nothing_where_nothing_was_submitted(sandbox: Sandbox, dags: DagFolder) -> None:
    run = dags.write(
        f"""
        submit = WanSubmitOperator(task_id="submit", img_url={INPUTS["img_url"]!r}, prompt="")
        take_back = WanCancelOperator(task_id="take_back", request=submit.output, trigger_rule="all_done")
        submit >> take_back
        """
    )()
    assert run.states() == {"submit": "failed", "take_back": "success"}
    assert sandbox.ledger()["calls"] == {"model": 1}


SENSORS: list[tuple[str, dict[str, Any]]] = [
    ("deferred", {}),
    ("reschedule", {"deferrable": False}),
    ("poke", {"deferrable": False, "mode": "poke"}),
]


@pytest.mark.parametrize(("name", "options"), SENSORS, ids=[name for name, _ in SENSORS])
def test_soft_fail_skips_a_sensor_without_a_result(
    sandbox: Sandbox, dags: DagFolder, name: str, options: dict[str, Any]
) -> None:
    sandbox.add_fault("generation", "fail")
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    run = dags.write(
        f"""
        submit = WanSubmitOperator(task_id="submit", {INPUT_LINES})
        wait = WanRequestSensor(task_id="wait", request=submit.output, poke_interval=0.1, soft_fail=True, {given})
        submit >> wait
        """
    )()
    assert run.states() == {"submit": "success", "wait": "skipped"}


def test_second_run_buys_without_a_journal_and_adopts_with_one(sandbox: Sandbox, dags: DagFolder) -> None:
    alone = dags.write(f'WanSubmitOperator(task_id="submit", {INPUT_LINES})')
    assert alone().xcom("submit")["request_id"] != alone().xcom("submit")["request_id"]
    shared = dags.write(f'WanSubmitOperator(task_id="submit", {INPUT_LINES}, journal="gs://videos/_journal")')
    assert shared().xcom("submit")["request_id"] == shared().xcom("submit")["request_id"]
    assert len(purchases(sandbox)) == 3
