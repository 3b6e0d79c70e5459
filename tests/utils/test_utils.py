# SPDX-License-Identifier: Apache-2.0
"""Code shared by the operators: parameters in every accepted form, and errors converted to Airflow's."""

from __future__ import annotations

import inspect
import json
import traceback
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan import exceptions
from airflow_provider_wan.durable.record import LandedVideo, Record, Stage
from airflow_provider_wan.exceptions import (
    WanBatchError,
    WanDownloadError,
    WanError,
    WanInputError,
    WanTransientError,
)
from airflow_provider_wan.model_api.fingerprints import signatures_in
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.params import (
    RequestRef,
    given_or_none,
    mapping_of,
    mask_signatures,
    request_of,
    seconds_of,
)
from airflow_provider_wan.utils.results import result_of_landed
from airflow_provider_wan.utils.task import TaskRequest, owner_of
from tests.task_runs import TaskInstance

ALL_ERRORS = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, WanError)]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_is_also_an_airflow_exception(kind: type[WanError]) -> None:
    needed = {"retry_helps": True} if kind is WanBatchError else {}
    original = kind("what happened", **needed)
    original.request_id = "req-1"
    with pytest.raises(kind) as raised, as_airflow_errors():
        raise original
    error = raised.value
    assert isinstance(error, AirflowException)
    assert isinstance(error, AirflowFailException) != original.retry_helps
    assert (str(error), error.request_id, type(error).__name__) == ("what happened", "req-1", kind.__name__)
    assert error.__cause__ is None
    assert "what happened" not in "".join(traceback.format_exception(error)).replace(str(error), "", 1)


def test_error_marked_as_final_is_not_retried() -> None:
    with pytest.raises(WanDownloadError) as raised, as_airflow_errors():
        raise WanDownloadError("an address that is not allowed", retry_helps=False)
    assert isinstance(raised.value, AirflowFailException)


def test_converted_error_keeps_its_attributes_and_is_converted_once() -> None:
    with pytest.raises(WanTransientError) as raised, as_airflow_errors(), as_airflow_errors():
        raise WanTransientError("later", retry_after_s=3)
    assert raised.value.retry_after_s == 3
    assert isinstance(raised.value, AirflowException)


def fails_twice_in_a_row() -> None:
    try:
        try:
            raise ConnectionResetError("the network said no")
        except OSError as network:
            raise WanTransientError("the first words") from network
    except WanTransientError as first:
        raise WanTransientError("the first words, and what to do now") from first


def test_log_shows_an_error_once_with_its_external_cause() -> None:
    with pytest.raises(WanTransientError) as raised, as_airflow_errors():
        fails_twice_in_a_row()
    log = "".join(traceback.format_exception(raised.value))
    assert log.count("WanTransientError: ") == 1
    assert "the network said no" in log


def test_other_errors_are_not_converted() -> None:
    with pytest.raises(ZeroDivisionError), as_airflow_errors():
        raise ZeroDivisionError


REF = RequestRef("req-1", "some/model", "f" * 64, "2026-01-01", journal="gs://b/j", owner="d/r/t/-1", image="i")


@pytest.mark.parametrize("form", [dict, json.dumps, str])
def test_return_value_of_a_task_is_accepted_as_a_request(form: Any) -> None:
    assert request_of(form(REF.as_xcom())) == REF


@given(
    st.text(max_size=200)
    | st.integers()
    | st.none()
    | st.dictionaries(st.text(), st.text(), max_size=3)
    | st.lists(st.text())
)
def test_value_that_is_not_a_request_is_refused(value: Any) -> None:
    try:
        found = request_of(value)
    except WanInputError:
        return
    assert found.request_id.isascii()
    assert all(char.isalnum() or char in "_-" for char in found.request_id)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (" None ", None),
        ("none", "none"),
        (0, 0),
        (False, False),
        ("x", "x"),
        ({}, {}),
    ],
)
def test_only_jinjas_renderings_of_none_count_as_none(value: Any, expected: Any) -> None:
    assert given_or_none(value) == expected


@pytest.mark.parametrize("value", [None, "", "None", {}, "{}", " {} "])
def test_missing_mapping_is_empty(value: Any) -> None:
    assert mapping_of(value, name="resolve") == {}


@pytest.mark.parametrize("value", ["[1]", [1], "x", 5, "__import__('os').getcwd()", "{'a': open('x')}"])
def test_text_that_is_not_a_mapping_is_refused_and_never_evaluated(value: Any) -> None:
    with pytest.raises(WanInputError, match="resolve"):
        mapping_of(value, name="resolve")


def test_durations_are_timedeltas_or_seconds() -> None:
    assert (seconds_of(timedelta(minutes=2)), seconds_of(90), seconds_of(1.5)) == (120, 90, 1.5)


def test_landed_request_returns_its_objects() -> None:
    video = LandedVideo("gs://b/v.mp4", "b", "v.mp4", 5, "AAAA", 1, "video/mp4", "req-1")
    record = Record("f", "m", Stage.LANDED, request_id="req-1", cost_usd=0.2, videos=(video,))
    result = result_of_landed(record, REF)
    assert (result["state"], result["videos"], result["cost_usd"]) == ("succeeded", ["gs://b/v.mp4"], 0.2)


def test_an_owner_is_named_by_run_task_and_index() -> None:
    context = {"ti": TaskInstance("wait", "run/with/slashes", 7)}
    operator: Any = SimpleNamespace(wan_conn_id="wan_default")
    task = TaskRequest.of(operator, context)
    assert task.owner == "dag/run/with/slashes/wait/7"
    assert task.owners(REF) == ["d/r/t/-1", "dag/run/with/slashes/wait/7"]
    assert owner_of({"ti": TaskInstance(map_index=None)}).endswith("/-1")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x/a.jpg?X-Goog-Signature=abc%2Fd&X-Goog-Expires=600", ["abc%2Fd"]),
        ("https://x/a.jpg?Expires=1&Signature=s1&Policy=p1&size=5", ["s1", "p1"]),
        ("https://x/a.jpg?se=1&sig=s2&x-amz-security-token=t", ["s2", "t"]),
        ("https://x/a.jpg?size=big&signature=", []),
        ("gs://bucket/a.jpg?sig=x", []),
        ("not a url", []),
    ],
)
def test_signatures_of_a_url_are_recognized(url: str, expected: list[str]) -> None:
    assert signatures_in(url) == expected


@pytest.mark.parametrize("value", [None, 5, "x", "a=b://", ["x", {"y": None}], object()])
def test_search_for_signatures_accepts_any_value(value: Any) -> None:
    mask_signatures(value)
