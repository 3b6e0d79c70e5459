# SPDX-License-Identifier: Apache-2.0
"""A record survives a round trip, and other content is not read as a record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.durable.record import LandedVideo, Record, Stage

ids = st.from_regex(r"[a-zA-Z0-9_-]{1,128}", fullmatch=True)
texts = st.text(max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
videos = st.builds(
    LandedVideo,
    uri=texts,
    bucket=texts,
    object_name=texts,
    size_bytes=st.integers(0),
    crc32c=texts,
    generation=st.integers(0),
    content_type=texts,
    request_id=ids,
)
records = st.builds(
    Record,
    fingerprint=texts,
    model_id=texts,
    stage=st.sampled_from([stage for stage in Stage if stage is not Stage.INTENT]),
    request_id=ids,
    inputs=st.dictionaries(texts, json_values, max_size=4),
    image=st.none() | texts,
    variation=st.none() | texts,
    claim=texts,
    cost_usd=st.none() | st.floats(0, 1000),
    lost_submissions=st.integers(0, 9),
    succeeded_once=st.booleans(),
    watchers=st.lists(texts, max_size=3).map(tuple),
    earlier_request_ids=st.lists(ids, max_size=3).map(tuple),
    videos=st.lists(videos, max_size=2).map(tuple),
)


@given(records)
def test_record_survives_a_round_trip(record: Record) -> None:
    assert Record.from_json(record.to_json().encode()) == record
    assert Record.from_dict(json.loads(json.dumps(record.as_dict()))) == record


@given(records)
def test_a_record_is_one_line_of_utf8(record: Record) -> None:
    assert b"\n" not in record.to_json().encode()


def test_a_lone_surrogate_in_a_prompt_can_be_recorded() -> None:
    record = Record("f", "m", Stage.INTENT, inputs={"prompt": "half \ud83d"})
    assert Record.from_json(record.to_json().encode()) == record


def test_keys_of_a_later_version_are_kept() -> None:
    record = Record("f", "m", Stage.SUBMITTED, request_id="r")
    later = {**record.as_dict(), "schema": 7, "later": {"x": 1}}
    assert Record.from_dict(later) == record
    assert replace(Record.from_dict(later), stage=Stage.SUCCEEDED).as_dict() == {
        **later,
        "stage": "succeeded",
    }


SOUND: dict[str, Any] = Record("f", "m", Stage.SUBMITTED, request_id="r").as_dict()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "42",
        "<html>sign in</html>",
        '{"stage": "submitted"}',
        *(
            json.dumps({**SOUND, **change})
            for change in (
                {"stage": "gone fishing"},
                {"stage": None},
                {"request_id": None},
                {"request_id": 42},
                {"request_id": "../../other"},
                {"stage": "intent"},
                {"fingerprint": None},
                {"videos": [{"uri": "gs://b/o"}]},
                {"videos": 3},
                {"watchers": 5},
                {"claimed_at": "yesterday"},
                {"submitted_at": 1700000000},
                {"lost_submissions": "many"},
            )
        ),
    ],
)
def test_other_content_is_not_read_as_a_record(text: str) -> None:
    with pytest.raises(ValueError):
        Record.from_json(text)


def test_a_new_intent_keeps_the_history() -> None:
    failed = Record("f", "m", Stage.FAILED, request_id="r1", earlier_request_ids=("r0",))
    intent = failed.as_new_intent(Record("f", "m", Stage.INTENT))
    assert intent.earlier_request_ids == ("r0", "r1")
    assert intent.lost_submissions == 0

    again = intent.as_new_intent(Record("f", "m", Stage.INTENT))
    assert again.earlier_request_ids == ("r0", "r1")
    assert again.lost_submissions == 1


def test_an_owner_is_recorded_once() -> None:
    record = Record("f", "m", Stage.SUBMITTED, request_id="r")
    twice = record.with_owner("dag/run/task/-1").with_owner("dag/run/task/-1").with_owner(None)
    assert twice.watchers == ("dag/run/task/-1",)
