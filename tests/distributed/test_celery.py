# SPDX-License-Identifier: Apache-2.0
"""On Celery, nothing is bought twice and everything lands."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.distributed.cluster import CeleryAirflow
from tests.live.harness_live import VIDEOS_BUCKET, Live
from tests.live.test_backfill_live import OF_DAY, begin, ended_well, publish, purchases, videos, wait_over

pytestmark = pytest.mark.live
CHUNKS, DAILY, PRODUCER, DOWNSTREAM = (
    "backfill_chunks",
    "wan_daily_content",
    "wan_asset_producer",
    "wan_asset_downstream",
)
PATIENCE_S = 900
"""How long anything is waited for: a busy machine is slow, and that proves nothing."""


def test_scheduled_backfilled_and_asset_triggered_runs(live: Live, airflow: CeleryAirflow) -> None:
    days = ("2026-03-01", "2026-03-02", "2026-03-03")
    for day in days:
        publish(live, day)
    airflow.wait_for_dags(CHUNKS, DAILY, PRODUCER, DOWNSTREAM, timeout_s=PATIENCE_S)
    live.client.api("POST", "/pools", {"name": "wan", "slots": 8, "include_deferred": True})
    daily_image, campaign_image = live.image("daily"), live.image("campaign")
    set_catalogue(live, daily_image)

    for dag_id in (CHUNKS, DAILY, DOWNSTREAM):
        live.client.unpause(dag_id)  # the latest day of the daily content is due
    backfill_id = begin(live, CHUNKS, *days)
    produced = live.start(PRODUCER, {"img_url": campaign_image, "bucket": VIDEOS_BUCKET})

    live.assert_ends(PRODUCER, produced, timeout_s=PATIENCE_S)
    for dag_id in (DAILY, DOWNSTREAM):
        live.assert_ends(dag_id, only_run(live, dag_id), timeout_s=PATIENCE_S)
    wait_over(live, backfill_id)
    ended_well(live, CHUNKS)

    assert purchases(live) == videos(live) == {f"dt={day}": len(OF_DAY) for day in days}
    assert Counter(one["img_url"] for one in live.sandbox.ledger()["purchases"]).most_common(1)[0][1] == 1
    assert len(live.videos("campaign/")) == 1
    assert [video["writes"] for video in live.videos()] == [1] * (len(days) * len(OF_DAY) + 2)
    # Both workers have had tasks, and each has written to its own folder only.
    for worker in airflow.workers:
        assert list((airflow.home / worker.name / "logs").rglob("attempt=*.log"))


def set_catalogue(live: Live, *images: str) -> None:
    """Make these images the ones of each day."""
    catalogue = [{"img_url": image, "prompt": "A slow move closer"} for image in images]
    value = json.dumps({"bucket": VIDEOS_BUCKET, "images": catalogue})
    live.client.api("POST", "/variables", {"key": DAILY, "value": value})


def only_run(live: Live, dag_id: str) -> str:
    """Wait until a Dag has a run, and return the id of the only one."""
    [run] = live.wait_until(
        lambda: live.client.pages(f"/dags/{dag_id}/dagRuns", "dag_runs"), f"a run of {dag_id}"
    )
    return str(run["dag_run_id"])
