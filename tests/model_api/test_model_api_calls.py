# SPDX-License-Identifier: Apache-2.0
"""The wire format: requests as sent, and responses as parsed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanError,
    WanInputError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api import calls
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import Call, Reply
from tests.model_api.model_api_replies import MODEL, STEADY, reply

V = "https://files.runcomfy.net/a.mp4"
I = "https://files.runcomfy.net/a.png"  # noqa: E741
X = "https://files.runcomfy.net/abc?x=1"


def test_calls_have_the_method_path_and_query_of_the_contract() -> None:
    def sent(call: Call[Any]) -> tuple[Any, ...]:
        return call.host, call.method, call.path, dict(call.query), call.json

    assert sent(calls.submit_call(MODEL, {"prompt": "p"})) == (
        "api", "POST", "/v1/models/wan-ai/wan-2-2/image-to-video", {}, {"prompt": "p"}
    )  # fmt: skip
    assert sent(calls.status_call("r-1")) == ("api", "GET", "/v1/requests/r-1/status", {}, None)
    cost = {"include_cost": "true"}
    assert sent(calls.result_call("r-1")) == ("api", "GET", "/v1/requests/r-1/result", cost, None)
    assert sent(calls.cancel_call("r-1")) == ("api", "POST", "/v1/requests/r-1/cancel", {}, None)
    assert sent(calls.model_call("a/b")) == ("api", "GET", "/v1/models/a/b", {}, None)
    query = {"search": "wan", "limit": "5", "offset": "0", "include_schema": "true"}
    assert sent(calls.models_call("wan", None, limit=5, offset=0)) == (
        "api",
        "GET",
        "/v1/models",
        query,
        None,
    )
    assert sent(calls.balance_call()) == ("account", "GET", "/prod/v2/balance", {}, None)


def test_only_the_submit_counts_as_the_call_that_costs_money() -> None:
    free = [calls.status_call("r"), calls.result_call("r"), calls.cancel_call("r"), calls.model_call("a/b")]
    assert calls.submit_call(MODEL, {}).is_submit
    assert not any(call.is_submit for call in [*free, calls.balance_call()])


@pytest.mark.parametrize(
    "bad", ["", "a/b", "..", "a b", "a\n", "a?b", "a#b", "a%2e", "ä", "x" * 129, "r\x00", None, 5, "٣"]
)
def test_invalid_request_id_is_refused_before_it_enters_a_url(bad: Any) -> None:
    for build in (calls.status_call, calls.result_call, calls.cancel_call):
        with pytest.raises(WanInputError, match="request id"):
            build(bad)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "/",
        "a//b",
        "/a",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        "a/.../b",
        "a b",
        "a?b",
        "a#",
        "a\n",
        "a%2f",
        "ä",
        None,
        "x" * 300,
    ],
)
def test_invalid_model_id_is_refused_before_it_enters_a_url(bad: Any) -> None:
    for build in (calls.model_call, lambda model_id: calls.submit_call(model_id, {"a": 1})):
        with pytest.raises(WanInputError, match="model id"):
            build(bad)


@STEADY
@given(st.text())
def test_any_id_is_refused_or_safe_in_a_url(text: str) -> None:
    for build, extra in ((calls.status_call, ""), (calls.model_call, "/.")):
        with contextlib.suppress(WanInputError):
            path = build(text).path
            assert all(c.isascii() and (c.isalnum() or c in "-_/" + extra) for c in path)
            assert not {"", ".", ".."} & set(path.split("/")[1:])


def test_headers_are_found_in_any_letter_case() -> None:
    assert Reply(200, {"Retry-AFTER": "1"}, b"").headers == {"retry-after": "1"}


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("request_id", ["a", "A-b_9", "x" * 128])
def test_submit_is_accepted_with_any_2xx_that_has_an_id(status: int, request_id: str) -> None:
    body = {"request_id": request_id, "status_url": "https://evil.example/"}
    assert calls.read_submit(reply(status, body), MODEL) == calls.SubmittedRequest(request_id, MODEL)


def test_id_next_to_an_error_code_in_a_200_is_kept() -> None:
    body = {"request_id": "r-1", "error_code": 400002}
    assert calls.read_submit(reply(200, body), MODEL).request_id == "r-1"


@pytest.mark.parametrize("bad", ["", "a/b", "x" * 129, None, True, {"id": 1}, "a\n", 1.5])
def test_2xx_without_a_valid_id_is_an_unknown_submission(bad: Any) -> None:
    with pytest.raises(WanUnknownSubmissionError):
        calls.read_submit(reply(200, {"request_id": bad}), MODEL)


def test_id_in_a_refusal_is_ignored() -> None:
    with pytest.raises(WanAuthError):
        calls.read_submit(reply(400, {"request_id": "trace-1", "error_code": 400004}), MODEL)


@pytest.mark.parametrize(
    ("body", "state", "is_over", "position"),
    [
        ({"status": "in_queue", "queue_position": 3}, State.QUEUED, False, 3),
        ({"status": "in_queue", "queue_position": "3"}, State.QUEUED, False, None),
        ({"status": "in_queue", "queue_position": -1}, State.QUEUED, False, None),
        ({"status": "in_queue", "queue_position": True}, State.QUEUED, False, None),
        ({"status": "in_progress", "request_id": "R-1"}, State.RUNNING, False, None),
        ({"status": "completed", "error": "boom"}, State.UNKNOWN, True, None),
        ({"status": "archived\n"}, State.UNKNOWN, False, None),
    ],
)
def test_status_is_read(body: Any, state: State, is_over: bool, position: int | None) -> None:
    found = calls.read_status(reply(200, body), "r-1")
    assert (found.state, found.is_over, found.queue_position) == (state, is_over, position)
    assert found.word.isprintable()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, {"error_code": 400004, "error_message": "no"}, WanAuthError),
        (200, {"status": "error", "error_code": 404001}, WanNotFoundError),
        (200, {"status": "failed", "error_code": 400004}, WanAuthError),
        (200, {"status": 200, "code": 500, "message": "no"}, WanTransientError),
        (200, {"status": 5}, WanTransientError),
        (200, {}, WanTransientError),
        (200, [], WanTransientError),
        (200, b"<html>", WanTransientError),
        (200, {"status": "completed", "request_id": "another"}, WanTransientError),
        (302, {"status": "completed"}, WanTransientError),
        (403, {"status": "completed"}, WanRefusedError),
        (500, {"status": "completed"}, WanTransientError),
        (404, {"code": 404001}, WanNotFoundError),
    ],
)
def test_unusable_answer_raises(status: int, body: Any, error: type[WanError]) -> None:
    for read in (calls.read_status, calls.read_result):
        with pytest.raises(error) as raised:
            read(reply(status, body), "r-1")
        assert type(raised.value) is error
        assert raised.value.request_id == "r-1"


@pytest.mark.parametrize(
    ("output", "urls", "videos"),
    [
        ({"video": V}, (V,), (V,)),
        ({"image": I, "video": V}, (I, V), (V,)),
        ({"images": [I], "videos": [X, V]}, (I, X, V), (X, V)),
        ({"videos": [V, V]}, (V,), (V,)),
        ({"image": I}, (I,), ()),
        (V, (V,), (V,)),
        (X, (X,), (X,)),
        ([X, I], (X, I), (X, I)),
        ([I, V], (I, V), (V,)),
        ({"data": {"clip": V}}, (V,), (V,)),
        ({"outputs": [{"url": X}]}, (X,), (X,)),
        ({"video": {"url": X, "width": 5}}, (X,), (X,)),
        (
            {"video": "https://h.net/my clip.mp4 "},
            ("https://h.net/my%20clip.mp4",) * 1,
            ("https://h.net/my%20clip.mp4",),
        ),
        ({"video_url": X}, (X,), (X,)),
        ({"download_url": X}, (X,), (X,)),
        ({"generated_video": {"uri": X}}, (X,), (X,)),
        ({"result": {"generatedVideo": [{"uri": X}]}}, (X,), (X,)),
        ({"video_url": X, "cover_image_url": I, "video_thumbnail": I}, (X, I), (X,)),
        ({"download_url": X, "last_frame_image": I}, (X, I), (X,)),
        ({"result": {"download_url": "https://h.net/a.webm", "seed": 4}}, ("https://h.net/a.webm",), None),
        ({"video": {"url": X, "thumbnail": {"url": I}}}, (X, I), (X,)),
        ({"video": "HTTPS://h.net/a"}, ("HTTPS://h.net/a",), ("HTTPS://h.net/a",)),
    ],
)
def test_output_urls_are_found_in_every_shape(
    output: Any, urls: tuple[str, ...], videos: tuple[str, ...] | None
) -> None:
    found = calls.read_result(reply(200, {"status": "succeeded", "output": output}), "r-1")
    assert found.state is State.SUCCEEDED
    assert (found.urls, found.video_urls) == (urls, urls if videos is None else videos)
    assert not found.is_paid_without_output


@pytest.mark.parametrize(
    "output",
    [
        None,
        {},
        [],
        "",
        {"video": None},
        {"video": "gs://b/o"},
        {"video": "/a.mp4"},
        {"videos": [1, True]},
        "file:///etc/passwd",
        "https://",
        "javascript:x",
        "https://h\n.net/",
        "http://[bad",
        "http://h:99999/",
    ],
)
def test_success_without_a_usable_url_is_a_failure_that_counts_as_paid(output: Any) -> None:
    found = calls.read_result(reply(200, {"status": "completed", "output": output, "error": "odd"}), "r-1")
    assert found.state is State.FAILED
    assert found.is_paid_without_output
    assert "no output" in (found.error or "")
    assert "odd" in (found.error or "")


@pytest.mark.parametrize("word", ["in_queue", "in_progress", "archived"])
def test_result_that_is_not_ready_is_not_an_error(word: str) -> None:
    assert not calls.read_result(reply(200, {"status": word, "output": {"video": V}}), "r-1").state.is_terminal


@pytest.mark.parametrize(("status", "key"), [(400, "error_code"), (400, "code"), (200, "error_code"), (404, "code")])
def test_error_code_400005_is_not_an_error(status: int, key: str) -> None:
    found = calls.read_result(reply(status, {key: 400005, "error_message": "not ready"}), "r-1")
    assert not found.state.is_terminal
    assert found.word == "not_ready"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("nsfw\x00", "nsfw"),
        ({"message": "nsfw", "code": 7}, "nsfw"),
        ({"code": 7}, "code 7"),
        ([{"msg": "a"}, "b"], "a; b"),
        ({"error": {"detail": "deep"}}, "deep"),
        (None, None),
        ("", None),
        ({}, None),
        (False, None),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_error_of_any_shape_becomes_one_text(error: Any, text: str | None) -> None:
    assert calls.read_result(reply(200, {"status": "failed", "error": error}), "r-1").error == text


@pytest.mark.parametrize(
    ("cost", "cost_usd"),
    [
        (0.25, 0.25),
        ("0.25", 0.25),
        (0, 0.0),
        (None, None),
        ("free", None),
        (True, None),
        (-1, None),
        ([], None),
        ("nan", None),
        ("inf", None),
        (10**400, None),
    ],
)
def test_cost_is_a_number_or_none(cost: Any, cost_usd: float | None) -> None:
    assert calls.read_result(reply(200, {"status": "failed", "cost": cost}), "r-1").cost_usd == cost_usd


def test_times_of_a_result_are_kept() -> None:
    body = {"status": "failed", "created_at": "2025-01-01T00:00:00Z", "finished_at": None}
    found = calls.read_result(reply(200, body), "r-1")
    assert (found.created_at, found.finished_at) == ("2025-01-01T00:00:00Z", None)


@pytest.mark.parametrize(
    ("body", "cancelled"),
    [
        ({"outcome": "cancelled", "status": "completed"}, True),
        ({"outcome": "Canceled"}, True),
        ({"outcome": "not_cancellable", "status": "cancelled"}, False),
        ({"outcome": "later"}, False),
    ],
)
def test_outcome_alone_decides_a_cancel(body: Any, cancelled: bool) -> None:
    found = calls.read_cancel(reply(202, body), "r-1")
    assert (found.cancelled, found.word) == (cancelled, body["outcome"])


def test_cancel_without_an_outcome_raises() -> None:
    with pytest.raises(WanTransientError):
        calls.read_cancel(reply(202, {"status": "cancelled"}), "r-1")


def test_catalogue_and_balance_are_read() -> None:
    model = {"model_id": MODEL, "display_name": "Wan", "base_price_usd": "0.1", "price_unit": "second"}
    found = calls.read_model(reply(200, model | {"input_schema": {"type": "object"}}))
    assert (found.model_id, found.base_price_usd, found.price_unit) == (MODEL, 0.1, "second")
    assert found.input_schema == {"type": "object"}
    page = calls.read_models(reply(200, {"models": [model, {"odd": 1}, 5], "total": 3}))
    assert ([m.model_id for m in page.models], page.total) == ([MODEL], 3)
    assert calls.read_balance(reply(200, {"balance_usd": 5, "currency": "USD"})) == calls.Balance(5.0, "USD")
    assert calls.read_balance(reply(200, {"balance_microdollars": 2_500_000})) == calls.Balance(2.5, "USD")


@pytest.mark.parametrize("read", [calls.read_model, calls.read_models, calls.read_balance])
def test_errors_of_catalogue_and_balance_are_raised(read: Any) -> None:
    with pytest.raises(WanAuthError):
        read(reply(200, {"error_code": 400004}))
    with pytest.raises(WanTransientError):
        read(reply(200, {}))
    with pytest.raises(WanTransientError):
        read(reply(503, b"<html>"))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([V, I, X]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["video", "videos", "image", "url", "message", "x"]), inner, max_size=4)
    ),
    max_leaves=10,
)
KEYS = st.sampled_from(["status", "output", "error", "cost", "queue_position", "request_id", "code", "outcome"])


@STEADY
@given(
    st.sampled_from([200, 202, 400, 404, 500]),
    st.dictionaries(KEYS, ANY | st.sampled_from(["completed", "in_queue", "failed", 404001, 400005]), max_size=6),
)
def test_any_answer_is_read_or_raises_our_own_error(status: int, body: dict[str, Any]) -> None:
    answer = reply(status, json.dumps(body).encode())
    for read in (calls.read_submit, calls.read_status, calls.read_result, calls.read_cancel):
        with contextlib.suppress(WanError):
            found = read(answer, "r-1")
            if isinstance(found, calls.RequestResult):
                assert found.state is not State.SUCCEEDED or found.urls
                assert set(found.video_urls) <= set(found.urls)


def test_output_of_any_depth_is_read() -> None:
    body = b'{"status": "succeeded", "output": ' + b"[" * 900 + json.dumps(V).encode() + b"]" * 900 + b"}"
    assert calls.read_result(reply(200, body), "r-1").video_urls == (V,)
    with pytest.raises(WanTransientError):
        calls.read_result(reply(200, b"[" * 200_000), "r-1")
