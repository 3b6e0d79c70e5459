# SPDX-License-Identifier: Apache-2.0
"""The backfill of a partitioned dataset, run by Airflow for several days, and again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pendulum
import pytest

from wan_sandbox.server import Sandbox

if TYPE_CHECKING:
    from airflow.sdk.definitions.dag import DAG

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTOS = ROOT / "demo" / "photos"
CONF = {
    "source": "gs://photos/set",
    "bucket": "videos",
    "prefix": "films",
    "prompt": "steam rises",
    "max_cost_usd": 5.0,
}
DAYS = [pendulum.datetime(2026, 3, day, tz="UTC") for day in (1, 2, 3)]
OF_DAY = [("coffee.jpg", "chelsea.jpg"), ("astronaut.jpg",), ("rocket.jpg", "coffee.jpg")]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")  # a generation takes half a second here
    with Sandbox(speed=200, concurrency=4, video_bytes=30_000, buckets=("photos", "videos")) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        from google.cloud import storage

        photos = storage.Client().bucket("photos")
        for day, names in zip(DAYS, OF_DAY, strict=True):
            for name in names:
                blob = photos.blob(f"set/dt={day.to_date_string()}/{name}")
                blob.upload_from_filename(str(PHOTOS / name))
        yield started


@pytest.fixture
def dag(airflow_db: Path, monkeypatch: pytest.MonkeyPatch) -> DAG:
    monkeypatch.syspath_prepend(ROOT / "dags")
    sys.modules.pop("wan_backfill_dataset", None)
    import wan_backfill_dataset
    from airflow.models.pool import Pool

    Pool.create_or_update_pool("wan", slots=4, description="", include_deferred=False)
    return wan_backfill_dataset.dag


def run(dag: DAG, day: pendulum.DateTime | None, **conf: Any) -> tuple[str, list[dict[str, Any]]]:
    """Run one day; return the run's state and the summaries of its chunks."""
    result = dag.test(logical_date=day, run_conf={**CONF, **conf})
    chunks = [ti for ti in result.get_task_instances() if ti.task_id == "make_videos"]
    summaries = [ti.xcom_pull(task_ids=ti.task_id, key="summary", map_indexes=ti.map_index) for ti in chunks]
    return str(result.state), summaries


def videos() -> list[str]:
    from google.cloud import storage

    found = storage.Client().list_blobs("videos", prefix="films/dt=")
    return [blob.name for blob in found if blob.name.endswith(".mp4")]


def test_every_day_is_generated_once_however_often_it_runs(dag: DAG, sandbox: Sandbox) -> None:
    for day in DAYS:
        state, _ = run(dag, day)
        assert state == "success"
    per_day = Counter(name.split("/")[1] for name in videos())
    assert per_day == {"dt=2026-03-01": 2, "dt=2026-03-02": 1, "dt=2026-03-03": 2}
    assert len(sandbox.ledger()["purchases"]) == 5

    state, (summary,) = run(dag, DAYS[0])
    assert state == "success"
    assert summary["total"] == summary["landed"] + summary["reused"] == 2
    assert len(sandbox.ledger()["purchases"]) == 5


def test_run_without_a_logical_date_uses_the_current_day(dag: DAG, sandbox: Sandbox) -> None:
    from google.cloud import storage

    for day in (pendulum.now("UTC"), pendulum.now("UTC").add(days=1)):  # the run may cross midnight
        blob = storage.Client().bucket("photos").blob(f"set/dt={day.to_date_string()}/coffee.jpg")
        blob.upload_from_filename(str(PHOTOS / "coffee.jpg"))
    state, (summary,) = run(dag, None)
    assert state == "success"
    assert summary["landed"] == 1


def test_unpausing_runs_no_day_of_the_past_and_each_day_has_a_small_limit(dag: DAG) -> None:
    assert not dag.catchup
    assert dag.params["max_cost_usd"] <= 10


def test_day_that_reaches_its_limit_reports_the_remaining_images(dag: DAG, sandbox: Sandbox) -> None:
    state, (summary,) = run(dag, DAYS[0], max_cost_usd=0.3)
    assert state == "failed"
    assert summary["landed"] == summary["left"] == 1
    assert len(sandbox.ledger()["purchases"]) == 1


def test_a_bad_image_does_not_stop_the_others_and_an_empty_day_is_skipped(dag: DAG, sandbox: Sandbox) -> None:
    from google.cloud import storage

    folder = f"set/dt={DAYS[0].to_date_string()}"
    for number in range(12):
        photo = storage.Client().bucket("photos").blob(f"{folder}/more{number}.png")
        body = (PHOTOS / "horse_rgba.png").read_bytes() if number else b"this is no image"
        photo.upload_from_string(body, content_type="image/png")

    state, (summary,) = run(dag, DAYS[0])
    assert state == "success"
    assert summary["landed"] == summary["total"] == 3  # the same image eleven times is one video

    state, summaries = run(dag, DAYS[0].subtract(days=1))
    assert state == "success"
    assert not any(summaries)
