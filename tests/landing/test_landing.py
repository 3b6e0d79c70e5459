# SPDX-License-Identifier: Apache-2.0
"""A landing puts complete videos into the bucket, each once, and their records next to them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanConflictError,
    WanGenerationFailedError,
    WanInputError,
    WanNoOutputError,
    WanRefusedError,
    WanTransientError,
)
from tests.landing.landing_support import buy, landing, to
from tests.sandboxes import MODEL, VIDEO_BYTES, Bucket
from wan_sandbox.server import Sandbox


def downloads(sandbox: Sandbox) -> int:
    return int(sandbox.ledger()["calls"].get("media", 0))


def test_a_video_lands_whole_with_its_metadata_and_its_record(bucket: Bucket) -> None:
    record = buy()
    landed = landing(bucket).land(record, to(bucket))
    (video,) = landed.videos
    stored = bucket.objects()[video.object_name]
    assert (video.uri, video.size_bytes, video.content_type) == (
        "gs://videos/v/clip.mp4",
        VIDEO_BYTES,
        "video/mp4",
    )
    assert (stored["crc32c"], stored["generation"]) == (video.crc32c, video.generation)
    about = stored["metadata"]
    assert json.loads(about.pop("wan-facts")) == video.facts
    assert json.loads(about.pop("wan-verdict")) == video.verdict
    assert about.pop("wan-generated-at")
    assert about == {
        "wan-request-id": record.request_id,
        "wan-model-id": MODEL,
        "wan-fingerprint": "f" * 64,
        "wan-video-index": "0",
        "wan-video-count": "1",
        "wan-digital-source-type": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }
    (line,) = bucket.read("v/clip.mp4.json").splitlines()
    beside = Record.from_json(line)
    assert (beside.stage, beside.request_id, beside.cost_usd) == (Stage.LANDED, record.request_id, 0.2)
    assert beside.videos == landed.videos
    assert beside.landed_at
    assert beside.finished_at


def test_the_record_beside_a_video_holds_no_link_and_no_token(bucket: Bucket, sandbox: Sandbox) -> None:
    landing(bucket).land(buy(), to(bucket))
    text = bucket.read("v/clip.mp4.json").decode()
    assert "Signature" not in text
    assert sandbox.token not in text
    assert sandbox.url not in text


@pytest.mark.parametrize(
    ("object_name", "names"),
    [
        ("", ["{id}.mp4", "{id}-2.mp4", "{id}-3.mp4"]),
        ("day/", ["day/{id}.mp4", "day/{id}-2.mp4", "day/{id}-3.mp4"]),
        ("a.b/clip.mp4", ["a.b/clip.mp4", "a.b/clip-2.mp4", "a.b/clip-3.mp4"]),
        ("a.b/clip", ["a.b/clip", "a.b/clip-2", "a.b/clip-3"]),
        ("tägl ich/ü 1.mp4", ["tägl ich/ü 1.mp4", "tägl ich/ü 1-2.mp4", "tägl ich/ü 1-3.mp4"]),
    ],
)
def test_several_videos_get_a_number_before_the_suffix(
    bucket: Bucket, sandbox: Sandbox, object_name: str, names: list[str]
) -> None:
    sandbox.add_fault("generation", "output_shape", shape="videos", n=3)
    record = buy()
    expected = [name.format(id=record.request_id) for name in names]
    landed = landing(bucket).land(record, to(bucket, object_name))
    assert [video.object_name for video in landed.videos] == expected
    posters = [name.removesuffix(".mp4") + ".poster.jpg" for name in expected]
    assert sorted(bucket.objects()) == sorted([*expected, *posters, f"{expected[0]}.json"])
    assert len({video.crc32c for video in landed.videos}) == 3


@pytest.mark.parametrize("shape", ["video", "videos", "both", "bare", "list", "image_and_video"])
def test_each_form_of_output_lands_its_video_once(bucket: Bucket, sandbox: Sandbox, shape: str) -> None:
    sandbox.add_fault("generation", "output_shape", shape=shape)
    assert len(landing(bucket).land(buy(), to(bucket)).videos) == 1
    assert downloads(sandbox) == 1


def test_a_repeated_landing_downloads_nothing(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "output_shape", shape="videos", n=2)
    record = buy()
    first = landing(bucket).land(record, to(bucket))
    before = bucket.objects()
    for _ in range(2):
        again = landing(bucket).land(record, to(bucket))
        assert again.videos == first.videos
    assert bucket.objects() == before
    assert downloads(sandbox) == 2


def test_new_landing_makes_no_unnecessary_bucket_calls(bucket: Bucket) -> None:
    landing(bucket).land(buy(), to(bucket))
    asked = bucket.calls()
    assert asked["bucket.metadata"] == 1, "what stands under the video's name"
    assert sum(count for name, count in asked.items() if name.startswith("bucket.upload")) <= 4


def test_the_first_landing_after_a_purchase_looks_up_no_name(bucket: Bucket) -> None:
    landing(bucket).land(buy(), to(bucket), is_first_try=True)
    assert set(bucket.calls()) == {"bucket.upload"}


@pytest.mark.parametrize("stands", ["same bytes", "other object"])
@pytest.mark.parametrize("if_exists", ["skip", "fail", "overwrite"])
def test_a_name_that_was_taken_before_the_first_landing_is_respected(
    bucket: Bucket, stands: str, if_exists: Any
) -> None:
    record = buy()
    landing(bucket).land(record, to(bucket, "elsewhere.mp4"))
    there = bucket.read("elsewhere.mp4") if stands == "same bytes" else b"a letter"
    generation = bucket.put("v/clip.mp4", there)
    if stands == "same bytes":
        landed = landing(bucket).land(record, to(bucket, if_exists=if_exists), is_first_try=True)
        assert landed.videos[0].generation == generation
    elif if_exists == "overwrite":
        landed = landing(bucket).land(record, to(bucket, if_exists=if_exists), is_first_try=True)
        assert landed.videos[0].generation != generation
    else:
        with pytest.raises(WanConflictError, match=r"gs://videos/v/clip\.mp4 holds another object"):
            landing(bucket).land(record, to(bucket, if_exists=if_exists), is_first_try=True)
        assert bucket.objects()["v/clip.mp4"]["generation"] == generation


def test_landing_interrupted_between_two_videos_resumes_there(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "output_shape", shape="videos", n=2)
    record = buy()
    whole = landing(bucket).land(record, to(bucket))
    for name in ("v/clip-2.mp4", "v/clip.mp4.json"):
        bucket.client.bucket(bucket.name).blob(name).delete()
    again = landing(bucket).land(record, to(bucket))
    assert [video.crc32c for video in again.videos] == [video.crc32c for video in whole.videos]
    assert again.videos[0] == whole.videos[0]
    assert downloads(sandbox) == 3


def test_a_record_that_was_not_written_is_written_by_the_next_try_with_its_cost(bucket: Bucket) -> None:
    record = buy()
    landing(bucket).land(record, to(bucket))
    bucket.client.bucket(bucket.name).blob("v/clip.mp4.json").delete()
    landing(bucket).land(record, to(bucket))
    assert json.loads(bucket.read("v/clip.mp4.json"))["cost_usd"] == 0.2


def test_existing_video_needs_no_result(bucket: Bucket, sandbox: Sandbox) -> None:
    record = buy()
    first = landing(bucket).land(record, to(bucket))
    sandbox.control(f"requests/{record.request_id}", {"state": "vanished"})
    bucket.client.bucket(bucket.name).blob("v/clip.mp4.json").delete()
    assert landing(bucket).land(record, to(bucket)).videos == first.videos
    assert json.loads(bucket.read("v/clip.mp4.json"))["request_id"] == record.request_id


def test_landings_side_by_side_give_one_object(bucket: Bucket) -> None:
    record = buy()
    landings = [landing(bucket) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        landed = list(pool.map(lambda one: one.land(record, to(bucket)), landings))
    assert len({one.videos for one in landed}) == 1
    assert [stored["writes"] for stored in bucket.objects().values()] == [1, 1, 1]


IF_EXISTS: list[tuple[str, str, str]] = [
    # existing object, if_exists, outcome
    ("same request", "skip", "kept"),
    ("same request", "overwrite", "kept"),
    ("same request", "fail", "kept"),
    ("same bytes", "skip", "kept"),
    ("same bytes", "overwrite", "kept"),
    ("same bytes", "fail", "conflict"),
    ("other video", "skip", "conflict"),
    ("other video", "overwrite", "replaced"),
    ("other video", "fail", "conflict"),
    ("other object", "skip", "conflict"),
    ("other object", "overwrite", "replaced"),
    ("other object", "fail", "conflict"),
]


@pytest.mark.parametrize(("stands", "if_exists", "happens"), IF_EXISTS, ids=str)
def test_if_exists_decides_about_an_existing_object(
    bucket: Bucket, sandbox: Sandbox, stands: str, if_exists: Any, happens: str
) -> None:
    record = buy()
    if stands == "same request":
        landing(bucket).land(record, to(bucket))
    elif stands == "same bytes":
        landing(bucket).land(record, to(bucket, "elsewhere.mp4"))
        bucket.put("v/clip.mp4", bucket.read("elsewhere.mp4"))
    elif stands == "other video":
        landing(bucket).land(buy(seed=2), to(bucket))
    else:
        bucket.put("v/clip.mp4", b"a letter")
    before = bucket.objects()["v/clip.mp4"]
    fetched = downloads(sandbox)
    if happens == "conflict":
        with pytest.raises(WanConflictError, match=r"gs://videos/v/clip\.mp4 holds") as caught:
            landing(bucket).land(record, to(bucket, if_exists=if_exists))
        assert not caught.value.retry_helps
        assert ("the video of request" in str(caught.value)) == (stands == "other video")
        assert downloads(sandbox) == fetched + (if_exists == "skip"), "a sure conflict needs no download"
    else:
        landed = landing(bucket).land(record, to(bucket, if_exists=if_exists))
        assert landed.videos[0].request_id == record.request_id
    after = bucket.objects()["v/clip.mp4"]
    assert (after["generation"] != before["generation"]) == (happens == "replaced")
    if happens == "replaced":
        assert after["metadata"]["wan-request-id"] == record.request_id
        assert json.loads(bucket.read("v/clip.mp4.json"))["request_id"] == record.request_id


def test_the_record_of_a_video_that_was_kept_is_kept(bucket: Bucket) -> None:
    record = buy()
    landing(bucket).land(record, to(bucket, "elsewhere.mp4"))
    about = {"wan-request-id": "another", "wan-video-index": "0"}
    bucket.put("v/clip.mp4", bucket.read("elsewhere.mp4"), **about)
    bucket.put("v/clip.mp4.json", b"its record", **about)
    landed = landing(bucket).land(record, to(bucket))
    assert landed.videos[0].request_id == record.request_id
    assert bucket.read("v/clip.mp4.json") == b"its record"


def test_somebody_elses_json_is_never_overwritten(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    bucket.put("v/clip.mp4.json", b'{"subtitles": true}', "application/json")
    landing(bucket).land(buy(), to(bucket, if_exists="overwrite"))
    assert bucket.read("v/clip.mp4.json") == b'{"subtitles": true}'
    assert "left as it is" in caplog.text


def test_a_record_that_can_not_be_written_fails_no_landing(
    bucket: Bucket, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.add_fault("bucket.upload", "forbidden", object_contains=".json")
    landing(bucket).land(buy(), to(bucket))
    assert list(bucket.objects()) == ["v/clip.mp4", "v/clip.poster.jpg"]
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    ("state", "raised"),
    [
        ("failed", WanGenerationFailedError),
        ("cancelled", WanCancelledError),
        ("vanished", WanRefusedError),
        ("stuck", WanTransientError),
    ],
)
def test_request_that_did_not_succeed_does_not_land(
    bucket: Bucket, sandbox: Sandbox, state: str, raised: type[Exception]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    record = buy()
    sandbox.control(f"requests/{record.request_id}", {"state": state})
    with pytest.raises(raised) as caught:
        landing(bucket).land(record, to(bucket))
    assert str(record.request_id) in str(caught.value)
    assert bucket.objects() == {}


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "output_shape", "shape": "image"},
        {"fault": "no_output"},
    ],
)
def test_a_success_without_a_video_counts_as_paid_and_no_retry_helps(
    bucket: Bucket, sandbox: Sandbox, fault: dict[str, str]
) -> None:
    sandbox.add_fault("generation", **fault)
    record = buy()
    with pytest.raises(WanNoOutputError, match="counts as paid") as caught:
        landing(bucket).land(record, to(bucket))
    assert caught.value.request_id == record.request_id
    assert not caught.value.retry_helps
    assert bucket.objects() == {}


def test_refused_token_is_a_retryable_error(bucket: Bucket, sandbox: Sandbox) -> None:
    record = buy()
    sandbox.add_fault("result", "unauthorized")
    with pytest.raises(WanTransientError, match="could not be asked for"):
        landing(bucket).land(record, to(bucket))


@pytest.mark.parametrize(
    "name",
    [
        "../up.mp4",
        "a/../b.mp4",
        "a/./b.mp4",
        "/root.mp4",
        "a\nb.mp4",
        "a\x00b.mp4",
        "a\x85b.mp4",
        "x" * 1025,
        "ü" * 513,
        "\ud800.mp4",
        ".well-known/acme-challenge/a",
        "   ",
    ],
    ids=range(12),
)
def test_hostile_name_is_refused_before_any_call(bucket: Bucket, sandbox: Sandbox, name: str) -> None:
    record = buy()
    with pytest.raises(WanInputError, match="object_name"):
        landing(bucket).land(record, to(bucket, name))
    assert bucket.objects() == {}
    assert "result" not in sandbox.ledger()["calls"]


def test_invalid_count_in_the_metadata_is_ignored(bucket: Bucket) -> None:
    for count in ("-1", "x", "9" * 5000, "²"):
        record = buy()
        about = {
            "wan-request-id": str(record.request_id),
            "wan-video-index": "0",
            "wan-video-count": count[:900],
        }
        bucket.put(f"{record.request_id}.mp4", b"video", **about)
        assert len(landing(bucket).land(record, to(bucket, "")).videos) == 1


# -- what has landed elsewhere ---------------------------------------------------------------------------------


def test_video_landed_elsewhere_is_copied_without_a_download(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "output_shape", shape="videos", n=2)
    first = landing(bucket).land(buy(), to(bucket, "first/a.mp4"))
    sandbox.control(f"requests/{first.request_id}", {"state": "vanished"})
    fetched = downloads(sandbox)
    copied = landing(bucket).land(first, to(bucket, "second/b.mp4"))
    assert [video.object_name for video in copied.videos] == ["second/b.mp4", "second/b-2.mp4"]
    assert [video.crc32c for video in copied.videos] == [video.crc32c for video in first.videos]
    assert downloads(sandbox) == fetched
    stored = bucket.objects()
    for name in ("a.mp4", "a-2.mp4"):
        before, after = stored[f"first/{name}"], stored[f"second/{name.replace('a', 'b')}"]
        moved = before["metadata"]["wan-facts"].replace("first/a", "second/b")
        assert after["metadata"] == before["metadata"] | {"wan-facts": moved}
        assert after["content_type"] == "video/mp4"
    assert json.loads(bucket.read("second/b.mp4.json"))["cost_usd"] == 0.2


def test_a_copy_goes_into_another_bucket(bucket: Bucket, sandbox: Sandbox) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    other = Bucket(bucket.client, "images", sandbox)
    copied = landing(bucket).land(first, to(other))
    assert copied.videos[0].uri == "gs://images/v/clip.mp4"
    assert other.objects()["v/clip.mp4"]["crc32c"] == first.videos[0].crc32c
    assert downloads(sandbox) == 1


@pytest.mark.parametrize("what", ["deleted", "replaced", "forbidden"])
def test_a_copy_whose_source_is_gone_falls_back_to_the_result(bucket: Bucket, sandbox: Sandbox, what: str) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    if what == "deleted":
        bucket.client.bucket(bucket.name).blob("v/clip.mp4").delete()
    elif what == "replaced":
        bucket.put("v/clip.mp4", b"a letter")
    else:
        sandbox.add_fault("bucket.copy", "forbidden")
    landed = landing(bucket).land(first, to(bucket, "other.mp4"))
    assert landed.videos[0].crc32c == first.videos[0].crc32c
    assert downloads(sandbox) == 2


def test_videos_copied_before_one_was_missing_are_not_downloaded(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "output_shape", shape="videos", n=2)
    first = landing(bucket).land(buy(), to(bucket))
    bucket.client.bucket(bucket.name).blob("v/clip-2.mp4").delete()
    landed = landing(bucket).land(first, to(bucket, "other.mp4"))
    assert [video.crc32c for video in landed.videos] == [video.crc32c for video in first.videos]
    assert [bucket.objects()[name]["writes"] for name in ("other.mp4", "other-2.mp4")] == [1, 1]
    assert downloads(sandbox) == 3


def test_error_names_both_the_missing_source_and_the_expired_result(bucket: Bucket, sandbox: Sandbox) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    bucket.client.bucket(bucket.name).blob("v/clip.mp4").delete()
    sandbox.control(f"requests/{first.request_id}", {"state": "vanished"})
    with pytest.raises(WanRefusedError, match=r"landed at gs://videos/v/clip\.mp4") as caught:
        landing(bucket).land(first, to(bucket, "other.mp4"))
    assert "variation" in str(caught.value)
    assert "other.mp4" not in bucket.objects()


@pytest.mark.parametrize(
    ("if_exists", "stands", "happens"),
    [
        ("skip", "other", "conflict"),
        ("overwrite", "other", "replaced"),
        ("fail", "other", "conflict"),
        ("skip", "same bytes", "kept"),
        ("fail", "same bytes", "conflict"),
    ],
)
def test_copy_respects_an_existing_object(
    bucket: Bucket, sandbox: Sandbox, if_exists: Any, stands: str, happens: str
) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    data = bucket.read("v/clip.mp4") if stands == "same bytes" else b"a letter"
    generation = bucket.put("other.mp4", data)
    if happens == "conflict":
        with pytest.raises(WanConflictError):
            landing(bucket).land(first, to(bucket, "other.mp4", if_exists=if_exists))
    else:
        landing(bucket).land(first, to(bucket, "other.mp4", if_exists=if_exists))
    after = bucket.objects()["other.mp4"]
    assert (after["generation"] == generation) == (happens != "replaced")
    assert downloads(sandbox) == 1


@pytest.mark.parametrize("fault", [("lost_ack", {}), ("reset", {}), ("status", {"status": 503}), ("quota", {})])
def test_copy_survives_a_failing_bucket(bucket: Bucket, sandbox: Sandbox, fault: Any) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    sandbox.add_fault("bucket.copy", fault[0], count=1, **fault[1])
    copied = landing(bucket).land(first, to(bucket, "other.mp4"))
    assert copied.videos[0].crc32c == first.videos[0].crc32c
    assert bucket.objects()["other.mp4"]["writes"] == 1
    assert downloads(sandbox) == 1


def test_copies_side_by_side_give_one_object(bucket: Bucket, sandbox: Sandbox) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: landing(bucket).land(first, to(bucket, "other.mp4")), range(4)))
    assert len({one.videos for one in copies}) == 1
    assert bucket.objects()["other.mp4"]["writes"] == 1
    assert downloads(sandbox) == 1


def test_a_record_of_another_requests_videos_is_not_copied(bucket: Bucket, sandbox: Sandbox) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    second = replace(buy(seed=2), videos=first.videos)
    landed = landing(bucket).land(second, to(bucket, "other.mp4"))
    assert landed.videos[0].crc32c != first.videos[0].crc32c
    assert downloads(sandbox) == 2
