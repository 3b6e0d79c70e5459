# SPDX-License-Identifier: Apache-2.0
"""Object names of a batch, and the rows of a dataset that it can use."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanInputError
from tests.batch.batch_support import addresses, batch, manifest, outcomes, purchases_per_image, run, videos
from wan_sandbox.server import Sandbox


@pytest.fixture
def sandbox(batch_sandbox: Sandbox) -> Sandbox:
    return batch_sandbox


@pytest.mark.parametrize(
    "elsewhere",
    [{"object_name": "other/{fingerprint}.mp4"}, {"bucket_name": "more", "object_name": "other/"}],
    ids=["name", "bucket"],
)
def test_video_landed_under_another_name_is_copied_not_bought(sandbox: Sandbox, elsewhere: dict[str, Any]) -> None:
    from google.cloud import storage

    storage.Client().create_bucket("more")
    run(addresses(4))
    calls = sandbox.ledger()["calls"]
    for outcome in ("landed", "reused"):
        report = run(addresses(4), owner=f"dag/{outcome}/task/-1", price_usd=0.2, **elsewhere)
        assert report.error is None
        assert outcomes(report) == {outcome: 4}
    bucket = elsewhere.get("bucket_name", "videos")
    landed = {line["uri"] for line in manifest(report)}
    assert landed == {f"gs://{bucket}/{name}" for name in videos(bucket, "other/")}
    assert sandbox.ledger()["calls"] == calls


def test_deleted_videos_are_landed_again(sandbox: Sandbox) -> None:
    from google.cloud import storage

    run(addresses(4))
    before = videos()
    for name in before[:2]:
        storage.Client().bucket("videos").blob(name).delete()
    report = run(addresses(4), owner="dag/2/task/-1")
    assert report.error is None
    assert outcomes(report) == {"landed": 2, "reused": 2}
    assert videos() == before
    assert sum(purchases_per_image(sandbox).values()) == 4


def test_a_video_deleted_everywhere_is_not_bought_again(sandbox: Sandbox) -> None:
    from google.cloud import storage

    first = manifest(run(addresses(2)))[0]
    storage.Client().bucket("videos").blob(videos()[0]).delete()
    sandbox.control(f"requests/{first['request_id']}", {"state": "vanished"})
    report = run(addresses(2), owner="dag/2/task/-1")
    assert outcomes(report) == {"not_landed": 1, "reused": 1}
    assert "not there any more" in manifest(report)[0]["error"]
    assert sum(purchases_per_image(sandbox).values()) == 2


def test_in_a_large_folder_only_the_names_of_the_batch_are_checked(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud import storage

    from airflow_provider_wan.batch import planner as module

    run(addresses(12))
    before = videos()
    storage.Client().bucket("videos").blob(before[7]).delete()
    monkeypatch.setattr(module, "_LIST_AT_LEAST", 4)
    monkeypatch.setattr(module, "_LIST_PER_IMAGE", 0)
    report = run(addresses(12), owner="dag/2/task/-1")
    assert outcomes(report) == {"landed": 1, "reused": 11}
    assert videos() == before


@pytest.mark.parametrize("if_exists", ["skip", "fail", "overwrite"])
def test_nothing_is_bought_for_a_taken_name(sandbox: Sandbox, if_exists: str) -> None:
    taken = {"object_name": "out/{name}.mp4", "if_exists": if_exists}
    run(addresses(3), **taken)
    snow = {"inputs": {"prompt": "snow"}, "owner": "dag/2/task/-1"}
    planned = batch(addresses(4), **taken, **snow).dry_run().summary
    report = run(addresses(4), **taken, **snow)
    if if_exists == "overwrite":
        assert outcomes(report) == {"landed": 4}
        assert planned["to_buy"] == 4
        return
    assert outcomes(report) == {"landed": 1, "refused": 3}
    assert (planned["to_buy"], planned["refused"]) == (1, 3)
    assert report.summary["bought"] == 1
    assert "gs://videos/out/00000.mp4 holds another object" in str(report.error)
    assert "{fingerprint}" in str(report.error)


@pytest.mark.parametrize(
    ("object_name", "problem"),
    [("out/video.mp4", "fingerprint"), ("out/{what}.mp4", "known are"), ("/{name}.mp4", "starts with")],
)
def test_unusable_name_patterns_are_refused_before_anything_is_bought(
    sandbox: Sandbox, object_name: str, problem: str
) -> None:
    with pytest.raises(WanInputError, match=problem):
        run(addresses(2), object_name=object_name)
    assert sandbox.ledger()["submits"] == []


def test_columns_and_names_of_a_manifest_make_object_names(sandbox: Sandbox) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "https://x.example/a%20b.jpg", "sku": "17/4", "prompt": "snow"},
        {"image": "https://x.example/c.jpg", "sku": 8, "variation": "two"},
    ]
    report = run(rows, object_name="out/{sku}/{name}{variation}.mp4", passthrough=("sku",))
    assert report.error is None
    assert videos() == ["out/17_4/a_b.mp4", "out/8/ctwo.mp4"]
    assert {purchase["prompt"] for purchase in sandbox.ledger()["purchases"]} == {"snow", "waves"}


def test_rows_without_a_name_are_refused_alone(sandbox: Sandbox) -> None:
    skus = ["1", None, "", "..", "."]
    rows = [{"image": image, "sku": sku} for image, sku in zip(addresses(5), skus, strict=True)]
    report = run(rows, object_name="out/{sku}/{name}.mp4", passthrough=("sku",))
    assert outcomes(report) == {"landed": 1, "refused": 4}
    refused = manifest(report)[1:]
    assert [line["row"] for line in refused] == [f"dataset[{number}], line {number + 1}" for number in range(1, 5)]
    assert all("object_name" in line["error"] for line in refused)
    assert purchases_per_image(sandbox) == {addresses(1)[0]: 1}


def test_unusable_rows_are_refused_alone(sandbox: Sandbox) -> None:
    odd: list[Any] = [
        "https://[bad/x.jpg",
        "https://x.example:99999999/a.jpg",
        "gs://[bad/x.jpg",
        "gs://videos/missing.jpg",
        "gs://no-such-bucket/x.jpg",
        "gs://videos/forbidden.jpg",
        {"image": "https://[bad/x.jpg"},
        {"image": "https://x.example/a.jpg", "prompt": b"waves"},
        {"image": "https://x.example/a.jpg", "inputs": 1},
    ]
    sandbox.add_fault("bucket.*", "status", status=403, object_contains="forbidden.jpg")
    report = run([*addresses(2), *odd])
    assert outcomes(report) == {"landed": 2, "refused": len(odd)}
    refused = {line["row"] for line in manifest(report) if line["outcome"] == "refused"}
    assert refused == {f"dataset[{number}], line {number + 1}" for number in range(2, 2 + len(odd))}
    assert sum(purchases_per_image(sandbox).values()) == 2


def test_an_image_that_became_unreadable_is_refused_alone(sandbox: Sandbox) -> None:
    from google.cloud import storage

    storage.Client().bucket("videos").blob("in/a.jpg").upload_from_string("x")
    sandbox.add_fault("bucket.get", "status", status=403, object_contains="in/a.jpg")
    report = run("gs://videos/in/", check_images=True, deadline_s=20)
    assert outcomes(report) == {"refused": 1}
    assert "not allowed" in manifest(report)[0]["error"]
