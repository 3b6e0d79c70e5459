# SPDX-License-Identifier: Apache-2.0
"""Refused, unknown or transient: the meaning of an error response, above all for the call that costs money."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanError,
    WanInputError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.bodies import json_of
from airflow_provider_wan.model_api.faults import (
    RetryPolicy,
    error_of_no_reply,
    error_of_reply,
    retry_after_s,
)
from airflow_provider_wan.model_api.values import Reply
from tests.model_api.model_api_replies import STEADY, reply

HTML = b"<html><body>Bad gateway</body></html>"

#: Of a submit: that nothing was bought, and the intent is withdrawn.
REFUSED_FOR_CERTAIN = (WanRefusedError, WanTransientError)


def own(code: int, text: str = "no") -> dict[str, Any]:
    return {"error_code": code, "error_message": text}


def of_submit(status: int, body: Any, **headers: str) -> WanError:
    return error_of_reply(reply(status, body, headers), what="submit", submit=True)


def of_get(status: int, body: Any, **headers: str) -> WanError:
    return error_of_reply(reply(status, body, headers), what="status", request_id="r-1")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        # a 4xx with a readable error body is a refusal
        (400, own(400001), WanRefusedError),
        (400, own(400002), WanBalanceError),
        (400, own(400004), WanAuthError),
        (400, {"code": 400004, "error": "expired"}, WanAuthError),
        (400, {"code": "400002", "error": "empty"}, WanBalanceError),
        (400, {"message": "bad"}, WanRefusedError),
        (401, {"message": "who?"}, WanAuthError),
        (402, {"message": "pay"}, WanBalanceError),
        (403, own(403001), WanRefusedError),
        (404, own(404001), WanRefusedError),
        (404, {"detail": "no such model"}, WanRefusedError),
        (409, {"message": "conflict"}, WanRefusedError),
        (422, {"detail": [{"loc": ["body", "prompt"], "msg": "too long"}]}, WanInputError),
        # a 429 is a refusal whatever its body, and nothing was bought
        (429, b"", WanTransientError),
        (429, HTML, WanTransientError),
        (429, own(400002), WanTransientError),
        # the API's own code in a 200 without an id is a refusal too
        (200, own(400002), WanBalanceError),
        (200, own(400004), WanAuthError),
        (200, {"code": 401, "message": "no"}, WanAuthError),
        (200, {"code": 429, "message": "slow down"}, WanTransientError),
        # any other 4xx is a refusal, whoever wrote it, and so is a redirect, which is not followed
        (301, b"", WanRefusedError),
        (302, own(400002), WanRefusedError),
        (308, HTML, WanRefusedError),
        (400, HTML, WanRefusedError),
        (400, b"", WanRefusedError),
        (400, {}, WanRefusedError),
        (400, b'{"error_code": 4000', WanRefusedError),
        (401, HTML, WanAuthError),
        (402, b"no", WanBalanceError),
        (403, HTML, WanRefusedError),
        (404, HTML, WanRefusedError),
        (425, b"", WanRefusedError),
        # everything else may have been bought
        (100, b"", WanUnknownSubmissionError),
        (200, {}, WanUnknownSubmissionError),
        (200, b"", WanUnknownSubmissionError),
        (200, HTML, WanUnknownSubmissionError),
        (200, {"message": "odd"}, WanUnknownSubmissionError),
        (200, {"code": 0, "message": "ok"}, WanUnknownSubmissionError),
        (200, own(500001), WanUnknownSubmissionError),
        (202, b'{"request_id": "ab', WanUnknownSubmissionError),
        (400, own(500001), WanUnknownSubmissionError),
        (400, own(408001), WanUnknownSubmissionError),
        (408, own(400002), WanUnknownSubmissionError),
        (499, own(400002), WanUnknownSubmissionError),
        (500, own(400002), WanUnknownSubmissionError),
        (502, HTML, WanUnknownSubmissionError),
        (503, {"message": "busy"}, WanUnknownSubmissionError),
        (504, b"", WanUnknownSubmissionError),
        (599, b"", WanUnknownSubmissionError),
    ],
)
def test_submit_is_refused_only_where_that_is_certain(status: int, body: Any, error: type[WanError]) -> None:
    found = of_submit(status, body)
    assert type(found) is error
    assert isinstance(found, REFUSED_FOR_CERTAIN) is (error is not WanUnknownSubmissionError)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, own(400001), WanRefusedError),
        (400, own(400002), WanBalanceError),
        (400, own(400004), WanAuthError),
        (400, own(400005), WanTransientError),
        (400, HTML, WanRefusedError),
        (401, HTML, WanAuthError),
        (402, b"", WanBalanceError),
        (403, own(403001), WanRefusedError),
        (403, HTML, WanRefusedError),
        (404, own(404001), WanNotFoundError),
        (404, {"code": 404001, "error": "gone"}, WanNotFoundError),
        (400, own(404001), WanNotFoundError),
        (200, own(404001), WanNotFoundError),
        (403, own(404001), WanRefusedError),
        (404, HTML, WanRefusedError),
        (404, {"message": "no route"}, WanRefusedError),
        (404, {"error": {"code": 404001}}, WanRefusedError),
        (422, {"detail": []}, WanInputError),
        (200, own(400004), WanAuthError),
        (200, own(500001), WanTransientError),
        (200, HTML, WanTransientError),
        (200, b'{"status": "in_pr', WanTransientError),
        (302, b"", WanTransientError),
        (408, b"", WanTransientError),
        (425, b"", WanTransientError),
        (429, own(400004), WanTransientError),
        (500, own(400004), WanTransientError),
        (502, HTML, WanTransientError),
        (503, b"", WanTransientError),
        (504, b"", WanTransientError),
    ],
)
def test_read_error_is_transient_unless_the_api_is_definite(status: int, body: Any, error: type[WanError]) -> None:
    assert type(of_get(status, body)) is error


@pytest.mark.parametrize(
    ("sent", "submit", "error"),
    [
        (False, True, WanTransientError),
        (True, True, WanUnknownSubmissionError),
        (False, False, WanTransientError),
        (True, False, WanTransientError),
    ],
)
def test_submit_without_an_answer_is_unknown_unless_nothing_was_sent(
    sent: bool, submit: bool, error: type[WanError]
) -> None:
    found = error_of_no_reply("it broke", sent=sent, what="submit", submit=submit, peer="connection 'a'")
    assert type(found) is error
    assert "it broke (connection 'a')" in str(found)


def test_unknown_submission_names_how_to_settle_it() -> None:
    for error in (
        of_submit(502, HTML),
        error_of_no_reply("no answer", sent=True, what="submit", submit=True),
    ):
        for word in ("Generations page", "resolve=", "request=", "resubmit", "not sent again"):
            assert word in str(error)


def test_id_in_a_damaged_answer_is_part_of_the_message() -> None:
    assert '"req_42"' in str(of_submit(200, b'{"request_id": "req_42", "status_url": "https://mo'))
    assert "req_4" not in str(of_submit(200, b'{"request_id": "req_4'))


def test_messages_name_code_text_request_and_what_to_do() -> None:
    error = of_get(403, own(403001, "not yours"))
    assert "403001" in str(error)
    assert "not yours" in str(error)
    assert "r-1" in str(error)
    assert "another user" in str(error)
    assert (error.request_id, getattr(error, "code", None)) == ("r-1", 403001)
    assert "model id" in str(of_submit(400, own(400001)))
    assert "prompt: too long" in str(of_submit(422, {"detail": [{"loc": ["body", "prompt"], "msg": "too long"}]}))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error_code": 1, "code": 2, "error_message": "A", "message": "B"}, "code 1: A"),
        ({"code": 2, "message": "B", "error": "C"}, "code 2: B"),
        ({"error": "C", "detail": "D"}, ": C"),
        ({"detail": "D"}, ": D"),
        ({"error": {"message": "inside"}}, ": inside"),
        ({"error": ["one", {"msg": "two"}]}, ": one; two"),
        ({"unrelated": 1}, ": Bad Request"),
        ([], ": Bad Request"),
    ],
)
def test_error_bodies_are_read_in_the_order_of_the_contract(body: Any, text: str) -> None:
    assert text in str(of_get(400, body))


def test_text_from_a_server_cannot_forge_log_lines_or_carry_secrets() -> None:
    text = (
        "bad\r\nERROR fake\x1b[31m\u202e line https://user:pw@h/a.png?X-Goog-Signature=abc "
        "Bearer s3cret-token token=0123456789abcdef0 data:image/png;base64,AAAA"
    )
    shown = str(of_get(400, {"message": text}))
    assert shown.isprintable()
    for secret in ("Signature", "pw@", "s3cret", "0123456789abcdef", "AAAA"):
        assert secret not in shown
    assert len(str(of_get(400, {"message": "x" * 5000}))) < 300 + 250


@pytest.mark.parametrize("submit", [True, False])
def test_redirect_error_names_the_target_and_the_likely_mistake(submit: bool) -> None:
    answer = reply(301, b"", {"Location": "https://model-api.runcomfy.net/v1/models/x?key=secret"})
    answer = replace(answer, peer="connection 'wan_default' (host model-api.runcomfy.net)")
    said = str(error_of_reply(answer, what="submit", submit=submit))
    for word in (
        "https://model-api.runcomfy.net/v1/models/x",
        "http:// instead of https://",
        "'wan_default'",
    ):
        assert word in said
    assert "secret" not in said


def test_refused_token_error_names_the_connection() -> None:
    answer = replace(reply(401, b""), peer="connection 'wan_default' (host model-api.runcomfy.net)")
    said = str(error_of_reply(answer, what="status", request_id="r-1"))
    assert "Check the API token in connection 'wan_default' (host model-api.runcomfy.net)" in said


@pytest.mark.parametrize("submit", [True, False])
@pytest.mark.parametrize("status", [200, 403, 404])
def test_html_page_is_named_as_such(submit: bool, status: int) -> None:
    error = error_of_reply(reply(status, b"<!DOCTYPE html><html></html>"), what="call", submit=submit)
    assert "an HTML page" in str(error)


def test_404_of_a_gateway_is_not_final() -> None:
    said = str(of_get(404, HTML))
    assert "not an answer of the API itself" in said
    assert "same answer" not in said


TOKEN = 'wan/"s3cret"-token'


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"message": f"no user has key {TOKEN}"}).encode(),
        json.dumps({"detail": [{"loc": [TOKEN], "msg": TOKEN}]}).encode(),
        json.dumps({TOKEN: 1, "error": {"message": f"x{TOKEN}y"}}).replace("/", "\\/").encode(),
        json.dumps({"message": TOKEN}).replace("s3", "\\u0073\\u0033").encode(),
        json.dumps({"message": TOKEN}).encode("utf-16"),
        json.dumps({"request_id": "r-1", "status": "completed", "error": TOKEN}).encode(),
        TOKEN.encode(),
    ],
)
def test_token_repeated_by_the_server_is_replaced(body: bytes) -> None:
    answer = Reply(400, {"Location": f"/{TOKEN}"}, body, secret=TOKEN)
    assert "s3cret" not in str(error_of_reply(answer, what="status"))
    assert "s3cret" not in repr(answer)
    assert "s3cret" not in json.dumps(json_of(answer.body))


def test_answer_without_the_token_is_unchanged() -> None:
    body = json.dumps({"message": "caf\u00e9 \\ / token"}).encode()
    assert Reply(200, {}, body, secret=TOKEN).body == body
    assert Reply(200, {}, body, secret="").body == body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["error_code", "code", "error", "message", "error_message", "detail", "request_id"])
CODES = st.sampled_from([400001, 400002, 400004, 400005, 403001, 404001, 401, 429, 408001, 500001, "400002"])
BODIES = st.one_of(
    st.binary(max_size=200),
    st.dictionaries(KEYS, st.one_of(JSON, CODES, CODES), max_size=4).map(lambda d: json.dumps(d).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
)


@STEADY
@given(st.integers(0, 999), BODIES, st.dictionaries(st.text(), st.text(), max_size=3), st.booleans())
def test_any_answer_becomes_an_error_of_one_readable_line(
    status: int, body: bytes, headers: dict[str, str], submit: bool
) -> None:
    error = error_of_reply(reply(status, body, headers), what="call", submit=submit)
    assert isinstance(error, WanError)
    assert str(error).isprintable()


@STEADY
@given(st.integers(0, 999), BODIES)
def test_random_answers_refuse_a_submit_only_if_definite(status: int, body: bytes) -> None:
    error = error_of_reply(reply(status, body), what="submit", submit=True)
    assert not isinstance(error, WanNotFoundError)
    if status == 429:
        assert isinstance(error, WanTransientError)
    elif isinstance(error, REFUSED_FOR_CERTAIN):
        assert 200 <= status < 500
        assert status not in (408, 499)
        if status < 300:
            found = json.loads(body)
            assert any(str(found.get(key)).startswith("4") for key in ("error_code", "code"))


NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("31536000", 31_536_000.0),
        ("9" * 300, 100 * 365 * 86_400.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("٣", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Sat, 99 Foo 2025 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_every_form(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}, NOW) == seconds


def test_retry_after_date_is_relative_to_the_clock_of_the_server() -> None:
    headers = {
        "retry-after": format_datetime(NOW + timedelta(seconds=60), usegmt=True),
        "date": format_datetime(NOW, usegmt=True),
    }
    assert retry_after_s(headers, NOW + timedelta(hours=1)) == 60.0
    assert retry_after_s(headers) == 60.0
    assert retry_after_s({"retry-after": headers["retry-after"]}) is None
    assert retry_after_s({}) is None


@STEADY
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_retry_after_is_none_or_a_finite_wait(value: str, date: str) -> None:
    wait_s = retry_after_s({"retry-after": value, "date": date}, NOW)
    assert wait_s is None or 0 <= wait_s < 1e10


def test_error_carries_retry_after() -> None:
    error = of_get(503, b"", **{"Retry-After": "12"})
    assert isinstance(error, WanTransientError)
    assert error.retry_after_s == 12.0
    assert "12 s" in str(error)


@pytest.mark.parametrize(
    ("attempt", "retry_after", "spent_s", "delay_s"),
    [
        (1, None, 0.0, 0.5),
        (2, None, 0.0, 1.0),
        (3, None, 0.0, 2.0),
        (4, None, 0.0, None),  # four tries were made
        (1, 0.0, 0.0, 0.5),
        (1, 60.0, 0.0, 60.5),
        (1, 60.0, 100.0, None),  # it does not fit into the budget, and it is never undercut
        (1, 31_536_000.0, 0.0, None),
        (1, None, 120.0, None),
    ],
)
def test_retries_back_off_within_their_budget(
    attempt: int, retry_after: float | None, spent_s: float, delay_s: float | None
) -> None:
    error = WanTransientError("x", retry_after_s=retry_after)
    assert RetryPolicy().delay_s(attempt, error, rnd=1.0, spent_s=spent_s) == delay_s


def test_only_transient_errors_are_retried() -> None:
    for error in (WanRefusedError("x"), WanUnknownSubmissionError("x"), WanAuthError("x"), WanError("x")):
        assert RetryPolicy().delay_s(1, error, rnd=0.5, spent_s=0.0) is None


@STEADY
@given(
    st.integers(1, 10_000),
    st.none() | st.floats(0, 1e9),
    st.floats(0, 1),
    st.floats(0, 1e4),
    st.builds(
        RetryPolicy,
        tries=st.integers(1, 10_000),
        first_s=st.floats(0, 10),
        factor=st.floats(1, 10),
        max_s=st.floats(0, 100),
        budget_s=st.floats(0, 1000),
    ),
)
def test_delay_is_never_below_retry_after_or_beyond_the_budget(
    attempt: int, asked_s: float | None, rnd: float, spent_s: float, policy: RetryPolicy
) -> None:
    delay_s = policy.delay_s(attempt, WanTransientError("x", retry_after_s=asked_s), rnd=rnd, spent_s=spent_s)
    if delay_s is not None:
        assert attempt < policy.tries
        assert delay_s >= (asked_s or 0.0)
        assert spent_s + delay_s <= policy.budget_s
