# SPDX-License-Identifier: Apache-2.0
"""Submitting images of a private bucket, by the operator's own parameters, against the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator
from tests.image_samples import encoded, exif_with, photo, quadrants
from tests.sandboxes import Bucket

JOURNAL = "gs://videos/journal"
STAGING = "gs://videos/staged"
Submit = Callable[..., dict[str, Any]]


@pytest.fixture
def pushed() -> dict[str, Any]:
    return {}


def context(pushed: dict[str, Any]) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="shoes",
        run_id="r",
        task_id="submit",
        map_index=-1,
        try_number=1,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
    )
    return {"ti": ti, "task_instance": ti}


@pytest.fixture
def submit(bucket: Bucket, pushed: dict[str, Any]) -> Submit:
    def buy(image: Any, **parameters: Any) -> dict[str, Any]:
        given = {"prompt": "waves", "journal": JOURNAL, **parameters}
        task = WanSubmitOperator(task_id="submit", image=image, **given)
        answer: dict[str, Any] = task.execute(context(pushed))
        return answer

    return buy


def purchases(bucket: Bucket) -> list[dict[str, Any]]:
    bought: list[dict[str, Any]] = bucket.sandbox.ledger()["purchases"]
    return bought


def fits() -> bytes:
    return encoded(photo(640, 480), "JPEG")


def turned() -> bytes:
    return encoded(photo(640, 480), "JPEG", exif=exif_with(orientation=6, gps=True))


def test_image_of_a_private_bucket_needs_no_other_parameter(bucket: Bucket, submit: Submit) -> None:
    bucket.put("my photos/ä.jpg", fits())
    answer = submit("gs://videos/my photos/ä.jpg")
    assert answer["image"] == answer["inputs"]["img_url"] == "gs://videos/my photos/ä.jpg"
    assert len(purchases(bucket)) == 1


def test_the_same_image_uploaded_again_elsewhere_is_not_bought_again(bucket: Bucket, submit: Submit) -> None:
    bucket.put("a.jpg", fits())
    first = submit("gs://videos/a.jpg")
    bucket.put("b/again.jpg", fits())
    assert submit("gs://videos/b/again.jpg")["request_id"] == first["request_id"]
    assert len(purchases(bucket)) == 1
    bucket.put("a.jpg", turned())
    assert submit("gs://videos/a.jpg", staging=STAGING)["request_id"] != first["request_id"]
    assert len(purchases(bucket)) == 2


def test_a_prepared_row_and_its_source_are_one_video(bucket: Bucket, submit: Submit, pushed: dict[str, Any]) -> None:
    bucket.put("in/a.jpg", turned())
    task = WanPrepareImagesOperator(
        task_id="prepare", dataset="gs://videos/in/", staging=STAGING, inputs={"seed": "7"}, variation="v"
    )
    [chunk] = task.execute(context(pushed))
    row = json.loads(bucket.read(chunk.removeprefix("gs://videos/")))
    first = submit(row)
    assert first["inputs"] == {"prompt": "waves", "seed": 7, "img_url": "gs://videos/in/a.jpg"}
    assert first["variation"] == "v"
    assert submit(json.dumps(row))["request_id"] == first["request_id"]
    assert submit("gs://videos/in/a.jpg", seed=7, variation="v")["request_id"] == first["request_id"]
    assert len(purchases(bucket)) == 1


def records(bucket: Bucket) -> list[str]:
    """Names of the records in the journal, without its pointers of task instances."""
    return [name for name in bucket.objects("journal/") if not name.startswith("journal/_")]


def test_an_https_image_is_the_same_video_under_either_parameter(bucket: Bucket, submit: Submit) -> None:
    bucket.put("a.jpg", fits())
    url = f"{bucket.sandbox.bucket_url}/videos/a.jpg"
    assert submit(url)["request_id"] == submit(None, img_url=url)["request_id"]


@pytest.mark.parametrize("parameter", ["image", "img_url"])
def test_image_with_private_metadata_is_named_in_the_log_under_either_parameter(
    bucket: Bucket, submit: Submit, capfd: pytest.CaptureFixture[str], parameter: str
) -> None:
    bucket.put("a.jpg", encoded(photo(640, 480), "JPEG", exif=exif_with(gps=True)))
    submit(**{"image": None, parameter: f"{bucket.sandbox.bucket_url}/videos/a.jpg"})
    assert "it holds GPS position" in capfd.readouterr().out


def test_unfit_image_is_refused_without_staging_and_fixed_with_it(bucket: Bucket, submit: Submit) -> None:
    bucket.put("a.png", encoded(quadrants().convert("RGBA"), "PNG"))
    with pytest.raises(WanInputError, match="transparency"):
        submit("gs://videos/a.png")
    assert purchases(bucket) == []
    submit("gs://videos/a.png", staging=STAGING)
    assert len(purchases(bucket)) == 1


def test_a_refused_image_leaves_no_claim_and_can_skip(bucket: Bucket, submit: Submit, pushed: dict[str, Any]) -> None:
    bucket.put("a.jpg", b"<html>")
    with pytest.raises(AirflowSkipException):
        submit("gs://videos/a.jpg", on_invalid="skip")
    assert pushed["refused"][0]["image"] == "gs://videos/a.jpg"
    assert records(bucket) == []


def test_missing_prepared_copy_is_reported_before_a_purchase(
    bucket: Bucket, submit: Submit, pushed: dict[str, Any]
) -> None:
    bucket.put("in/a.jpg", turned())
    [chunk] = WanPrepareImagesOperator(task_id="prepare", dataset="gs://videos/in/", staging=STAGING).execute(
        context(pushed)
    )
    row = json.loads(bucket.read(chunk.removeprefix("gs://videos/")))
    bucket.client.bucket("videos").blob(row["staged_uri"].removeprefix("gs://videos/")).delete()
    with pytest.raises(WanInputError, match="there is no such object"):
        submit(row)
    assert purchases(bucket) == []


@pytest.mark.parametrize("image", ["", None, "None", {}])
def test_empty_image_counts_as_none(image: Any, bucket: Bucket, submit: Submit) -> None:
    with pytest.raises(WanInputError, match="'img_url' is required"):
        submit(image)


@pytest.mark.parametrize("image", [5, ["gs://b/a.jpg"], {"prompt": "x"}, "{not json", "photo://x"])
def test_invalid_parameter_is_refused(image: Any, bucket: Bucket, submit: Submit) -> None:
    with pytest.raises(WanInputError):
        submit(image)
    assert purchases(bucket) == []


def test_image_and_img_url_together_are_refused(bucket: Bucket, submit: Submit) -> None:
    bucket.put("a.jpg", fits())
    with pytest.raises(WanInputError, match="one of them is enough"):
        submit("gs://videos/a.jpg", img_url="https://images.example.com/a.jpg")


def test_no_link_is_in_xcom_journal_or_log(
    bucket: Bucket, submit: Submit, pushed: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    bucket.put("a.jpg", turned())
    answer = submit("gs://videos/a.jpg", staging=STAGING)
    journal = "".join(bucket.read(name).decode() for name in bucket.objects("journal/"))
    log = capfd.readouterr().out
    assert "accepted the request" in log
    said = json.dumps([answer, pushed]) + journal + log
    assert f"{bucket.sandbox.bucket_url}/videos" not in said
    assert "staged/" not in journal
