# SPDX-License-Identifier: Apache-2.0
"""The backfill example on a real scheduler: several days at once, overlapping runs, and a complete
repetition.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import unquote

import requests

from tests.live.harness_live import IMAGES_BUCKET, PHOTOS, VIDEOS_BUCKET, Live
from tests.live.harness_scenarios import scenario

EXAMPLE, AGAIN = "wan_backfill_dataset", "backfill_dataset_again"
PLACE = "backfill"
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
OF_DAY = ("coffee.jpg", "astronaut.jpg")
CONF = {"source": f"gs://{IMAGES_BUCKET}/{PLACE}", "bucket": VIDEOS_BUCKET, "prefix": PLACE}
TIMEOUT_S = 600


@scenario
def test_days_are_caught_up_at_once_and_each_image_is_bought_once(live: Live) -> None:
    for day in DAYS:
        publish(live, day)
    live.client.api("POST", "/pools", {"name": "wan", "slots": 4, "include_deferred": True})
    live.airflow.wait_for_dags(EXAMPLE, AGAIN)
    live.client.unpause(EXAMPLE)
    live.client.unpause(AGAIN)

    # Three days at the same time, and two of them in another Dag at the same time.
    backfills = [begin(live, EXAMPLE, *DAYS), begin(live, AGAIN, *DAYS[1:])]
    for backfill_id in backfills:
        wait_over(live, backfill_id)

    runs = ended_well(live, EXAMPLE)
    assert sorted(runs) == list(DAYS)
    assert max(run["start_date"] for run in runs.values()) < min(run["end_date"] for run in runs.values())
    assert sorted(ended_well(live, AGAIN)) == list(DAYS[1:])
    bought = purchases(live)
    assert bought == {f"dt={day}": len(OF_DAY) for day in DAYS}
    assert videos(live) == bought

    wait_over(live, begin(live, EXAMPLE, *DAYS, reprocess_behavior="completed"))
    again = ended_well(live, EXAMPLE)
    assert all(again[day]["start_date"] > runs[day]["end_date"] for day in DAYS)
    assert purchases(live) == bought
    assert all(video["writes"] == 1 for video in live.videos(f"{PLACE}/dt="))


def publish(live: Live, day: str) -> None:
    """Put a day's photographs where the example looks for them."""
    for photo in OF_DAY:
        reply = requests.post(
            f"{live.sandbox.bucket_url}/upload/storage/v1/b/{IMAGES_BUCKET}/o",
            params={"uploadType": "media", "name": f"{PLACE}/dt={day}/{photo}"},
            headers={"Content-Type": "image/jpeg"},
            data=(PHOTOS / photo).read_bytes(),
            timeout=30,
        )
        reply.raise_for_status()


def begin(live: Live, dag_id: str, *days: str, **more: Any) -> int:
    """Create a backfill, as ``airflow backfill create`` does, and return its id."""
    body = {
        "dag_id": dag_id,
        "from_date": f"{days[0]}T00:00:00Z",
        "to_date": f"{days[-1]}T00:00:00Z",
        "dag_run_conf": CONF,
        **more,
    }
    return int(live.client.api("POST", "/backfills", body)["id"])


def wait_over(live: Live, backfill_id: int) -> None:
    """Wait until a backfill is over."""

    def over() -> str | None:
        ended: str | None = live.client.api("GET", f"/backfills/{backfill_id}")["completed_at"]
        return ended

    live.wait_until(over, f"the end of backfill {backfill_id}", timeout_s=TIMEOUT_S)


def ended_well(live: Live, dag_id: str) -> dict[str, dict[str, Any]]:
    """Return the runs of a Dag by day; fail, with logs, if one has not succeeded."""
    runs = live.client.pages(f"/dags/{dag_id}/dagRuns", "dag_runs")
    for run in runs:
        assert run["state"] == "success", live.client.why_failed(dag_id, run["dag_run_id"])
    return {run["logical_date"][:10]: run for run in runs}


def purchases(live: Live) -> Counter[str]:
    """How many requests were bought for each day's images, by the sandbox's ledger."""
    found = (unquote(one["img_url"]) for one in live.sandbox.ledger()["purchases"])
    return Counter(url.split("/")[-2] for url in found if f"/{PLACE}/" in url)


def videos(live: Live) -> Counter[str]:
    """How many videos lie in each day's folder."""
    return Counter(video["name"].split("/")[1] for video in live.videos(f"{PLACE}/dt="))
