# SPDX-License-Identifier: Apache-2.0
"""A whole MP4 is told from a cut one by its boxes, and nothing else is taken for one."""

from __future__ import annotations

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.landing.mp4 import Mp4, check_mp4
from tests.landing.landing_support import box, mp4, mvhd

FTYP, MOOV, MDAT = box(b"ftyp", b"isom"), box(b"moov", mvhd()), box(b"mdat", b"frames")


def check(data: bytes) -> Mp4:
    return check_mp4(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    "data",
    [
        FTYP + MOOV + MDAT,
        FTYP + MDAT + MOOV,
        FTYP + box(b"free") + MOOV + MDAT + box(b"uuid", bytes(16)) + MDAT,
        FTYP + MOOV + box(b"mdat", b"frames", wide=True),
        FTYP + MOOV + box(b"moof") + MDAT + box(b"moof") + MDAT,
        FTYP + MOOV + MDAT + box(b"\xa9xyz"),
    ],
    ids=["moov first", "mdat first", "more boxes", "64-bit size", "fragments", "old box name"],
)
def test_a_whole_file_passes(data: bytes) -> None:
    assert check(data) == Mp4(5.0, open_ended=False)


def test_a_last_box_may_run_to_the_end() -> None:
    assert check(FTYP + MOOV + box(b"mdat", b"frames", size=0)) == Mp4(5.0, open_ended=True)


@pytest.mark.parametrize(
    ("moov", "duration_s"),
    [
        (mvhd(150, 30), 5.0),
        (mvhd(2**40, 1000, version=1), 2**40 / 1000),
        (mvhd(5, 0), None),
        (box(b"free") + mvhd(), 5.0),
        (b"", None),
        (box(b"mvhd", b"short"), None),
        (box(b"free", size=0), None),
        (box(b"free", size=3), None),
        (box(b"free", size=2**31), None),
    ],
)
def test_the_length_in_seconds_is_read_or_unknown(moov: bytes, duration_s: float | None) -> None:
    assert check(mp4(moov=moov)).duration_s == duration_s


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no 'ftyp'"),
        (b"\0", "in the middle of a box header"),
        (b"<!doctype html><html>login</html>", "no MP4 box|does not start"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no MP4 box|does not start"),
        (bytes(1000), "no MP4 box"),
        (MOOV + MDAT + FTYP, "does not start"),
        (FTYP + MDAT, "no 'moov'"),
        (FTYP + MOOV, "no 'mdat'"),
        (FTYP + MOOV + MDAT + b"\0\0\0", "in the middle of a box header"),
        (FTYP + MOOV + MDAT + b"trailing rubbish", "impossible|cut|no MP4 box"),
        (FTYP + MOOV + box(b"mdat", b"x", size=7), "impossible size"),
        (FTYP + MOOV + box(b"mdat", b"x", size=15, wide=True), "impossible size"),
        (FTYP + MOOV + box(b"mdat", b"x", size=2**64 - 1, wide=True), "it is cut"),
        (FTYP + MOOV + struct.pack(">I4s", 1, b"mdat"), "in the middle of a box header"),
        (FTYP + box(b"moov", mvhd(), size=0), "no 'mdat'"),
        (FTYP * 200_000, "more boxes"),
    ],
    ids=range(16),
)
def test_what_is_no_whole_file_is_told(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(data)


@given(st.lists(st.binary(max_size=50), max_size=4), st.data())
def test_every_cut_is_found(payloads: list[bytes], data: st.DataObject) -> None:
    whole = FTYP + MOOV + b"".join(box(b"mdat", one) for one in [b"frames", *payloads])
    at = data.draw(st.integers(0, len(whole) - 1))
    ends = [len(FTYP + MOOV + MDAT)]
    for one in payloads:
        ends.append(ends[-1] + 8 + len(one))
    if at in ends:  # the same as a file that never had the last boxes
        check(whole[:at])
    else:
        with pytest.raises(ValueError, match="it "):
            check(whole[:at])


@given(st.binary(max_size=300))
def test_any_bytes_are_judged_and_nothing_else_is_raised(data: bytes) -> None:
    for one in (data, FTYP + data, FTYP + MOOV + data, FTYP + box(b"moov", data) + MDAT):
        with contextlib.suppress(ValueError):
            check(one)
