# SPDX-License-Identifier: Apache-2.0
"""WanRequestTrigger: its arguments, its single event, and when a kill cancels the request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.triggers import base
from airflow_provider_wan.triggers.base import OVER_FOR_GOOD, task_state
from airflow_provider_wan.triggers.wan import WanRequestTrigger
from tests.sandboxes import INPUTS, MODEL, Bucket
from tests.task_runs import TaskInstance, connect, deserialized, first_event, make_context, run, start
from wan_sandbox.server import Sandbox

JOURNAL = "gs://videos/_journal"


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, sandbox, timeout=30, not_found_patience=0.05)
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")


def buy(**more: Any) -> str:
    return WanHook().submit(MODEL, {**INPUTS, **more}).request_id


def trigger_for(request_id: str, *, seconds: float = 60, **options: Any) -> WanRequestTrigger:
    fields = {"wan_conn_id": "wan_default", "poll_interval": 0.05, "deadline": time.time() + seconds}
    return WanRequestTrigger(request_id=request_id, **{**fields, **options})


def event_of(trigger: WanRequestTrigger) -> dict[str, Any]:
    return asyncio.run(first_event(trigger))


# -- arguments and event -----------------------------------------------------------------------------------


def test_trigger_survives_serialization() -> None:
    trigger = trigger_for(
        "req-1",
        cancel_on_kill=False,
        fingerprint="f",
        journal=JOURNAL,
        watchers=["dag/run/task/-1"],
        is_known=False,
        gcp_conn_id="google",
        impersonation_chain=["a@example.com", "b@example.com"],
    )
    path, kwargs = trigger.serialize()
    assert path == "airflow_provider_wan.triggers.wan.WanRequestTrigger"
    assert deserialized(trigger).serialize() == (path, kwargs)
    assert json.loads(json.dumps(kwargs)) == kwargs
    arguments = set(WanRequestTrigger.__init__.__kwdefaults__) | {"wan_conn_id", "request_id", "deadline"}
    assert set(kwargs) == arguments, "each argument reaches the next triggerer"


def test_trigger_fires_one_small_event_without_links(sandbox: Sandbox) -> None:
    request_id = buy()
    event = event_of(trigger_for(request_id, fingerprint="f"))
    assert event == {"request_id": request_id, "outcome": "succeeded", "fingerprint": "f"}


def test_failure_message_of_runcomfy_is_stripped_of_links_and_tokens(sandbox: Sandbox) -> None:
    secret = "https://bucket.example.com/a.png?X-Goog-Signature=very-secret"
    error = f"could not read {secret} with Authorization: Bearer sandbox-token"
    sandbox.add_fault("generation", "fail", error=error)
    event = event_of(trigger_for(buy()))
    assert event["outcome"] == "failed"
    assert "could not read" in event["message"]
    assert "very-secret" not in json.dumps(event)
    assert "sandbox-token" not in json.dumps(event)


def test_deadline_does_not_move_when_another_triggerer_resumes(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    trigger = trigger_for(buy(), seconds=0.3)
    for _ in range(3):
        trigger = deserialized(trigger)
    assert event_of(trigger)["outcome"] == "timeout"
    assert event_of(deserialized(trigger))["outcome"] == "timeout"


def test_bad_answers_do_not_end_the_wait(sandbox: Sandbox) -> None:
    request_id = buy()
    for fault, params in (
        ("status", {"status": 500}),
        ("html", {}),
        ("cut_json", {}),
        ("reset", {}),
        ("unauthorized", {}),
        ("forbidden_html", {}),
        ("word", {"word": "pondering"}),
        ("error_200", {}),
    ):
        sandbox.add_fault("status", fault, count=1, **params)
    assert event_of(trigger_for(request_id))["outcome"] == "succeeded"


def test_a_triggerer_that_stops_cancels_nothing(sandbox: Sandbox) -> None:
    """Another triggerer takes over; Airflow cancels the task and calls cleanup()."""
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    buy()
    trigger = trigger_for(buy())

    def until_looked() -> None:
        while not sandbox.ledger()["calls"].get("status"):
            time.sleep(0.02)

    async def stop_in_the_middle() -> None:
        waiting = asyncio.create_task(first_event(trigger))
        await asyncio.to_thread(until_looked)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await trigger.cleanup()

    asyncio.run(stop_in_the_middle())
    assert sandbox.ledger()["cancels"] == []


def test_other_triggers_run_while_the_first_wait_imports_its_modules(sandbox: Sandbox) -> None:
    """The imports take most of a second and would block the event loop."""
    script = """
