# SPDX-License-Identifier: Apache-2.0
"""The daily example Dag, run by Airflow against the sandbox: what a day takes, and what a day again costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pendulum
import pytest

from tests.dag_runs import Run, run_example
from tests.face_runs import posts, purchases
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

PHOTOS = Path(__file__).resolve().parent.parent.parent / "demo" / "photos"
USABLE = ("astronaut.jpg", "coffee.jpg", "rocket.jpg")
NOT_USABLE = ("horse_rgba.png", "chelsea.jpg")
DAY = pendulum.datetime(2026, 3, 1)

pytestmark = pytest.mark.usefixtures("airflow_db")


def catalogue(bucket: Bucket, *names: str) -> list[dict[str, str]]:
    for name in names:
        bucket.put(f"photos/{name}", (PHOTOS / name).read_bytes(), "image/jpeg")
    base = f"{bucket.sandbox.bucket_url}/videos/photos"
    return [{"img_url": f"{base}/{name}", "prompt": f"a slow move over {name}"} for name in names]


def run_day(images: list[dict[str, str]], day: Any = DAY, **conf: Any) -> Run:
    return run_example("wan_daily_content", {"bucket": "videos", "images": images, **conf}, logical_date=day)


def videos(bucket: Bucket) -> list[str]:
    return sorted(name for name in bucket.objects("20") if name.endswith(".mp4"))


def test_what_is_usable_lands_and_what_is_not_costs_nothing_and_stops_nobody(
    sandbox: Sandbox, bucket: Bucket
) -> None:
    run = run_day(catalogue(bucket, USABLE[0], *NOT_USABLE))
    assert run.state == "success"
    states = run.states()
    assert [states[f"make_video.submit[{index}]"] for index in range(3)] == ["success", "skipped", "skipped"]
    assert videos(bucket) == ["2026/03/01/astronaut.mp4"]
    assert len(purchases(sandbox)) == posts(sandbox) == 1
    rules = [run.xcom("make_video.submit", key="refused", map_index=index)[0]["rule"] for index in (1, 2)]
    assert "transparency" in rules[0]
    assert "360" in rules[1]


def test_each_day_takes_the_next_images_and_begins_again_at_the_end(sandbox: Sandbox, bucket: Bucket) -> None:
    images = catalogue(bucket, *USABLE)
    for days in range(2):
        assert run_day(images, DAY.add(days=days), per_day=2).state == "success"
    taken = [name.split("/")[-1] for name in videos(bucket)]
    assert len(taken) == 4
    assert len(set(taken)) == 3


def test_a_day_that_runs_again_buys_nothing_and_the_next_round_buys_a_new_take(
    sandbox: Sandbox, bucket: Bucket
) -> None:
    images = catalogue(bucket, USABLE[0])
    landed = [run_day(images).xcom("make_video.land", map_index=0) for _ in range(2)]
    assert landed[0] == landed[1]
    assert len(purchases(sandbox)) == 1
    run_day(images, DAY.add(days=1))
    assert len(purchases(sandbox)) == 2
    assert videos(bucket) == ["2026/03/01/astronaut.mp4", "2026/03/02/astronaut.mp4"]
