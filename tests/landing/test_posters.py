# SPDX-License-Identifier: Apache-2.0
"""The poster of a video: which frame it shows, and that nothing about it keeps a video out of the bucket."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

import airflow_provider_wan.landing.inspector as inspector_module
from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.probe import probe
from tests.landing.landing_support import LOG, FileServer, Serving, buy, landing, to
from tests.landing.made_videos import encode, scene, still, times
from tests.sandboxes import Bucket
from tests.task_runs import connect
from wan_sandbox.server import Sandbox

RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)


def shown(*parts: tuple[tuple[int, int, int], float]) -> bytes:
    """Encode a video that shows one color after the other, each for some seconds."""
    ends = [sum(seconds for _, seconds in parts[: number + 1]) for number in range(len(parts))]

    def frames() -> Iterator[tuple[float, Image.Image]]:
        for at in times(ends[-1]):
            color = next(color for (color, _), end in zip(parts, ends, strict=True) if at < end)
            yield at, Image.new("RGB", (320, 240), color)

    return encode(frames())


@pytest.mark.parametrize(
    ("video", "color"),
    [
        (lambda: shown((RED, 1), (GREEN, 2)), GREEN),
        (lambda: shown((BLACK, 2), (GREEN, 1)), GREEN),
        (lambda: shown((GREEN, 0.5), (BLACK, 2.5)), GREEN),
        (lambda: shown((BLACK, 1)), BLACK),
        (lambda: encode(iter([(0.0, Image.new("RGB", (320, 240), RED))])), RED),
    ],
    ids=["a third into it", "black start", "black from then on", "all black", "one frame"],
)
def test_a_poster_shows_a_frame_that_stands_for_the_video(
    video: Callable[[], bytes], color: tuple[int, int, int]
) -> None:
    data = video()
    poster = probe(io.BytesIO(data), "video/mp4", len(data), LOG).poster
    assert poster is not None
    assert poster.getpixel((160, 120)) == pytest.approx(color, abs=12)


def test_a_poster_of_a_large_video_is_small(bucket: Bucket, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer(Serving(encode(still(scene((1920, 1080)), seconds=0.4)))) as server:
        connect(monkeypatch, sandbox, download_hosts=[server.url])
        sandbox.add_fault("result", "link", url=f"{server.url}/v.mp4")
        landing(bucket, [server.url]).land(buy(), to(bucket))
    data = bucket.read("v/clip.poster.jpg")
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (480, 270))
    assert len(data) < 60_000
    assert bucket.objects()["v/clip.poster.jpg"]["content_type"] == "image/jpeg"


def facts_of(record: Record) -> Any:
    return record.videos[0].facts or {}


def test_the_facts_name_the_poster_in_every_place(bucket: Bucket) -> None:
    landed = landing(bucket).land(buy(), to(bucket))
    assert facts_of(landed)["poster"] == "v/clip.poster.jpg"
    assert json.loads(bucket.objects()["v/clip.mp4"]["metadata"]["wan-facts"]) == facts_of(landed)
    assert facts_of(Record.from_json(bucket.read("v/clip.mp4.json"))) == facts_of(landed)
    again = landing(bucket).land(landed, to(bucket))
    assert facts_of(again) == facts_of(landed)


def test_a_copied_video_gets_a_copy_of_the_poster(bucket: Bucket, sandbox: Sandbox) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    other = Bucket(bucket.client, "images", sandbox)
    copied = landing(bucket).land(first, to(other, "w/b.mp4"))
    assert facts_of(copied)["poster"] == "w/b.poster.jpg"
    assert other.read("w/b.poster.jpg") == bucket.read("v/clip.poster.jpg")


def test_a_video_is_copied_although_its_poster_is_gone(bucket: Bucket) -> None:
    first = landing(bucket).land(buy(), to(bucket))
    bucket.client.bucket(bucket.name).blob("v/clip.poster.jpg").delete()
    copied = landing(bucket).land(first, to(bucket, "w/b.mp4"))
    assert (copied.videos[0].object_name, facts_of(copied).get("poster")) == ("w/b.mp4", None)


@pytest.mark.parametrize("fault", ["forbidden", "reset"])
def test_a_poster_that_can_not_be_written_fails_no_landing(
    bucket: Bucket,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    monkeypatch.setattr("airflow_provider_wan.landing.poster._RETRY_FOR_S", 0.1)
    sandbox.add_fault("bucket.upload", fault, object_contains=".poster.jpg")
    landed = landing(bucket).land(buy(), to(bucket))
    assert set(bucket.objects()) == {"v/clip.mp4", "v/clip.mp4.json"}
    assert "poster" not in facts_of(landed)
    assert f"The video of request {landed.request_id} has no poster" in caplog.text


@pytest.mark.parametrize("checks", [(), ("black",)], ids=["not decoded", "without PyAV"])
def test_a_video_that_is_not_decoded_has_no_poster(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, checks: tuple[str, ...]
) -> None:
    if checks:
        monkeypatch.setattr(inspector_module, "is_available", lambda: False)
    landed = landing(bucket, checks=VideoChecks(checks)).land(buy(), to(bucket))
    assert set(bucket.objects()) == {"v/clip.mp4", "v/clip.mp4.json"}
    assert "poster" not in facts_of(landed)


def test_the_poster_of_another_video_is_replaced_and_a_strange_object_is_not(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("v/clip.poster.jpg", b"of a video that was deleted", **{"wan-request-id": "earlier"})
    bucket.put("w/clip.poster.jpg", b"a picture of a person's own")
    posters = [facts_of(landing(bucket).land(buy(), to(bucket, f"{place}/clip.mp4"))) for place in "vw"]
    assert [facts.get("poster") for facts in posters] == ["v/clip.poster.jpg", None]
    assert bucket.read("v/clip.poster.jpg").startswith(b"\xff\xd8")
    assert bucket.read("w/clip.poster.jpg") == b"a picture of a person's own"
    assert "w/clip.poster.jpg is not the poster of a video" in caplog.text