import asyncio, sys, threading, time

class Watch:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("aiohttp", "requests"):
            assert threading.current_thread() is not threading.main_thread(), name
            seen.append(name)

seen = []
from airflow_provider_wan.triggers.wan import WanRequestTrigger
sys.meta_path.insert(0, Watch())

async def wait():
    deadline = time.time() + 60
    trigger = WanRequestTrigger(wan_conn_id="wan_default", request_id=sys.argv[1], deadline=deadline)
    async for event in trigger.run():
        return event.payload["outcome"]

async def main():
    return await asyncio.gather(wait(), wait())

print(asyncio.run(main()), "aiohttp" in seen)
"""
    done = subprocess.run([sys.executable, "-c", script, buy()], capture_output=True, text=True, check=False)
    assert "['succeeded', 'succeeded'] True" in done.stdout, done.stderr


# -- on_kill -----------------------------------------------------------------------------------------------


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answer Airflow's look-up of task states from a dict {key: state}, as its API server would."""
    known: dict[str, Any] = {}

    def get_task_states(
        dag_id: str, map_index: int | None = None, task_ids: Any = None, run_ids: Any = None, **other: Any
    ) -> Mapping[str, Any]:
        if "trouble" in known:
            raise known["trouble"]
        assert threading.current_thread() is not threading.main_thread(), "on the event loop it finds no portal"
        return {run_ids[0]: {key: state for key, state in known.items() if key.startswith(task_ids[0])}}

    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(get_task_states))
    return known


def queued(sandbox: Sandbox) -> str:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    buy(prompt="keeps the only place")
    return buy()


def kill(trigger: WanRequestTrigger, ti: TaskInstance | None) -> None:
    """Kill the task as Airflow's triggerer does, which cancels on_kill every second."""
    trigger.task_instance = ti  # type: ignore[assignment]

    async def as_airflow_does() -> None:
        killing = asyncio.create_task(trigger.on_kill())
        await asyncio.sleep(0)
        while not killing.done():
            killing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(killing)
        await asyncio.gather(*base._unfinished)

    asyncio.run(as_airflow_does())


def outcomes(sandbox: Sandbox) -> list[str]:
    return [cancel["outcome"] for cancel in sandbox.ledger()["cancels"]]


@pytest.mark.parametrize("state", sorted(OVER_FOR_GOOD))
def test_request_without_an_owner_is_cancelled_although_on_kill_is_interrupted(
    sandbox: Sandbox, states: dict[str, Any], state: str
) -> None:
    trigger = trigger_for(queued(sandbox))
    states["task"] = state
    kill(trigger, TaskInstance())
    assert outcomes(sandbox) == ["cancelled"]


@pytest.mark.parametrize(
    "state",
    ["deferred", "queued", "scheduled", "running", "up_for_retry", "up_for_reschedule", "restarting", None],
)
def test_request_owned_by_another_try_or_triggerer_is_not_cancelled(
    sandbox: Sandbox, states: dict[str, Any], state: str | None
) -> None:
    trigger = trigger_for(queued(sandbox))
    states["task"] = state
    kill(trigger, TaskInstance())
    assert outcomes(sandbox) == []


def test_a_mapped_task_is_looked_up_by_its_index(sandbox: Sandbox, states: dict[str, Any]) -> None:
    trigger = trigger_for(queued(sandbox))
    states.update({"task_0": "failed", "task_1": "deferred", "task": "failed"})
    kill(trigger, TaskInstance(map_index=1))
    assert outcomes(sandbox) == []
    kill(trigger, TaskInstance(map_index=0))
    assert outcomes(sandbox) == ["cancelled"]


