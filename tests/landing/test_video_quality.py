# SPDX-License-Identifier: Apache-2.0
"""Facts and verdicts of made videos, and where a bad one lands."""

from __future__ import annotations

import io
import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from PIL import Image

from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.exceptions import WanBadVideoError
from airflow_provider_wan.landing import inspector as inspector_module
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.inspector import VideoInspector
from airflow_provider_wan.landing.probe import ProbeLimits, probe
from airflow_provider_wan.landing.video_file import check_video_file
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from tests.image_samples import encoded
from tests.landing.landing_support import FileServer, Serving, buy, landing, mp4, to
from tests.landing.made_videos import MAKERS, fog, made, night, scene_jpeg
from tests.sandboxes import Bucket
from tests.task_runs import connect
from wan_sandbox.runcomfy.videos import Clip, encode_video
from wan_sandbox.server import Sandbox

LOG = logging.getLogger("quality")
IMAGE = "gs://images/source.jpg"
#: What is wrong with each made video, for a request of five seconds at 360P with audio where it has a track.
REASONS: dict[str, list[str]] = {
    "black": ["black"],
    "frozen": ["frozen"],
    "stops after 0.3 s": ["frozen"],
    "one frame": ["short", "frozen"],
    "half as long": ["short"],
    "wrong size": ["size"],
    "another picture": ["first_frame"],
    "silent audio": ["audio"],
    "damaged": ["damaged"],
}
FACTS: dict[str, dict[str, Any]] = {
    "pan": {
        "width": 480,
        "height": 360,
        "duration_s": 5.0,
        "frames": 75,
        "codec": "h264",
        "has_audio": False,
    },
    "black": {"black_share": 1.0, "frozen_share": 1.0},
    "frozen": {"black_share": 0.0, "still_share": pytest.approx(1, abs=0.05)},
    "fade from black": {
        "black_share": pytest.approx(0, abs=0.1),
        "first_frame_likeness": pytest.approx(0.8, abs=0.3),
    },
    "night scene": {"black_share": 0.0},
    "slow fog": {"frozen_share": pytest.approx(1, abs=0.2), "still_share": pytest.approx(0, abs=0.3)},
    "one frame": {"frames": 1, "frames_decoded": 1},
    "wrong size": {"width": 240, "height": 180},
    "silent audio": {"has_audio": True, "audio_codec": "aac", "audio_silent": True},
    "audio": {"has_audio": True, "audio_codec": "aac", "audio_silent": False},
    "variable frame rate": {"frames": 45, "frame_rate": pytest.approx(9, abs=0.1), "duration_s": 5.0},
    "hevc": {"codec": "hevc", "pixel_format": "yuv420p"},
    "webm": {"codec": "vp8", "duration_s": 5.0},
}


@pytest.fixture
def source(bucket: Bucket) -> Bucket:
    """Puts the source image of the made videos into its bucket."""
    bucket.client.bucket("images").blob("source.jpg").upload_from_string(scene_jpeg())
    return bucket


def record_of(kind: str, **changes: Any) -> Record:
    inputs: dict[str, Any] = {"prompt": "x", "resolution": "360P", "duration": 5}
    if "audio" in kind:
        inputs["enable_audio"] = True
    return replace(buy(), inputs=inputs, image=IMAGE, **changes)


def inspected(bucket: Bucket, data: bytes, record: Record, **checks: Any) -> tuple[Any, Any]:
    file = io.BytesIO(data)
    inspector = VideoInspector(VideoChecks(**checks), bucket.client, LOG)
    found = inspector.inspect(file, len(data), check_video_file(file, len(data)), record)
    return found.facts, found.verdict


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_of_video_gets_its_facts_and_its_verdict(source: Bucket, kind: str) -> None:
    others = {"night scene": night, "slow fog": fog}
    if kind in others:
        first = next(iter(others[kind]()))[1]
        source.client.bucket("images").blob("source.jpg").upload_from_string(encoded(first, "JPEG"))
    facts, verdict = inspected(source, made(kind), record_of(kind))
    assert {name: facts[name] for name in FACTS.get(kind, {})} == FACTS.get(kind, {})
    assert verdict["reasons"] == REASONS.get(kind, []), verdict
    assert verdict["status"] == ("bad" if kind in REASONS else "good")
    json.dumps([facts, verdict], allow_nan=False)


@pytest.mark.parametrize(
    ("name", "lines", "keys"), [("astronaut", 480, "ac"), ("night", 480, "ac"), ("portrait", 1080, "a")]
)
def test_videos_of_the_sandbox_raise_no_alarm(source: Bucket, tmp_path: Path, name: str, lines: int, keys: str) -> None:
    size = {"astronaut": (512, 512), "night": (900, 500), "portrait": (500, 900)}[name]
    picture = next(iter(night()))[1].resize(size) if name == "night" else scene_image(size)
    image = encoded(picture, "PNG")
    source.client.bucket("images").blob("source.jpg").upload_from_string(image)
    for key in keys:  # the camera moves in for one, and out for the other
        path = tmp_path / f"{key}.mp4"
        encode_video(image, path, Clip(lines=lines, seconds=5), key=key)
        record = replace(record_of(name), inputs={"resolution": f"{lines}P", "duration": 5})
        facts, verdict = inspected(source, path.read_bytes(), record)
        assert verdict["reasons"] == [], (facts, verdict)


