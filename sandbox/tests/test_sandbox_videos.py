# SPDX-License-Identifier: Apache-2.0
"""The videos are real: they decode, have the requested size and length, and show the image that was sent."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image, ImageChops, ImageStat

from sandbox.tests.api_client import PHOTOS, Client, download, eventually, put_image
from wan_sandbox.runcomfy.clip import Clip
from wan_sandbox.runcomfy.videos import encode_video, frame_size
from wan_sandbox.server import Sandbox


@pytest.fixture(scope="module")
def studio() -> Iterator[Client]:
    """A client of a sandbox that encodes."""
    with Sandbox(generation_seconds=0) as started:
        yield Client(started)


def film(client: Client, photo: str, **inputs: str) -> bytes:
    url = put_image(client.sandbox, photo, (PHOTOS / photo).read_bytes())
    request_id = client.buy(img_url=url, **inputs)
    eventually(lambda: client.word(request_id) == "completed")
    return download(client.link(request_id)).content


def boxes(data: bytes) -> list[str]:
    names, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        names.append(data[at + 4 : at + 8].decode())
        at += size
    assert at == len(data)
    return names


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Compare two images at a small size, without their grain."""
    small = (24, 16)
    difference = ImageChops.difference(one.convert("RGB").resize(small), other.convert("RGB").resize(small))
    return sum(ImageStat.Stat(difference).mean) / 3


def test_video_has_the_format_of_wan_2_2(studio: Client) -> None:
    data = film(studio, "coffee.jpg")
    names = boxes(data)
    assert names[0] == "ftyp"
    assert names.index("moov") < names.index("mdat"), "the index comes first"
    with av.open(io.BytesIO(data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.average_rate, float(video.duration * video.time_base)) == (30, 5.0)
        assert sum(1 for _ in container.decode(video=0)) == 150
        width, height = video.width, video.height
    assert width % 2 == height % 2 == 0
    assert abs(width * height - 310_000) < 5_000
    assert abs(width / height - 600 / 400) < 0.02


def test_a_video_moves_slowly_over_the_image_that_was_sent(studio: Client) -> None:
    films = {photo: film(studio, photo) for photo in ("coffee.jpg", "rocket.jpg")}
    for photo, data in films.items():
        with av.open(io.BytesIO(data)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        sent = Image.open(PHOTOS / photo)
        others = [Image.open(PHOTOS / other) for other in films if other != photo]
        for frame in (frames[0], frames[149]):
            assert all(mean_difference(frame, sent) < mean_difference(frame, other) for other in others)
        near, far = mean_difference(frames[70], frames[72]), mean_difference(frames[0], frames[149])
        assert 0 < near < far
        # the wide end of the move shows nearly the whole image
        assert min(mean_difference(frames[0], sent), mean_difference(frames[149], sent)) < 12


def test_the_same_image_and_inputs_give_the_same_bytes_and_others_do_not(studio: Client) -> None:
    once, again = film(studio, "rocket.jpg", prompt="a"), film(studio, "rocket.jpg", prompt="a")
    other = film(studio, "rocket.jpg", prompt="b")
    assert once == again != other


def test_clip_encoded_again_has_the_same_bytes(tmp_path: Path) -> None:
    image = (PHOTOS / "rocket.jpg").read_bytes()
    for name in ("one.mp4", "two.mp4"):
        encode_video(image, tmp_path / name, Clip(seconds=0.5, has_audio=True), key="k")
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.parametrize(
    ("size", "lines", "pixels"),
    [
        ((600, 400), 480, 310_000),
        ((400, 900), 480, 310_000),
        ((1999, 361), 1080, 2_070_000),
        ((16, 9), 720, 1280 * 720),
        ((9, 16), 1440, 2560 * 1440),
        ((16, 9), 2160, 3840 * 2160),
    ],
)
def test_the_size_follows_resolution_and_aspect_ratio(size: tuple[int, int], lines: int, pixels: int) -> None:
    width, height = frame_size(size[0] / size[1], lines)
    assert width % 2 == height % 2 == 0
    assert abs(width * height / pixels - 1) < 0.01
    assert abs((width / height) / (size[0] / size[1]) - 1) < 0.01


@pytest.mark.parametrize(
    "clip",
    [
        Clip(lines=1080, seconds=0.5),
        Clip(lines=2160, seconds=1, has_audio=True),
        Clip(lines=720, seconds=1.5, has_audio=True, aspect=9 / 16, frames_per_second=50),
        Clip(lines=480, seconds=16),
    ],
    ids=["1080p", "4k", "portrait", "long"],
)
def test_a_clip_has_the_size_length_rate_and_sound_that_are_asked_for(tmp_path: Path, clip: Clip) -> None:
    encode_video((PHOTOS / "coffee.jpg").read_bytes(), tmp_path / "a.mp4", clip, key="k")
    with av.open(str(tmp_path / "a.mp4")) as container:
        video = container.streams.video[0]
        assert (video.width, video.height) == frame_size(clip.aspect or 600 / 400, clip.lines)
        assert (video.average_rate, video.frames) == (
            clip.frames_per_second,
            clip.seconds * clip.frames_per_second,
        )
        assert len(container.streams.audio) == clip.has_audio
        assert all(stream.duration * stream.time_base == clip.seconds for stream in container.streams)
        frames = [frame.to_image(width=24, height=16) for frame in container.decode(video=0)]
        assert len(frames) == video.frames
        assert all(a.tobytes() != b.tobytes() for a, b in zip(frames[:20], frames[20:40], strict=False))


def test_the_sound_is_not_silent(tmp_path: Path) -> None:
    clip = Clip(seconds=1, has_audio=True)
    encode_video((PHOTOS / "coffee.jpg").read_bytes(), tmp_path / "a.mp4", clip, key="k")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert any(any(bytes(frame.planes[0])) for frame in container.decode(audio=0))


def test_video_is_made_without_image_checks_too() -> None:
    with Sandbox(check_images=False, generation_seconds=0) as sandbox:
        client = Client(sandbox)
        request_id = client.buy()
        eventually(lambda: client.word(request_id) == "completed")
        assert boxes(download(client.link(request_id)).content)[0] == "ftyp"


@pytest.mark.parametrize("size", [40_000, 2_000_001])
def test_a_padded_video_has_exactly_the_size_and_is_another_for_each_request(size: int) -> None:
    with Sandbox(video_bytes=size, check_images=False) as sandbox:
        client = Client(sandbox)
        files = [download(client.link(client.done())).content for _ in range(2)]
    assert [len(data) for data in files] == [size, size]
    assert len({hashlib.sha256(data).digest() for data in files}) == 2
    assert boxes(files[0])[-1] == "free"
    with av.open(io.BytesIO(files[0])) as container:
        assert container.duration == 5 * av.time_base
        assert sum(1 for _ in container.decode(video=0)) == 50


def test_padded_size_smaller_than_a_video_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="video-bytes must be"):
        Sandbox(video_bytes=1000).start()