@pytest.mark.parametrize("trouble", [RuntimeError("the API server is out"), TimeoutError()])
def test_request_is_not_cancelled_if_the_task_state_is_unavailable(
    sandbox: Sandbox, states: dict[str, Any], trouble: Exception
) -> None:
    trigger = trigger_for(queued(sandbox))
    states["trouble"] = trouble
    kill(trigger, TaskInstance())
    assert outcomes(sandbox) == []


def test_request_of_an_unknown_task_is_not_cancelled(sandbox: Sandbox, states: dict[str, Any]) -> None:
    trigger = trigger_for(queued(sandbox))
    kill(trigger, TaskInstance())
    kill(trigger, None)  # as in dag.test()
    assert outcomes(sandbox) == []


def test_cancel_on_kill_can_be_disabled(sandbox: Sandbox, states: dict[str, Any]) -> None:
    trigger = trigger_for(queued(sandbox), cancel_on_kill=False)
    states["task"] = "failed"
    kill(trigger, TaskInstance())
    assert outcomes(sandbox) == []


def test_log_says_that_a_running_request_is_charged(
    sandbox: Sandbox, states: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request_id = buy()
    states["task"] = "failed"
    kill(trigger_for(request_id), TaskInstance())
    assert outcomes(sandbox) == ["not_cancellable"]
    log = capfd.readouterr().out
    assert request_id in log
    assert "is charged" in log


def test_cancel_is_retried_during_a_short_outage(sandbox: Sandbox, states: dict[str, Any]) -> None:
    trigger = trigger_for(queued(sandbox))
    states["task"] = "failed"
    sandbox.add_fault("cancel", "reset", count=1)
    kill(trigger, TaskInstance())
    assert outcomes(sandbox) == ["cancelled"]


def submitted(run_id: str, **options: Any) -> dict[str, Any]:
    task = WanSubmitOperator(task_id="submit", check_image=False, journal=JOURNAL, **{**INPUTS, **options})
    result: dict[str, Any] = run(task, make_context(task_id="submit", run_id=run_id))
    return result


@pytest.mark.parametrize("face", ["submit", "sensor"])
def test_request_owned_by_another_run_is_not_cancelled(
    sandbox: Sandbox, bucket: Bucket, states: dict[str, Any], face: str
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    buy(prompt="keeps the only place")
    states.update({"submit": "failed", "wait": "failed"})

    def killed(run_id: str, **options: Any) -> None:
        if face == "submit":
            task = WanSubmitOperator(
                task_id="submit",
                check_image=False,
                journal=JOURNAL,
                wait_for_completion=True,
                **{**INPUTS, **options},
            )
            ti = TaskInstance("submit", run_id)
            trigger = start(task, {"ti": ti}).trigger
        else:
            ti = TaskInstance("wait", run_id)
            sensor = WanRequestSensor(task_id="wait", request=submitted(run_id, **options))
            trigger = start(sensor, {"ti": ti}).trigger
        kill(trigger, ti)

    submitted("theirs")
    killed("mine")
    assert outcomes(sandbox) == [], "another run counts on it"
    killed("mine", variation="mine alone")
    assert outcomes(sandbox) == ["cancelled"]


def test_request_is_not_cancelled_while_its_owners_are_unknown(
    sandbox: Sandbox, bucket: Bucket, states: dict[str, Any]
) -> None:
    trigger = trigger_for(queued(sandbox), journal=JOURNAL, fingerprint="f", watchers=["dag/run/task/-1"])
    states["task"] = "failed"
    sandbox.add_fault("bucket.*", "forbidden")
    kill(trigger, TaskInstance())
    assert outcomes(sandbox) == []


def test_missing_task_state_is_none(states: dict[str, Any]) -> None:
    states["task_3"] = "success"
    found: list[Any] = []
    worker = threading.Thread(
        target=lambda: found.extend([task_state(TaskInstance()), task_state(TaskInstance(map_index=3))])
    )
    worker.start()
    worker.join()
    assert found == [None, "success"]
