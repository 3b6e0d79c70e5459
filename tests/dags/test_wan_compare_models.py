# SPDX-License-Identifier: Apache-2.0
"""The example Dag that compares models, run by Airflow against the sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pendulum
import pytest

from tests.dag_runs import Run, run_example
from tests.gallery.test_contact_sheet import sheet
from tests.sandboxes import MODEL, Bucket
from wan_sandbox.server import Sandbox

PHOTOS = Path(__file__).resolve().parent.parent.parent / "demo" / "photos"
#: The last one has an alpha channel, which Wan 2.2 refuses.
NAMES = ("coffee.jpg", "horse_rgba.png")
MODELS = (MODEL, "wan-ai/wan-3.0/image-to-video", "bytedance/seedance-2.5/image-to-video/480p")

pytestmark = pytest.mark.usefixtures("airflow_db")


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox that encodes real videos, which pass the checks; with a parameter, it pads one to that many bytes."""
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
    video_bytes = getattr(request, "param", None)
    with Sandbox(speed=600, concurrency=4, video_bytes=video_bytes, buckets=("videos",)) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def photos(bucket: Bucket) -> str:
    for name in NAMES:
        bucket.put(f"photos/{name}", (PHOTOS / name).read_bytes(), f"image/{name[-3:]}")
    return "gs://videos/photos/"


def run(photos: str, **conf: Any) -> Run:
    options = {"logical_date": conf.pop("logical_date")} if "logical_date" in conf else {}
    defaults = {"images": photos, "bucket": "videos", "prompt": "steam rises"}
    return run_example("wan_compare_models", {**defaults, **conf}, **options)


def videos(bucket: Bucket) -> Counter[str]:
    return Counter(name.split("/")[1] for name in bucket.objects("compare/") if name.endswith(".mp4"))


def test_every_image_becomes_a_video_of_every_model_once(sandbox: Sandbox, bucket: Bucket, photos: str) -> None:
    folders = {model.replace("/", "--"): 2 for model in MODELS}
    for logical_date in (None, pendulum.datetime(2026, 3, 1, tz="UTC")):
        made = run(photos, logical_date=logical_date)
        assert set(made.states().values()) == {"success"}
        assert videos(bucket) == folders
        assert Counter(one["model_id"] for one in sandbox.ledger()["purchases"]) == dict.fromkeys(MODELS, 2)

    html = sheet(bucket, "compare/index.html")
    assert (len(html.all("tr")), len(html.all("td")), len(html.all("video"))) == (1 + 2, 2 * 3, 6)
    for model in MODELS:
        assert f"{model} 2 of 2 usable" in html.words


@pytest.mark.parametrize("sandbox", [50_000], indirect=True, ids=["padded videos"])
def test_limit_is_shared_by_the_models_and_what_is_left_is_shown(sandbox: Sandbox, bucket: Bucket, photos: str) -> None:
    sandbox.control("price", {"price_usd": 0.2, "by_inputs": False})  # 0.2, 0.3 and 0.25 USD a clip
    made = run(photos, max_cost_usd=1.5)
    assert made.states()["compare"] == "success"
    assert Counter(one["model_id"] for one in sandbox.ledger()["purchases"]) == {
        MODELS[0]: 2,
        MODELS[1]: 1,
        MODELS[2]: 2,
    }
    assert sandbox.ledger()["charged_usd"] == pytest.approx(1.2)
    html = sheet(bucket, "compare/index.html")
    assert len(html.all("video")) == 5
