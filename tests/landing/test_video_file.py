# SPDX-License-Identifier: Apache-2.0
"""A complete video is distinguished from a truncated one, and from a file that only looks like a video."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from airflow_provider_wan.landing.video_file import VideoFile, check_video_file
from tests.landing.landing_support import FTYP, box, moov, mp4, mvhd, table, trak

MDAT = box(b"mdat", b"frames")


def check(data: bytes) -> VideoFile:
    return check_video_file(io.BytesIO(data), len(data))


@functools.cache
def encoded(
    container: str = "mp4",
    codec: str = "libx264",
    audio: str | None = None,
    seconds: float = 1.0,
    **options: str,
) -> bytes:
    """Return a video that FFmpeg wrote."""
    path = Path(tempfile.mkdtemp()) / "video"
    with av.open(str(path), "w", format=container, options=options) as file:
        stream: Any = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound: Any = file.add_stream(audio, rate=48_000) if audio else None
        for number in range(int(10 * seconds)):
            picture = Image.new("RGB", (64, 48), (number * 20, 255 - number * 20, 99))
            picture.paste((255, 255, 255), (0, 0, 1 + number, 20))
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())
        if sound is not None:
            for number in range(int(50 * seconds)):
                frame = av.AudioFrame(format="s16", layout="mono", samples=960)
                frame.planes[0].update(bytes(1920))
                frame.sample_rate, frame.pts = 48_000, number * 960
                file.mux(sound.encode(frame))
            file.mux(sound.encode())
    return path.read_bytes()


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}
VIDEOS: dict[str, tuple[dict[str, Any], str]] = {
    "header last": ({}, "video/mp4"),
    "header first": ({"movflags": "faststart"}, "video/mp4"),
    "audio": ({"audio": "aac", "movflags": "faststart"}, "video/mp4"),
    "fragmented": (FRAGMENTED, "video/mp4"),
    "fragmented, audio": ({"audio": "aac", **FRAGMENTED}, "video/mp4"),
    "fragmented, moof base": ({"movflags": "frag_keyframe+empty_moov+default_base_moof"}, "video/mp4"),
    "fragmented, separate moofs": (
        {"audio": "aac", "movflags": "frag_keyframe+empty_moov+separate_moof"},
        "video/mp4",
    ),
    "cmaf": ({"movflags": "cmaf+frag_keyframe"}, "video/mp4"),
    "dash": ({"movflags": "dash+frag_keyframe+global_sidx"}, "video/mp4"),
    "edit list": ({"use_editlist": "1", "audio": "aac"}, "video/mp4"),
    "no edit list": ({"use_editlist": "0"}, "video/mp4"),
    "hint track": ({"movflags": "rtphint"}, "video/mp4"),
    "mpeg-4": ({"codec": "mpeg4"}, "video/mp4"),
    "quicktime": ({"container": "mov"}, "video/quicktime"),
    "quicktime with pcm": ({"container": "mov", "audio": "pcm_s16le"}, "video/quicktime"),
    "webm": ({"container": "webm", "codec": "libvpx"}, "video/webm"),
    "webm with audio": ({"container": "webm", "codec": "libvpx", "audio": "libopus"}, "video/webm"),
    "webm, index first": ({"container": "webm", "codec": "libvpx", "cues_to_front": "1"}, "video/webm"),
    "matroska": ({"container": "matroska"}, "video/webm"),
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_that_ffmpeg_wrote_is_whole(kind: str) -> None:
    options, content_type = VIDEOS[kind]
    found = check(encoded(**options))
    assert (found.content_type, found.open_ended) == (content_type, False)
    assert found.duration_s == pytest.approx(1, abs=0.15)


def test_a_live_webm_has_no_end_of_its_own() -> None:
    found = check(encoded("webm", "libvpx", live="1"))
    assert found == VideoFile("video/webm", None, open_ended=True)


@pytest.mark.parametrize("kind", ["header last", "header first", "audio", "fragmented", "webm", "quicktime"])
def test_a_cut_video_is_found_at_any_byte(kind: str) -> None:
    whole = encoded(**VIDEOS[kind][0])
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        cut = whole[:at]
        try:
            found = check(cut)
        except ValueError:
            continue
        assert kind == "fragmented", f"cut at {at} of {len(whole)}"
        assert found.duration_s is not None  # cut between two fragments: the same as a shorter video
        assert found.duration_s < 0.95


@pytest.mark.parametrize(
    "data",
    [
        mp4(),
        mp4(last=True),
        mp4(wide=True),
        mp4(wide=True, last=True),
        mp4() + box(b"free") + box(b"uuid", bytes(16)) + MDAT,
        mp4() + box(b"\xa9xyz"),
        mp4(header=mvhd(5000, version=1)),
        mp4(header=box(b"free") + mvhd()),
    ],
    ids=[
        "moov first",
        "moov last",
        "64-bit",
        "64-bit, moov last",
        "more boxes",
        "old box name",
        "version 1",
        "free",
    ],
)
def test_complete_file_passes(data: bytes) -> None:
    assert check(data) == VideoFile("video/mp4", 5.0, open_ended=False)


def test_a_last_box_may_run_to_the_end() -> None:
    whole = mp4()
    assert check(whole[:-14] + box(b"mdat", b"frames", size=0)).open_ended


def test_the_duration_of_the_track_counts_where_the_header_has_none() -> None:
    assert check(mp4(header=mvhd(0), ticks=1500)).duration_s == 1.5
    assert check(mp4(header=mvhd(2**32 - 1), ticks=1500)).duration_s == 1.5
    assert check(mp4(header=mvhd(5, 0), ticks=1500)).duration_s == 1.5


EMPTY = FTYP + box(b"moov") + box(b"mdat")
AT = len(FTYP + moov(0, [6])) + 8


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (EMPTY, "no 'mvhd'"),
        (FTYP + box(b"moov", mvhd()) + MDAT, "no video track"),
        (FTYP + moov(AT, [6], handler=b"soun") + MDAT, "no video track"),
        (FTYP + moov(AT, []) + MDAT, "no samples"),
        (FTYP + moov(AT, [0]) + MDAT, "no samples"),
        (mp4(header=mvhd(0), ticks=0), "duration is 0"),
        (FTYP + moov(AT, [7]) + MDAT, "media data is not whole"),
        (FTYP + moov(AT - 1, [6]) + MDAT, "media data is not whole"),
        (FTYP + moov(10**6, [6]) + MDAT, "media data is not whole"),
        (FTYP + box(b"moov", mvhd() + trak(AT, [6])[:-20] + bytes(20)) + MDAT, "tables place|damaged|no "),
        (FTYP + box(b"moov", box(b"mvhd", b"short")) + MDAT, "damaged"),
        (FTYP + box(b"moov", mvhd() + box(b"trak", box(b"tkhd"))) + MDAT, "damaged"),
        (FTYP + box(b"moov", mvhd() + box(b"mvex", table(b"trex", ">I", (1,)))) + MDAT, "damaged"),
    ],
    ids=range(13),
)
def test_a_file_that_has_the_boxes_of_a_video_and_no_video_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no 'ftyp'"),
        (b"\0", "in the middle of a box header"),
        (b"<!doctype html><html>login</html>", "no MP4 box|does not start"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no MP4 box|does not start"),
        (bytes(1000), "no MP4 box"),
        (moov(0, [6]) + MDAT + FTYP, "does not start"),
        (FTYP + MDAT, "no 'moov'"),
        (FTYP + moov(0, [6]), "no 'mdat'"),
        (mp4() + b"\0\0\0", "in the middle of a box header"),
        (mp4() + b"trailing rubbish", "impossible|cut|no MP4 box"),
        (FTYP + box(b"mdat", b"x", size=7), "impossible size"),
        (FTYP + box(b"mdat", b"x", size=15, wide=True), "impossible size"),
        (FTYP + box(b"mdat", b"x", size=2**64 - 1, wide=True), "it is cut"),
        (FTYP + struct.pack(">I4s", 1, b"mdat"), "in the middle of a box header"),
        (FTYP + box(b"moov", mvhd(), size=0), "no 'mdat'"),
        (FTYP * 200_000, "more boxes"),
        (b"\x1a\x45\xdf\xa3", "middle|cut"),
        (b"\x1a\x45\xdf\xa3\x80", "cut"),
        (b"\x1a\x45\xdf\xa3\x87\x42\x82\x84webm" + b"\x18\x53\x80\x67\x80", "no video track"),
        (b"\x1a\x45\xdf\xa3\x87\x42\x82\x84text" + b"\x18\x53\x80\x67\x80", "no WebM"),
    ],
    ids=range(20),
)
def test_incomplete_file_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged_and_nothing_else_is_raised(data: bytes) -> None:
    for file in (
        data,
        FTYP + data,
        mp4() + data,
        FTYP + box(b"moov", data) + MDAT,
        b"\x1a\x45\xdf\xa3" + data,
    ):
        with contextlib.suppress(ValueError):
            check(file)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["header first", "fragmented", "webm"]), st.data())
def test_any_damage_is_judged_and_nothing_else_is_raised(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(**VIDEOS[kind][0]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(2500, len(whole) - 1)))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        check(bytes(whole))
