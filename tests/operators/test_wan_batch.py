# SPDX-License-Identifier: Apache-2.0
"""The batch operator in Airflow: it defers, resumes, and reports its outcome."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.batch_runs import IMAGES, TaskInstance, operator, play, run_try
from wan_sandbox.server import Sandbox


@pytest.fixture
def sandbox(queueing_sandbox: Sandbox) -> Sandbox:
    return queueing_sandbox


def test_one_trigger_polls_all_requests_and_returns_rarely(sandbox: Sandbox) -> None:
    def set_speed(part: str) -> None:
        """Generations end only while the task waits, so that it defers however slow this machine is."""
        sandbox.control("speed", {"speed": 1 if part == "worker" else 1000, "generation_seconds": 1000})

    ti = TaskInstance()
    summary, triggers = play(ti, resume_when_ready=3, before=set_speed)
    assert summary["landed"] == 12
    assert len(sandbox.ledger()["purchases"]) == 12
    assert 2 <= len(triggers) <= 8  # never once a request
    assert all(len(trigger.request_ids) <= 6 for trigger in triggers)
    assert ti.xcoms["summary"] == summary
    assert ti.xcoms["progress"]["done"] == 12
    assert summary["journal"] == "gs://videos/out/_journal"


def test_trigger_arguments_contain_no_secret_and_are_small(sandbox: Sandbox) -> None:
    _, triggers = play(TaskInstance())
    for trigger in triggers:
        text = json.dumps(trigger.serialize()[1])
        assert sandbox.token not in text
        assert "http" not in text
        assert len(text) < 2000


def test_a_batch_that_is_not_deferrable_runs_in_the_worker(sandbox: Sandbox) -> None:
    summary, triggers = play(TaskInstance(), deferrable=False)
    assert summary["landed"] == 12
    assert triggers == []


def test_failed_task_pushes_its_summary(sandbox: Sandbox) -> None:
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


@pytest.mark.parametrize("word", ["True", "on", " Y ", "t", "1"])
def test_a_dry_run_from_a_template_plans_only(sandbox: Sandbox, word: str) -> None:
    summary, _ = play(TaskInstance(), dry_run=word, max_cost_usd="100", price_usd="")
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
def test_invalid_parameters_fail_the_dag_file(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        operator(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"dry_run": "ture"},
        {"max_failures": "many"},
        {"max_cost_usd": "much"},
        {"share_of": 0},
        {"bucket_name": "no bucket"},
    ],
)
def test_invalid_rendered_parameters_fail_before_anything_is_bought(sandbox: Sandbox, changes: dict[str, Any]) -> None:
    from airflow_provider_wan.exceptions import WanInputError

    with pytest.raises(WanInputError):
        play(TaskInstance(), **changes)
    assert sandbox.ledger()["submits"] == []


@pytest.mark.parametrize("parameter", ["images", "inputs"])
def test_signatures_of_rendered_addresses_are_masked_wherever_airflow_shows_them(parameter: str) -> None:
    from airflow.sdk.log import redact

    signature = f"{parameter}-0123456789abcdef"
    row = {"end_image_url": f"https://h.example.com/b.jpg?X-Amz-Signature={signature}"}
    operator(**{parameter: [row] if parameter == "images" else row})
    assert signature not in str(redact(f"the images are {row}"))


@pytest.mark.parametrize("word", ["off", "F", "0", "", "None", None])
def test_a_false_dry_run_from_a_template_buys(sandbox: Sandbox, word: str | None) -> None:
    summary, _ = play(TaskInstance(), images=IMAGES[:1], dry_run=word)
    assert summary["landed"] == 1


def test_a_killed_worker_leaves_requests_in_flight_to_the_next_try(sandbox: Sandbox) -> None:
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


def test_the_status_file_has_each_image_while_the_batch_waits(sandbox: Sandbox) -> None:
    from airflow.providers.common.compat.sdk import TaskDeferred
    from google.cloud import storage

    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    sandbox.add_fault("submit", "invalid", img_url_contains="001.jpg")
    ti = TaskInstance()
    with pytest.raises(TaskDeferred):
        operator().execute({"ti": ti})
    progress = ti.xcoms["progress"]
    bucket, _, name = progress["standing"].removeprefix("gs://").partition("/")
    text = storage.Client().bucket(bucket).blob(name).download_as_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["image"] for line in lines] == IMAGES
    assert [line["outcome"] for line in lines] == ["in_flight", "refused", *["in_flight"] * 5, *["to_do"] * 5]
    assert all(line["request_id"] for line in lines if line["outcome"] == "in_flight")
    assert (progress["journal"], progress["total"]) == ("gs://videos/out/_journal", 12)


@pytest.mark.parametrize("price_usd", [0, "-1", "nan"])
def test_an_invalid_price_buys_nothing(sandbox: Sandbox, price_usd: Any) -> None:
    played = run_try(TaskInstance(), price_usd=price_usd, max_cost_usd=0.1)
    assert "price_usd=" in str(played.error)
    assert sandbox.ledger()["purchases"] == []


def test_an_unwritable_bucket_fails_the_task_at_once(sandbox: Sandbox) -> None:
    sandbox.add_fault("bucket.upload*", "forbidden")
    played = run_try(TaskInstance())
    assert "roles/storage.objectUser" in str(played.error)
    assert played.triggers == []
    assert sandbox.ledger()["purchases"] == []


@pytest.mark.parametrize("timeout", [0, -5.0])
def test_a_timeout_that_is_not_positive_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        operator(timeout=timeout)


def test_airflow_can_copy_the_task() -> None:
    copied = copy.deepcopy(operator())
    assert copied.prompt == operator().prompt
    copied.on_kill()
