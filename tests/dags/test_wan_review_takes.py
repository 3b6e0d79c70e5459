# SPDX-License-Identifier: Apache-2.0
"""The example Dag in which a person chooses the takes that are published, run by Airflow against the sandbox."""

from __future__ import annotations

from pathlib import Path

import airflow
import pytest

from tests.dag_runs import run_example
from tests.dags.people import person
from tests.gallery.test_contact_sheet import sheet
from tests.sandboxes import Bucket

PHOTOS = Path(__file__).resolve().parent.parent.parent / "demo" / "photos"

pytestmark = [
    pytest.mark.usefixtures("airflow_db"),
    pytest.mark.skipif(
        airflow.__version__.startswith(("3.1.", "3.2.")), reason="dag.test() asks nobody before Airflow 3.3"
    ),
]


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")


def test_only_the_takes_that_a_person_chose_are_published(bucket: Bucket) -> None:
    for name in ("coffee", "boat"):
        bucket.put(f"photos/{name}.jpg", (PHOTOS / "coffee.jpg").read_bytes() + name.encode(), "image/jpeg")

    def choose(subject: str, options: list[str]) -> list[str]:
        if "boat" in subject:
            return ["none of them"]
        return [option for option in options if "take-2" in option]

    conf = {"images": "gs://videos/photos/", "bucket": "videos"}
    with person(choose, questions=2) as asked:
        run = run_example("wan_review_takes", conf)
    assert set(run.states().values()) == {"success"}
    assert {question["subject"]: question["options"] for question in asked} == {
        "Which takes of boat.jpg are published?": ["boat/take-1.mp4", "boat/take-2.mp4", "none of them"],
        "Which takes of coffee.jpg are published?": [
            "coffee/take-1.mp4",
            "coffee/take-2.mp4",
            "none of them",
        ],
    }
    assert all("(https://storage.cloud.google.com/videos/takes/index.html)" in one["body"] for one in asked)
    assert set(bucket.objects("published/")) == {
        "published/coffee/take-2.mp4",
        "published/coffee/take-2.mp4.json",
        "published/coffee/take-2.poster.jpg",
    }
    assert bucket.read("published/coffee/take-2.mp4") == bucket.read("takes/coffee/take-2.mp4")
    assert len(sheet(bucket, "takes/index.html").all("video")) == 4
    assert len(bucket.sandbox.ledger()["purchases"]) == 4


def test_nothing_is_published_if_nothing_was_chosen(bucket: Bucket) -> None:
    bucket.put("photos/coffee.jpg", (PHOTOS / "coffee.jpg").read_bytes(), "image/jpeg")
    with person(lambda *_: ["none of them"]):
        run = run_example("wan_review_takes", {"images": "gs://videos/photos/", "bucket": "videos"})
    assert run.states()["publish"] == "skipped"
    assert bucket.objects("published/") == {}
