# SPDX-License-Identifier: Apache-2.0
"""The transfer as a task runs it: its parameters, its return value, and how Airflow retries its errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import (
    WanConflictError,
    WanDownloadError,
    WanError,
    WanInputError,
    WanRefusedError,
    WanStorageError,
)
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from tests.sandboxes import INPUTS, MODEL, VIDEO_BYTES, Bucket
from wan_sandbox.server import Sandbox

FINGERPRINT = "a" * 64


class TaskInstance:
    """The part of a task instance that a landing uses."""

    dag_id, task_id, run_id, map_index = "dag", "land", "manual__1", -1

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)


@pytest.fixture
def request_id(sandbox: Sandbox) -> str:
    return WanHook().submit(MODEL, INPUTS).request_id


def run(request: Any, **parameters: Any) -> list[dict[str, Any]]:
    operator = WanToGCSOperator(task_id="land", request=request, **{"bucket_name": "videos", **parameters})
    return operator.execute({"ti": TaskInstance()})


def remembered(bucket: Bucket, request_id: str) -> dict[str, Any]:
    """Write the record of a submit with a journal, and return the XCom of the submit."""
    record = Record(FINGERPRINT, MODEL, Stage.SUBMITTED, inputs=INPUTS, request_id=request_id, image="https://i/a")
    BucketJournal(bucket.client, "gs://videos/journal").write(record, replaces=None)
    return {
        "request_id": request_id,
        "model_id": MODEL,
        "fingerprint": FINGERPRINT,
        "submitted_at": "2026-01-01T00:00:00+00:00",
        "journal": "gs://videos/journal",
    }


def test_operator_returns_the_uri_of_each_video(bucket: Bucket, request_id: str) -> None:
    (video,) = run(request_id)
    stored = bucket.objects()[f"{request_id}.mp4"]
    facts, verdict = video.pop("facts"), video.pop("verdict")
    assert (facts["width"], facts["height"], facts["codec"], verdict["status"]) == (52, 78, "h264", "good")
    assert video == {
        "uri": f"gs://videos/{request_id}.mp4",
        "bucket": "videos",
        "object_name": f"{request_id}.mp4",
        "size_bytes": VIDEO_BYTES,
        "crc32c": stored["crc32c"],
        "generation": stored["generation"],
        "content_type": "video/mp4",
        "request_id": request_id,
    }
    json.dumps(video)


@pytest.mark.parametrize("shape", ["id", "mapping", "json", "python"])
def test_operator_accepts_a_request_in_every_form(bucket: Bucket, request_id: str, shape: str) -> None:
    mapping = {"request_id": request_id, "model_id": MODEL, "fingerprint": FINGERPRINT, "submitted_at": None}
    given = {
        "id": f" {request_id} ",
        "mapping": mapping,
        "json": json.dumps(mapping),
        "python": repr(mapping),
    }
    run(given[shape], object_name="v.mp4")
    about = bucket.objects()["v.mp4"]["metadata"]
    assert about["wan-request-id"] == request_id
    assert about["wan-model-id"] == ("" if shape == "id" else MODEL)


def test_repeated_runs_create_one_object(bucket: Bucket, sandbox: Sandbox, request_id: str) -> None:
    first = run(request_id, object_name="day/v.mp4")
    assert [run(request_id, object_name="day/v.mp4") for _ in range(3)] == [first] * 3
    assert {name: one["writes"] for name, one in bucket.objects().items()} == {
        "day/v.mp4": 1,
        "day/v.mp4.json": 1,
        "day/v.poster.jpg": 1,
    }
    assert sandbox.ledger()["calls"]["media"] == 1


def test_journal_records_the_uri_of_the_video(bucket: Bucket, request_id: str) -> None:
    (video,) = run(remembered(bucket, request_id), object_name="v.mp4")
    held = BucketJournal(bucket.client, "gs://videos/journal").read(FINGERPRINT)
    assert held is not None
    assert (held.record.stage, held.record.cost_usd) == (Stage.LANDED, 0.2)
    assert held.record.videos[0].uri == video["uri"]
    beside = Record.from_json(bucket.read("v.mp4.json"))
    assert (beside.image, beside.fingerprint) == ("https://i/a", FINGERPRINT)


def test_landed_video_is_copied_elsewhere_after_its_result_expired(
    bucket: Bucket, sandbox: Sandbox, request_id: str
) -> None:
    ref = remembered(bucket, request_id)
    (first,) = run(ref, object_name="v.mp4")
    sandbox.control(f"requests/{request_id}", {"state": "vanished"})
    (second,) = run(ref, object_name="other.mp4")
    assert second["crc32c"] == first["crc32c"]
    assert sandbox.ledger()["calls"]["media"] == 1
    with pytest.raises(WanRefusedError):
        run(request_id, object_name="third.mp4")


def test_journal_record_of_another_request_is_not_changed(bucket: Bucket, sandbox: Sandbox, request_id: str) -> None:
    ref = remembered(bucket, "somebody-elses")
    run({**ref, "request_id": request_id}, object_name="v.mp4")
    held = BucketJournal(bucket.client, "gs://videos/journal").read(FINGERPRINT)
    assert held is not None
    assert (held.record.request_id, held.record.stage) == ("somebody-elses", Stage.SUBMITTED)


def test_a_journal_that_can_not_be_written_fails_no_landing(bucket: Bucket, sandbox: Sandbox, request_id: str) -> None:
    ref = remembered(bucket, request_id)
    sandbox.add_fault("bucket.upload", "forbidden", object_contains="journal/")
    assert run(ref, object_name="v.mp4")


@pytest.mark.parametrize(
    ("fault", "raised", "retries"),
    [
        (("media", "cut_file"), WanDownloadError, True),
        (("result", "link_private"), WanDownloadError, False),
        (("result", "not_found"), WanRefusedError, False),
        (("bucket.upload", "forbidden"), WanStorageError, False),
    ],
)
def test_an_error_says_to_airflow_whether_a_retry_can_help(
    bucket: Bucket,
    sandbox: Sandbox,
    request_id: str,
    fault: tuple[str, str],
    raised: type[WanError],
    retries: bool,
) -> None:
    sandbox.add_fault(*fault)
    with pytest.raises(AirflowException) as caught:
        run(request_id, object_name="v.mp4")
    assert isinstance(caught.value, raised)
    assert isinstance(caught.value, AirflowFailException) is (not retries)
    assert bucket.objects() == {}


def test_a_conflict_fails_without_retry(bucket: Bucket, request_id: str) -> None:
    bucket.put("v.mp4", b"a letter")
    with pytest.raises(AirflowFailException, match="another object") as caught:
        run(request_id, object_name="v.mp4")
    assert isinstance(caught.value, WanConflictError)
    (video,) = run(request_id, object_name="v.mp4", if_exists="overwrite")
    assert video["size_bytes"] == VIDEO_BYTES


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"bucket_name": "videos/prefix"}, "bucket_name"),
        ({"bucket_name": "gs://videos/prefix"}, "bucket_name"),
        ({"bucket_name": "Videos"}, "bucket_name"),
        ({"bucket_name": ""}, "bucket_name"),
        ({"object_name": "../v.mp4"}, "object_name"),
        ({"object_name": "a\nb.mp4"}, "object_name"),
        ({"request": "../x"}, "request"),
        ({"request": ""}, "request"),
        ({"request": {"model_id": MODEL}}, "request"),
        ({"request": "{broken"}, "request"),
        ({"request": {"request_id": "a/b"}}, "request"),
        ({"gcp_conn_id": "google_cloud_default"}, "gcp_conn_id"),
    ],
    ids=str,
)
def test_invalid_parameter_is_named_before_any_call(
    bucket: Bucket, sandbox: Sandbox, parameters: dict[str, Any], named: str
) -> None:
    with pytest.raises(AirflowFailException, match=named) as caught:
        run(**{"request": "abc", **parameters})
    assert isinstance(caught.value, WanInputError)
    assert not sandbox.ledger()["calls"]
    assert bucket.objects() == {}


def test_bucket_name_may_be_a_gs_uri(bucket: Bucket, request_id: str) -> None:
    assert run(request_id, bucket_name="gs://videos")[0]["bucket"] == "videos"


def test_a_wrong_if_exists_fails_when_the_dag_is_read() -> None:
    with pytest.raises(ValueError, match="if_exists"):
        WanToGCSOperator(task_id="land", request="a", bucket_name="b", if_exists="maybe")  # type: ignore[arg-type]


def test_a_file_beyond_the_limit_is_refused(bucket: Bucket, request_id: str) -> None:
    with pytest.raises(AirflowFailException, match="max_size_bytes=1000"):
        run(request_id, max_size_bytes=1000)
    assert bucket.objects() == {}


def test_no_token_or_link_outlives_the_task(
    bucket: Bucket, sandbox: Sandbox, request_id: str, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    caplog.set_level("DEBUG")
    returned = run(remembered(bucket, request_id), object_name="v.mp4")
    stored = [bucket.read(name) for name in bucket.objects() if name.endswith(".json")]
    shown = json.dumps(returned) + json.dumps(bucket.objects()) + b"".join(stored).decode()
    assert sandbox.token not in shown + caplog.text + capsys.readouterr().out
    assert "Signature=" not in shown
    own = [record.getMessage() for record in caplog.records if "urllib3" not in record.name]
    assert "Signature=" not in "\n".join(own)