def scene_image(size: tuple[int, int]) -> Image.Image:
    with Image.open(io.BytesIO(scene_jpeg())) as image:
        return image.resize(size)


def test_decoding_ends_at_its_limits() -> None:
    data = made("pan")
    facts = probe(io.BytesIO(data), "video/mp4", len(data), LOG, limits=ProbeLimits(frames=20)).facts
    assert (facts.frames, facts.duration_s, facts.damaged) == (75, 5.0, None)
    assert facts.frames_decoded is not None
    assert 20 <= facts.frames_decoded < 30
    facts = probe(io.BytesIO(data), "video/mp4", len(data), LOG, limits=ProbeLimits(seconds=0)).facts
    assert (facts.frames, facts.damaged) == (75, None)


@pytest.mark.parametrize("kind", ["audio", "hevc", "webm"])
def test_a_file_with_wrong_bytes_anywhere_gives_facts_and_no_error(kind: str) -> None:
    drawn = random.Random(kind)
    content_type = "video/webm" if kind == "webm" else "video/mp4"
    for _ in range(20):
        data = bytearray(made(kind))
        for _ in range(drawn.randrange(1, 40)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        found = probe(io.BytesIO(bytes(data)), content_type, len(data), LOG).facts
        json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.95])
def test_a_file_cut_in_the_middle_of_a_frame_gives_facts_and_no_error(at: float) -> None:
    data = made("pan")
    cut = data[: int(len(data) * at)]
    facts = probe(io.BytesIO(cut), "video/mp4", len(cut), LOG).facts
    assert facts.damaged


def test_a_video_of_an_unknown_codec_lands_without_facts_of_its_frames(bucket: Bucket) -> None:
    data = mp4()
    facts, verdict = inspected(bucket, data, replace(record_of("x"), image=None))
    assert (facts["duration_s"], facts.get("frames"), verdict["reasons"]) == (5.0, None, [])


def test_a_c2pa_box_is_seen(bucket: Bucket) -> None:
    without_image = replace(record_of("pan"), image=None)
    uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    box = (8 + len(uuid) + 4).to_bytes(4, "big") + b"uuid" + uuid + b"c2pa"
    assert inspected(bucket, made("pan") + box, without_image)[0]["c2pa"] is True
    assert inspected(bucket, made("pan"), without_image)[0]["c2pa"] is False


@pytest.mark.parametrize("image", ["gs://images/gone.jpg", "gs://no-such-bucket/a.jpg", "/tmp/a.jpg", None])
def test_a_source_image_that_can_not_be_read_is_not_compared(source: Bucket, image: str | None) -> None:
    facts, verdict = inspected(source, made("another picture"), replace(record_of("x"), image=image))
    assert ("first_frame_likeness" in facts, verdict["reasons"]) == (False, [])


def test_without_pyav_the_structure_gives_the_facts_and_the_log_says_so(
    source: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inspector_module, "is_available", lambda: False)
    data = made("half as long")
    inspector = VideoInspector(VideoChecks(), source.client, LOG)
    file = io.BytesIO(data)
    video = check_video_file(file, len(data))
    found = [inspector.inspect(file, len(data), video, record_of("x")) for _ in range(2)]
    assert found[0].facts == {"duration_s": pytest.approx(2.5, abs=0.1), "c2pa": False}
    assert (found[0].verdict or {})["reasons"] == ["short"]
    assert caplog.text.count("airflow-provider-wan[video]") == 1


# -- the user's own checks -------------------------------------------------------------------------------------


