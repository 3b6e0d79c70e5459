# SPDX-License-Identifier: Apache-2.0
"""A limit in USD whose price is only known after the fact: one clip of each combination is bought first."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from airflow_provider_wan.batch.budget import BudgetLimits
from airflow_provider_wan.batch.prices import combination_of, given_price
from airflow_provider_wan.batch.report import Report
from airflow_provider_wan.exceptions import WanBudgetError
from airflow_provider_wan.model_api.schema import Model
from airflow_provider_wan.utils.params import DEFAULT_MODEL_ID
from tests.batch.batch_support import addresses, batch, connection, outcomes, run, wait
from wan_sandbox.server import Sandbox

FAST = {"price_check_s": 0.3}


@pytest.fixture
def sandbox(batch_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(batch_sandbox, timeout=20))
    batch_sandbox.control("price", {"price_usd": 0.1, "charged_usd": 0.5})
    return batch_sandbox


def charged(sandbox: Sandbox) -> float:
    return float(sandbox.ledger()["charged_usd"])


def learn(images: Any, limit: float, **more: Any) -> Report:
    more["limits"] = {**FAST, **more.get("limits", {})}
    return run(images, budget=BudgetLimits(max_cost_usd=limit), **more)


def test_a_clip_that_costs_more_than_the_page_says_does_not_pass_the_limit(sandbox: Sandbox) -> None:
    report = learn(addresses(12), 3.0)
    assert isinstance(report.error, WanBudgetError)
    assert outcomes(report) == {"landed": 6, "left": 6}
    assert report.summary["cost_usd"] == pytest.approx(charged(sandbox)) == pytest.approx(3.0)
    assert report.summary["cost_is_exact"]

    plan = batch(addresses(3, first=50)).dry_run().summary
    assert (plan["price_usd"], plan["price_source"]) == (0.5, "learned")


@pytest.mark.parametrize(
    ("call", "fault", "params"),
    [("media", "hang", {}), ("bucket.upload", "status", {"object_contains": ".mp4", "status": 503})],
)
def test_price_is_learned_from_a_clip_that_can_not_land(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, call: str, fault: str, params: dict[str, Any]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, timeout=8))
    rule = sandbox.add_fault(call, fault, **params)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(learn, addresses(3), 3.0)
        deadline = time.monotonic() + 60
        while len(sandbox.ledger()["purchases"]) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        bought = len(sandbox.ledger()["purchases"])
        sandbox.control(f"faults/{rule}", method="DELETE")
        report = running.result()
    assert bought == 3
    assert outcomes(report) == {"landed": 3}


@pytest.mark.parametrize("seed", range(6))
def test_a_limit_is_exceeded_by_one_surprise_for_each_combination_at_most(sandbox: Sandbox, seed: int) -> None:
    random = Random(seed)
    sandbox.control("price", {"price_usd": 0.1, "by_inputs": True, "charged_usd": None})
    sandbox.add_fault("generation", "fail", rate=random.choice([0.0, 0.2]))
    costs = {"480P": 0.15, "1080P": 0.5}
    rows = [{"image": image, "resolution": random.choice(list(costs))} for image in addresses(20)]
    limit = random.uniform(0.2, 3.0)
    report = learn(rows, limit, limits={"retries_per_image": random.randrange(2)})
    surprise = sum(cost - 0.1 for cost in costs.values())
    assert charged(sandbox) <= limit + surprise + 1e-9
    assert report.summary["cost_usd"] == pytest.approx(charged(sandbox)) or not report.summary["cost_is_exact"]


def test_a_clip_that_failed_or_was_not_charged_teaches_nothing(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="00000.jpg")
    report = learn(addresses(10), 1.0)
    assert outcomes(report) == {"failed": 1, "landed": 2, "left": 7}
    assert charged(sandbox) == pytest.approx(1.0)


def test_a_cost_that_appears_late_is_waited_for(sandbox: Sandbox) -> None:
    sandbox.add_fault("result", "cost_absent", count=3)
    report = learn(addresses(10), 1.0)
    assert outcomes(report) == {"landed": 2, "left": 8}


def test_a_cost_that_never_appears_ends_the_batch_and_asks_for_the_price(sandbox: Sandbox) -> None:
    sandbox.add_fault("result", "cost_absent")
    report = learn(addresses(10), 3.0, limits={"cost_wait_s": 1.0})
    assert isinstance(report.error, WanBudgetError)
    assert "Set price_usd" in str(report.error)
    assert outcomes(report) == {"landed": 1, "left": 9}
    assert not report.summary["cost_is_exact"]
    assert report.summary["cost_unknown"] == 1


def test_chunks_learn_a_price_once_and_share_the_limit(sandbox: Sandbox) -> None:
    def chunk(index: int) -> Report:
        return run(
            addresses(10, first=10 * index),
            budget=BudgetLimits(max_cost_usd=3.0, index=index, of=4),
            owner=f"dag/run/task/{index}",
            limits=FAST,
            deadline_s=300,
        )

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(chunk, range(4)))
    assert charged(sandbox) == pytest.approx(3.0)
    assert sum(report.summary["landed"] for report in reports) == 6
    again = [chunk(index).summary for index in range(4)]  # the cut is stored: a clear buys no more
    assert sum(summary["bought"] for summary in again) == 6
    assert charged(sandbox) == pytest.approx(3.0)


def test_a_chunk_waits_deferred_for_a_price_that_another_learns(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    limits = BudgetLimits(max_cost_usd=5.0)
    first = batch(addresses(4), budget=limits, owner="dag/run/task/0")
    assert first.begin().run(may_pause=True) is not None
    # It is deferred only for a wait of more than 10 s.
    given = {"limits": {"price_check_s": 12.0, "max_in_flight": 50}, "owner": "dag/run/task/1"}
    other = batch(addresses(4, first=10), budget=limits, **given)
    engine = other.begin()
    pause = engine.run(may_pause=True)
    assert pause is not None
    assert pause.request_ids == ()
    assert wait(pause, deadline_s=0.2)["outcome"] == "timeout"  # it does not return at once
    other.save(engine)
    assert len(sandbox.ledger()["purchases"]) == 1

    sandbox.control("speed", {"speed": 100_000})
    other = batch(addresses(4, first=10), budget=limits, **given)
    engine = other.resume({"outcome": "due"})
    assert engine.run(may_pause=False) is None  # it reads the cost of the other chunk's request
    report = other.report(engine)
    assert outcomes(report) == {"landed": 4}


def test_a_price_that_a_killed_task_was_to_learn_is_learned_by_another(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = (datetime.now(UTC) - timedelta(seconds=300)).isoformat()
    killed = batch(addresses(1), budget=BudgetLimits(max_cost_usd=5.0), owner="dag/killed/task/-1").begin()
    prices = killed.state.prices
    with monkeypatch.context() as patched:
        patched.setattr("airflow_provider_wan.batch.prices.utc_text", lambda: long_ago)
        prices.claim(prices.key_of(next(iter(killed.state.plan.items.values())).inputs), may_take_over=False)
    assert outcomes(learn(addresses(2), 1.0)) == {"landed": 2}


def test_given_prices_are_used_by_combination_and_nothing_is_learned_first(sandbox: Sandbox) -> None:
    report = learn(addresses(10), 1.0, price_usd={"resolution=480P": 0.5, "": 9.0})
    assert outcomes(report) == {"landed": 2, "left": 8}


def test_combinations_leave_out_free_text_seed_and_media() -> None:
    inputs = {"prompt": "waves", "negative_prompt": "rain", "seed": 7, "img_url": "https://x/y.jpg"}
    assert combination_of(Model.bundled(DEFAULT_MODEL_ID), inputs) == {
        "duration": 5,
        "prompt_extend": True,
        "resolution": "480P",
    }
    free_form = {"prompt": "a", "audio_url": "https://x/y.mp3", "generate_audio": True, "duration": "10"}
    assert combination_of(Model("any/model/x"), free_form) == {"duration": "10", "generate_audio": True}


@pytest.mark.parametrize(
    ("given", "price"),
    [
        (0.3, 0.3),
        (None, None),
        ({"resolution=480P": 0.1, "resolution=1080P": 0.5}, 0.5),
        ({"resolution=1080P": 0.5, "resolution=1080P, duration=5": 0.7, "": 0.1}, 0.7),
        ({"resolution=480P": 0.1, "": 0.2}, 0.2),
        ({"resolution=480P": 0.1}, None),
    ],
)
def test_the_entry_that_names_most_inputs_gives_the_price(given: Any, price: float | None) -> None:
    assert given_price(given, {"resolution": "1080P", "duration": 5}) == price
