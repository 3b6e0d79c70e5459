# SPDX-License-Identifier: Apache-2.0
"""The batch operator in Airflow: it waits in the triggerer, comes back, and tells how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.sandbox.server import Sandbox
from airflow_provider_wan.triggers.wan import WanBatchTrigger

IMAGES = [f"https://images.example.com/{number:03d}.jpg" for number in range(12)]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    settings = {"speed": 300, "concurrency": 4, "video_bytes": 20_000, "check_images": False}
    with Sandbox(**settings, buckets=("videos",)) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        yield started


class TaskInstance:
    """What the operator needs of one, with its XComs."""

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


def play(ti: TaskInstance, **changes: Any) -> tuple[dict[str, Any], list[WanBatchTrigger]]:
    """Run it as a worker and a triggerer do: a new operator for each part of it."""
    import asyncio

    from airflow.providers.common.compat.sdk import TaskDeferred

    triggers: list[WanBatchTrigger] = []
    work = lambda task: task.execute({"ti": ti})  # noqa: E731
    while True:
        try:
            return work(operator(**changes)), triggers
        except TaskDeferred as deferred:
            path, given = deferred.trigger.serialize()
            assert path == "airflow_provider_wan.triggers.wan_batch.WanBatchTrigger"
            again = WanBatchTrigger(**json.loads(json.dumps(given)))
            triggers.append(again)

        async def first(trigger: WanBatchTrigger = again) -> Any:
            return (await anext(trigger.run())).payload

        event = json.loads(json.dumps(asyncio.run(first())))
        work = lambda task, event=event: task.execute_complete({"ti": ti}, event)  # noqa: E731


def test_one_trigger_at_a_time_watches_all_and_comes_back_seldom(sandbox: Sandbox) -> None:
    ti = TaskInstance()
    summary, triggers = play(ti, resume_when_ready=3)
    assert summary["landed"] == 12
    assert len(sandbox.ledger()["purchases"]) == 12
    assert 2 <= len(triggers) <= 8  # never once a request
    assert all(len(trigger.request_ids) <= 6 for trigger in triggers)
    assert ti.xcoms["summary"] == summary
    assert ti.xcoms["progress"]["done"] == 12
    assert summary["journal"] == "gs://videos/out/_journal"


def test_nothing_secret_and_nothing_large_passes_through_the_trigger(sandbox: Sandbox) -> None:
    _, triggers = play(TaskInstance())
    for trigger in triggers:
        text = json.dumps(trigger.serialize()[1])
        assert sandbox.token not in text
        assert "http" not in text
        assert len(text) < 2000


def test_in_a_worker_alone_it_does_the_same(sandbox: Sandbox) -> None:
    summary, triggers = play(TaskInstance(), deferrable=False)
    assert summary["landed"] == 12
    assert triggers == []


def test_a_failed_task_tells_its_summary_too(sandbox: Sandbox) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    from airflow_provider_wan.exceptions import WanBudgetError

    ti = TaskInstance()
    with pytest.raises(WanBudgetError, match="7 of 12") as raised:
        play(ti, max_requests="5")
    assert isinstance(raised.value, AirflowFailException)
    assert ti.xcoms["summary"]["landed"] == 5
    assert ti.xcoms["summary"]["left"] == 7


def test_mapped_tasks_share_one_limit(sandbox: Sandbox) -> None:
    from airflow_provider_wan.exceptions import WanBudgetError

    for index, chunk in enumerate((IMAGES[:6], IMAGES[6:])):
        with pytest.raises(WanBudgetError):
            play(TaskInstance(index), images=chunk, max_requests=5, share_of="2", deferrable=False)
    assert len(sandbox.ledger()["purchases"]) == 5


def test_a_dry_run_from_a_template_plans_only(sandbox: Sandbox) -> None:
    summary, _ = play(TaskInstance(), dry_run="True", max_cost_usd="100", price_usd="")
    assert summary["to_buy"] == 12
    assert summary["cost_usd"] == pytest.approx(2.4)
    assert sandbox.ledger()["submits"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"max_in_flight": 0},
        {"parallel_landings": 0},
        {"retries_per_image": -1},
        {"if_exists": "what"},
        {"on_unknown_submission": "what"},
    ],
)
def test_parameters_that_can_not_be_fail_the_dag_file(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        operator(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"max_failures": "many"}, {"max_cost_usd": "much"}, {"share_of": 0}, {"bucket_name": "no bucket"}],
)
def test_templates_that_make_nonsense_fail_before_anything_is_bought(
    sandbox: Sandbox, changes: dict[str, Any]
) -> None:
    from airflow_provider_wan.exceptions import WanInputError

    with pytest.raises(WanInputError):
        play(TaskInstance(), **changes)
    assert sandbox.ledger()["submits"] == []


def test_a_killed_worker_leaves_what_is_in_flight_to_the_next_try(sandbox: Sandbox) -> None:
    import threading

    from airflow.providers.common.compat.sdk import AirflowException

    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    task = operator(deferrable=False)
    threading.Timer(2.0, task.on_kill).start()
    with pytest.raises(AirflowException, match="killed"):
        task.execute({"ti": TaskInstance()})
    assert "cancelled" not in sandbox.ledger()["states"]
    sandbox.control("speed", {"speed": 100_000})
    summary, _ = play(TaskInstance())
    assert summary["landed"] == 12
    assert len(sandbox.ledger()["purchases"]) == 12
