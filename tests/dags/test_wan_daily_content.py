# SPDX-License-Identifier: Apache-2.0
"""The daily example DAG, run by Airflow against the sandbox: the images of each day, and the cost of a rerun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pendulum
import pytest

from tests.dag_runs import Run, run_example
from tests.sandboxes import Bucket
from tests.task_runs import posts, purchases
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


def test_usable_images_land_and_unusable_ones_cost_nothing_and_skip_only_themselves(
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


def test_each_day_uses_the_next_images_and_restarts_after_the_last(sandbox: Sandbox, bucket: Bucket) -> None:
    images = catalogue(bucket, *USABLE)
    for days in range(2):
        assert run_day(images, DAY.add(days=days), per_day=2).state == "success"
    taken = [name.split("/")[-1] for name in videos(bucket)]
    assert len(taken) == 4
    assert len(set(taken)) == 3


def test_rerun_of_a_day_buys_nothing_and_the_next_round_buys_new_videos(sandbox: Sandbox, bucket: Bucket) -> None:
    images = catalogue(bucket, USABLE[0])
    landed = [run_day(images).xcom("make_video.land", map_index=0) for _ in range(2)]
    assert landed[0] == landed[1]
    assert len(purchases(sandbox)) == 1
    run_day(images, DAY.add(days=1))
    assert len(purchases(sandbox)) == 2
    assert videos(bucket) == ["2026/03/01/astronaut.mp4", "2026/03/02/astronaut.mp4"]


def test_run_without_a_logical_date_uses_its_run_after_date(sandbox: Sandbox, bucket: Bucket) -> None:
    run = run_day(catalogue(bucket, USABLE[0]), None)
    assert run.state == "success"
    day = pendulum.instance(run.dag_run.run_after).in_tz("UTC")
    assert videos(bucket) == [f"{day:YYYY/MM/DD}/{USABLE[0].replace('.jpg', '.mp4')}"]


@pytest.mark.parametrize("conf", [{"images": []}, {"bucket": ""}])
def test_without_a_catalogue_the_run_fails_and_says_what_to_set(
    sandbox: Sandbox, conf: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"img_url": "https://images.example.com/a.jpg", "prompt": "a slow wave"}]
    run = run_example("wan_daily_content", {"bucket": "videos", "images": images, **conf}, logical_date=DAY)
    assert run.states()["pick_todays_images"] == "failed"
    assert "set the Airflow Variable wan_daily_content" in capsys.readouterr().out
    assert posts(sandbox) == 0
