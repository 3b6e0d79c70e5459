# SPDX-License-Identifier: Apache-2.0
"""Two vocabularies for one state: only /result decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.model_api.states import (
    State,
    is_known_word,
    is_over_word,
    state_of_result_word,
    state_of_status_word,
)
from tests.model_api.model_api_replies import STEADY

OVER = ["completed", "succeeded", "failed", "cancelled", "canceled"]
KNOWN = [*OVER, "in_queue", "in_progress"]


@pytest.mark.parametrize(
    ("word", "state", "is_over"),
    [
        ("in_queue", State.QUEUED, False),
        ("in_progress", State.RUNNING, False),
        ("IN_PROGRESS", State.RUNNING, False),
        ("completed", State.UNKNOWN, True),
        ("Completed", State.UNKNOWN, True),
        ("succeeded", State.UNKNOWN, True),
        ("failed", State.UNKNOWN, True),
        ("cancelled", State.UNKNOWN, True),
        ("CANCELED", State.UNKNOWN, True),
        ("archived", State.UNKNOWN, False),
        ("", State.UNKNOWN, False),
    ],
)
def test_status_word_never_decides_how_a_request_ended(word: str, state: State, is_over: bool) -> None:
    assert state_of_status_word(word) is state
    assert is_over_word(word) is is_over


@pytest.mark.parametrize(
    ("word", "has_url", "state"),
    [
        ("succeeded", True, State.SUCCEEDED),
        ("completed", True, State.SUCCEEDED),
        ("SUCCEEDED", True, State.SUCCEEDED),
        ("succeeded", False, State.FAILED),
        ("completed", False, State.FAILED),
        ("failed", True, State.FAILED),
        ("failed", False, State.FAILED),
        ("cancelled", False, State.CANCELLED),
        ("Canceled", False, State.CANCELLED),
        ("in_queue", False, State.QUEUED),
        ("in_progress", True, State.RUNNING),
        ("archived", True, State.UNKNOWN),
    ],
)
def test_result_word_decides_and_success_needs_a_url(word: str, has_url: bool, state: State) -> None:
    assert state_of_result_word(word, has_url) is state


@STEADY
@given(st.text(), st.booleans())
def test_unknown_word_is_not_terminal(word: str, has_url: bool) -> None:
    assert not state_of_status_word(word).is_terminal
    if not is_known_word(word):
        assert state_of_result_word(word, has_url) is State.UNKNOWN
        assert not is_over_word(word)


@STEADY
@given(st.sampled_from(KNOWN), st.data(), st.booleans())
def test_letter_case_and_surrounding_blanks_are_ignored(word: str, data: st.DataObject, has_url: bool) -> None:
    upper = data.draw(st.lists(st.booleans(), min_size=len(word), max_size=len(word)))
    written = " " + "".join(c.upper() if up else c for c, up in zip(word, upper, strict=True)) + "\n"
    assert state_of_status_word(written) is state_of_status_word(word)
    assert state_of_result_word(written, has_url) is state_of_result_word(word, has_url)
    assert is_over_word(written) is is_over_word(word)