def test_a_check_of_the_user_gets_the_file_the_facts_and_the_record(source: Bucket) -> None:
    seen: list[Any] = []

    def too_heavy(path: str, facts: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
        seen.append((Path(path).read_bytes(), facts["width"], record["inputs"]["resolution"]))
        return "it has too many bits"

    record = record_of("pan")
    assert inspected(source, made("pan"), record, checks=(too_heavy,))[1] == {
        "status": "bad",
        "reasons": ["too_heavy"],
        "detail": "it has too many bits",
    }
    assert seen == [(made("pan"), 480, "360P")]


def test_a_check_of_the_user_that_raises_keeps_no_video_out(source: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    _, verdict = inspected(source, made("pan"), record_of("pan"), checks=(broken, lambda *_: False))
    assert verdict["reasons"] == ["<lambda>"]
    assert "a mistake" in caplog.text


def test_without_checks_no_video_is_decoded(source: Bucket) -> None:
    assert inspected(source, made("black"), record_of("black"), checks=()) == (
        {"duration_s": 5.0, "c2pa": False},
        None,
    )


@pytest.mark.parametrize("wrong", [{"checks": ["blakc"]}, {"on_bad_video": "ignore"}])
def test_an_unknown_check_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"blakc|on_bad_video"):
        WanToGCSOperator(task_id="land", request="r", bucket_name="videos", **wrong)


# -- where a bad video lands -----------------------------------------------------------------------------------


@pytest.fixture
def black(source: Bucket, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serves a black video as the result of every request."""
    with FileServer(Serving(made("black"))) as server:
        connect(monkeypatch, sandbox, download_hosts=[server.url])
        sandbox.add_fault("result", "link", url=f"{server.url}/v.mp4")
        yield server


def run(record: Record, on_bad_video: Any, object_name: str = "day/v.mp4") -> list[dict[str, Any]]:
    class TaskInstance:
        dag_id, task_id, run_id, map_index = "dag", "land", "manual__1", -1

        def xcom_push(self, key: str, value: Any) -> None:
            json.dumps(value)

    operator = WanToGCSOperator(
        task_id="land",
        request=str(record.request_id),
        bucket_name="videos",
        object_name=object_name,
        on_bad_video=on_bad_video,
    )
    return operator.execute({"ti": TaskInstance()})


def test_a_bad_video_that_is_reported_lands_and_says_why(bucket: Bucket, black: FileServer) -> None:
    record = buy()
    (video,) = run(record, "report")
    assert (video["object_name"], video["verdict"]["reasons"]) == ("day/v.mp4", ["black"])
    about = bucket.objects()["day/v.mp4"]["metadata"]
    assert json.loads(about["wan-verdict"]) == video["verdict"]
    assert json.loads(about["wan-facts"]) == video["facts"]
    beside = Record.from_json(bucket.read("day/v.mp4.json"))
    assert (beside.videos[0].facts, beside.videos[0].verdict) == (video["facts"], video["verdict"])


def test_a_bad_video_that_is_rejected_lands_in_quarantine_once(bucket: Bucket, black: FileServer) -> None:
    record = buy()
    (video,) = run(record, "reject")
    assert [run(record, "reject") for _ in range(2)] == [[video]] * 2
    assert {name: stored["writes"] for name, stored in bucket.objects("day/").items()} == {
        "day/_rejected/v.mp4": 1,
        "day/_rejected/v.mp4.json": 1,
        "day/_rejected/v.poster.jpg": 1,
    }
    assert len(black.heads) == 1


def test_a_bad_video_fails_its_task_without_a_retry_and_is_kept(bucket: Bucket, black: FileServer) -> None:
    record = buy()
    for _ in range(2):
        with pytest.raises(WanBadVideoError, match=r"100% of its frames are black.*on_bad_video") as raised:
            run(record, "fail")
        assert isinstance(raised.value, AirflowFailException)
    assert "day/_rejected/v.mp4" in bucket.objects("day/")
    assert "day/v.mp4" not in bucket.objects("day/")
    assert len(black.heads) == 1


def test_a_rejected_video_is_accepted_later_without_another_download_or_check(
    bucket: Bucket, black: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = buy()
    rejecting = landing(bucket, [black.url], checks=VideoChecks(on_bad_video="reject"))
    rejected = rejecting.land(record, to(bucket, "day/v.mp4"))
    assert rejected.is_rejected

    def no_check(*_: Any) -> Any:
        raise AssertionError("it has its verdict")

    monkeypatch.setattr(VideoInspector, "inspect", no_check)
    accepted = landing(bucket, [black.url]).land(rejected, to(bucket, "day/v.mp4"))
    (video,) = accepted.videos
    assert (video.object_name, video.is_rejected, video.is_bad) == ("day/v.mp4", False, True)
    assert dict(video.facts or {}) == dict(rejected.videos[0].facts or {}) | {"poster": "day/v.poster.jpg"}
    assert len(black.heads) == 1


def test_a_video_that_has_to_be_downloaded_again_keeps_its_verdict(
    bucket: Bucket, black: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed = landing(bucket, [black.url]).land(buy(), to(bucket))
    bucket.client.bucket("videos").delete_blobs(list(bucket.client.list_blobs("videos")))
    monkeypatch.setattr(VideoInspector, "inspect", None)
    again = landing(bucket, [black.url]).land(landed, to(bucket))
    assert again.videos[0].verdict == landed.videos[0].verdict
    assert len(black.heads) == 2


def test_a_landed_video_says_that_a_model_made_it(bucket: Bucket, sandbox: Sandbox) -> None:
    landed = landing(bucket).land(buy(), to(bucket, "a.mp4"))
    term = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    about = bucket.objects()["a.mp4"]["metadata"]
    assert (about["wan-digital-source-type"], about["wan-generated-at"]) == (term, landed.finished_at)
    beside = json.loads(bucket.read("a.mp4.json"))
    assert (beside["digital_source_type"], beside["model_id"]) == (term, landed.model_id)
    assert sandbox.ledger()["calls"]["media"] == 1


def test_importing_the_checks_imports_no_decoder() -> None:
    code = "import sys, airflow_provider_wan.landing.inspector; print(sorted({'av', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
