# SPDX-License-Identifier: Apache-2.0
"""Prices of a batch whose model page states a price per second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_wan.batch.budget import BudgetLimits
from airflow_provider_wan.exceptions import WanBudgetError
from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.images.source import ImageOptions, ImageSources
from airflow_provider_wan.model_api.schema import LazyModel
from tests.batch.batch_support import LOG, addresses, batch, manifest, outcomes, point_at, run
from wan_sandbox.server import Sandbox

#: A model that accepts any input, including any duration.
ANY_LENGTH = "sandbox/free-form/any"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    options = {"speed": 200, "video_bytes": 20_000, "check_images": False, "price_unit": "second"}
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
    with Sandbox(buckets=("videos",), **options) as started:
        point_at(monkeypatch, started)
        yield started


def any_length() -> dict[str, Any]:
    options = ImageOptions(check=False, allow_private=True)
    sources = ImageSources(LazyModel(ANY_LENGTH, chosen_field="img_url"), storage_client, LOG, options=options)
    return {"model_id": ANY_LENGTH, "sources": sources}


def rows(*durations: Any) -> list[dict[str, Any]]:
    images = addresses(len(durations))
    return [{"image": image, "duration": given} for image, given in zip(images, durations, strict=True)]


def test_a_plan_adds_up_the_price_of_each_length(sandbox: Sandbox) -> None:
    summary = batch(rows(5, "15", 10), **any_length()).dry_run().summary
    assert (summary["price_usd"], summary["cost_usd"]) == (pytest.approx(0.6), pytest.approx(1.2))
    assert summary["price_source"] == "base"
    assert "USD per second" in summary["pricing_note"]
    assert [(price["count"], price["source"]) for price in summary["prices"]] == [(1, "base")] * 3


def test_a_limit_is_not_passed_because_a_row_is_longer(sandbox: Sandbox) -> None:
    report = run(rows(15, 15), budget=BudgetLimits(max_cost_usd=0.5), **any_length())
    assert isinstance(report.error, WanBudgetError)
    assert outcomes(report) == {"left": 2}
    assert sandbox.ledger()["submits"] == []


@pytest.mark.parametrize("duration", ["5s", "long", -5, [5]])
def test_an_unusable_length_refuses_its_row(sandbox: Sandbox, duration: Any) -> None:
    report = run(rows(5, duration), budget=BudgetLimits(max_cost_usd=0.5), **any_length())
    assert outcomes(report) == {"landed": 1, "refused": 1}
    assert "duration" in manifest(report)[-1]["error"]


def test_a_length_that_the_model_refuses_does_not_count(sandbox: Sandbox) -> None:
    report = run([*addresses(2), *rows("", "", 900)[2:]], budget=BudgetLimits(max_cost_usd=0.5))
    assert outcomes(report) == {"landed": 2, "refused": 1}


def test_an_unusable_length_of_the_task_refuses_its_rows(sandbox: Sandbox) -> None:
    inputs = {"prompt": "waves", "duration": "5s"}
    report = run([addresses(1)[0], *rows(None, 5)[1:]], inputs=inputs, budget=BudgetLimits(max_cost_usd=0.5))
    assert outcomes(report) == {"landed": 1, "refused": 1}
