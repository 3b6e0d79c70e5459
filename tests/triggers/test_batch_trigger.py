# SPDX-License-Identifier: Apache-2.0
"""One trigger for many requests, on an event loop against a sandbox."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_wan.triggers import base
from airflow_provider_wan.triggers.wan import WanBatchTrigger
from wan_sandbox.server import Sandbox

MODEL = "wan-ai/wan-2-2/image-to-video"
ME, OTHER = "dag/run/task/-1", "dag/other/task/-1"
JOURNAL = "gs://videos/_journal"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    settings = {"check_images": False, "video_bytes": 20_000, "generation_seconds": 3600, "concurrency": 2}
    with Sandbox(**settings, buckets=("videos",)) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def request_ids(sandbox: Sandbox) -> list[str]:
    """Six requests, two of which run."""
    from airflow_provider_wan.hooks.wan import WanHook

    hook = WanHook()
    inputs = {"prompt": "waves", "img_url": "https://images.example.com/1.jpg"}
    return [hook.submit(MODEL, {**inputs, "seed": seed}).request_id for seed in range(6)]


def trigger(request_ids: list[str], **changes: Any) -> WanBatchTrigger:
    given: dict[str, Any] = {
        "wan_conn_id": "wan_default",
        "request_ids": request_ids,
        "deadline": time.time() + 60,
        "resume_when_ready": 2,
        "resume_after": 60.0,
        "journal": JOURNAL,
        "watcher": ME,
    }
    return WanBatchTrigger(**{**given, **changes})


def fire(one: WanBatchTrigger) -> dict[str, Any]:
    async def first() -> dict[str, Any]:
        async for event in one.run():
            return dict(event.payload)
        raise AssertionError("it fired no event")

    return asyncio.run(first())


def test_trigger_fires_once_when_enough_requests_are_finished(sandbox: Sandbox, request_ids: list[str]) -> None:
    sandbox.control("speed", {"speed": 2000})
    event = fire(trigger(request_ids))
    assert event["outcome"] == "ready"
    assert set(event["ready"]) <= set(request_ids)
    assert len(event["ready"]) >= 2
    assert "http" not in json.dumps(event)


def test_trigger_fires_when_the_oldest_finished_request_has_waited_long_enough(
    sandbox: Sandbox, request_ids: list[str]
) -> None:
    sandbox.control(f"requests/{request_ids[0]}", {"state": "succeeded"})
    event = fire(trigger(request_ids, resume_when_ready=6, resume_after=0.2))
    assert event["ready"] == [request_ids[0]]


def test_trigger_fires_when_all_requests_are_finished(sandbox: Sandbox, request_ids: list[str]) -> None:
    sandbox.control("speed", {"speed": 100_000})
    assert set(fire(trigger(request_ids, resume_when_ready=50))["ready"]) == set(request_ids)


@pytest.mark.parametrize(("changes", "outcome"), [("deadline", "timeout"), ("not_later_than", "due")])
def test_trigger_fires_at_its_deadline(request_ids: list[str], changes: str, outcome: str) -> None:
    event = fire(trigger(request_ids, **{changes: time.time() + 0.5}))
    assert (event["outcome"], event["ready"]) == (outcome, [])


def test_another_triggerer_resumes_from_the_serialized_state(sandbox: Sandbox, request_ids: list[str]) -> None:
    event = fire(trigger(request_ids, not_later_than=time.time() + 1.0))
    path, given = trigger(request_ids, started=event["started"], learned=event["learned"]).serialize()
    assert path.rpartition(".")[2] == "WanBatchTrigger"
    assert set(event["started"]) <= set(request_ids[:2])
    sandbox.control("speed", {"speed": 100_000})
    assert fire(WanBatchTrigger(**json.loads(json.dumps(given))))["outcome"] == "ready"


def test_failing_polls_are_repeated(sandbox: Sandbox, request_ids: list[str]) -> None:
    sandbox.add_fault("status", "status", rate=0.4, status=503)
    sandbox.control("speed", {"speed": 100_000})
    assert set(fire(trigger(request_ids, resume_when_ready=6))["ready"]) == set(request_ids)


def test_connection_that_cannot_be_read_at_first_ends_no_wait(
    sandbox: Sandbox, request_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.01")
    sandbox.control("speed", {"speed": 100_000})
    good = sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", '{"conn_type": "wan"}')

    async def mended() -> dict[str, Any]:
        events = trigger(request_ids).run()
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.1)
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", good)
        return dict((await waiting).payload)

    assert asyncio.run(mended())["outcome"] == "ready"


def test_a_token_that_is_rotated_meanwhile_is_read_again(
    sandbox: Sandbox, request_ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.control("speed", {"speed": 100_000})
    old = sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"]

    def wait_for_a_refusal() -> None:
        while not sandbox.ledger()["refusals"]:
            time.sleep(0.01)

    async def rotated() -> dict[str, Any]:
        sandbox.control("tokens", {"revoke": sandbox.token})
        waiting = asyncio.ensure_future(anext(trigger(request_ids).run()))
        await asyncio.to_thread(wait_for_a_refusal)
        sandbox.control("tokens", {"add": "another-token"})
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", old.replace(sandbox.token, "another-token"))
        return dict((await waiting).payload)

    assert asyncio.run(rotated())["outcome"] == "ready"


def test_long_wait_logs_how_many_requests_are_left(
    request_ids: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from airflow_provider_wan.triggers import wan_batch

    monkeypatch.setattr(wan_batch, "_LOG_EVERY_S", 0.3)
    fire(trigger(request_ids, not_later_than=time.time() + 3.0))
    assert "Still waiting: 2 running, 4 queued, 0 over." in capfd.readouterr().out


def remember(request_ids: list[str], **watchers: Any) -> None:
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.durable.record import Record, Stage
    from airflow_provider_wan.hooks.gcs import storage_client

    journal = BucketJournal(storage_client(), JOURNAL)
    for number, request_id in enumerate(request_ids):
        also = (OTHER,) if number == len(request_ids) - 1 else ()
        journal.write(
            Record(
                fingerprint=f"{number:064x}",
                model_id=MODEL,
                stage=Stage.SUBMITTED,
                request_id=request_id,
                watchers=(ME, *also),
            ),
            replaces=None,
        )


@pytest.mark.parametrize("state", [*sorted(base.OVER_FOR_GOOD), "deferred", "running", "queued", None])
def test_kill_cancels_queued_requests_without_an_owner(
    sandbox: Sandbox, request_ids: list[str], monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    remember(request_ids)
    monkeypatch.setattr(base, "task_state", lambda ti: state)  # Airflow's answer, from a database
    one = trigger(request_ids)
    one.task_instance = SimpleNamespace(task_id="batch")  # type: ignore[assignment]
    asyncio.run(one.on_kill())
    states = sandbox.ledger()["states"]
    if state in base.OVER_FOR_GOOD:
        assert states == {"running": 2, "cancelled": 3, "queued": 1}  # another task counts on the last one
    else:
        assert states == {"running": 2, "queued": 4}


def test_kill_without_a_task_cancels_nothing(sandbox: Sandbox, request_ids: list[str]) -> None:
    remember(request_ids)
    asyncio.run(trigger(request_ids).on_kill())
    asyncio.run(trigger(request_ids, cancel_on_kill=False).on_kill())
    assert "cancelled" not in sandbox.ledger()["states"]
