# SPDX-License-Identifier: Apache-2.0
"""Every fault of the API: its answer, and whether something was bought."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from sandbox.tests.api_client import Client, download, eventually
from wan_sandbox.server import Sandbox

CUT = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def submit_request(client: Client) -> int:
    return len(client.sandbox.ledger()["purchases"])


def answers(client: Client, request_id: str) -> dict[str, Any]:
    """Return a function that makes each call of the API."""
    return {
        "submit": client.submit,
        "status": lambda: client.status(request_id),
        "result": lambda: client.result(request_id),
        "cancel": lambda: client.cancel(request_id),
        "model": lambda: client.get("/v1/models/wan-ai/wan-2-2/image-to-video"),
        "models": lambda: client.get("/v1/models"),
        "balance": lambda: client.get("/prod/v2/balance"),
    }


@pytest.mark.parametrize("call", ["submit", "status", "result", "cancel", "model", "models", "balance"])
@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("unauthorized", 400, '"error_code": 400004'),
        ("no_balance", 400, '"error_code": 400002'),
        ("malformed_id", 400, '"error_code": 400001'),
        ("not_found", 404, '"error_code": 404001'),
        ("other_user", 403, '"error_code": 403001'),
        ("not_found_html", 404, "<html>"),
        ("forbidden_html", 403, "<html>"),
        ("overloaded", 429, "message"),
        ("error_200", 200, '"error_code": 400004'),
        ("invalid", 422, '"detail": ['),
        ("html", 200, "Sign in"),
        ("empty", 200, ""),
        ("redirect", 302, ""),
        ("status", 503, "message"),
    ],
)
def test_each_call_can_answer_anything(client: Client, call: str, fault: str, status: int, says: str) -> None:
    request_id = client.buy()
    client.sandbox.add_fault(call, fault)
    answer = answers(client, request_id)[call]()
    assert answer.status_code == status
    assert says in answer.text
    assert submit_request(client) == 1, "a fault before the processing buys nothing"


@pytest.mark.parametrize(
    ("params", "header", "body"),
    [
        ({"status": 500}, None, {"message": "Sandbox fault, HTTP 500"}),
        ({"status": 429, "retry_after": 7}, "7", {"message": "Sandbox fault, HTTP 429"}),
        ({"retry_after": "Wed, 21 Oct 2099 07:28:00 GMT"}, "Wed, 21 Oct 2099 07:28:00 GMT", None),
        ({"retry_after": "soon"}, "soon", None),
        ({"error_code": 400002, "shape": "code"}, None, {"code": 400002, "error": "Insufficient balance"}),
        (
            {"error_code": 500123, "error_message": "no GPU"},
            None,
            {"error_code": 500123, "error_message": "no GPU", "detail": None},
        ),
        ({"body": "text", "text": "plain words"}, None, "plain words"),
        ({"body": "empty"}, None, ""),
    ],
)
def test_an_outage_can_have_any_form(client: Client, params: dict[str, Any], header: str | None, body: Any) -> None:
    client.sandbox.add_fault("balance", "status", **params)
    answer = client.get("/prod/v2/balance")
    assert answer.status_code == params.get("status", 503)
    assert answer.headers.get("Retry-After") == header
    if body is not None:
        assert (answer.json() if isinstance(body, dict) else answer.text) == body


@pytest.mark.parametrize(
    ("fault", "purchases"),
    [
        ("reset", 0),
        ("reset_after", 1),
        ("hang", 0),
        ("hang_after", 1),
        ("status", 0),
        ("status_after", 1),
        ("html", 0),
        ("html_after", 1),
        ("empty", 0),
        ("empty_after", 1),
        ("redirect", 0),
        ("redirect_after", 1),
        ("cut_json", 1),
        ("no_id", 1),
        ("bad_id", 1),
    ],
)
def test_a_submit_without_a_usable_answer_was_bought_or_not(client: Client, fault: str, purchases: int) -> None:
    client.sandbox.add_fault("submit", fault)
    try:
        answer = client.submit(timeout=0.3)
    except (*CUT, requests.ReadTimeout):
        answer = None
    assert answer is None or not _has_good_id(answer)
    assert submit_request(client) == purchases


def _has_good_id(answer: requests.Response) -> bool:
    try:
        request_id = answer.json()["request_id"]
    except (ValueError, KeyError):
        return False
    return answer.ok and "/" not in request_id


@pytest.mark.parametrize("clean", [True, False])
def test_a_reset_is_a_cut_connection(client: Client, clean: bool) -> None:
    client.sandbox.add_fault("balance", "reset", clean=clean)
    with pytest.raises(requests.ConnectionError):
        client.get("/prod/v2/balance")


def test_a_hang_ends_by_itself_where_it_is_told_to(client: Client) -> None:
    client.sandbox.add_fault("balance", "hang", seconds=0.1)
    with pytest.raises(requests.ConnectionError):
        client.get("/prod/v2/balance")


def test_an_answer_can_drip_or_come_late_and_is_still_true(client: Client) -> None:
    true = client.get("/prod/v2/balance").content
    for fault in ({"fault": "drip", "every_s": 0.001}, {"fault": "delay", "seconds": 0.01}):
        client.sandbox.add_fault("balance", **fault, count=1)
        assert client.get("/prod/v2/balance").content == true


def test_an_answer_can_be_cut_with_and_without_an_honest_length(client: Client) -> None:
    whole = client.get("/prod/v2/balance").text
    client.sandbox.add_fault("balance", "cut_json", keep=0.5, count=1)
    cut = client.get("/prod/v2/balance").text
    assert whole.startswith(cut)
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut)
    client.sandbox.add_fault("balance", "cut_json", honest=False)
    with pytest.raises(CUT):
        client.get("/prod/v2/balance")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"fault": "word", "word": "post_processing"}, ["post_processing", "post_processing"]),
        ({"fault": "upper_case"}, ["CANCELLED", "CANCELLED"]),
        ({"fault": "one_l"}, ["canceled", "canceled"]),
    ],
)
def test_words_of_states_can_be_strange(client: Client, fault: dict[str, Any], words: list[str]) -> None:
    _, _, request_id = (client.buy() for _ in range(3))
    client.cancel(request_id)
    for call in ("status", "result"):
        client.sandbox.add_fault(call, **fault)
    assert [client.word(request_id), client.result(request_id).json()["status"]] == words


def test_urls_of_an_answer_can_lead_elsewhere(client: Client) -> None:
    client.sandbox.add_fault("submit", "foreign_urls")
    assert client.submit().json()["status_url"].startswith("https://collect.example.com/")


def test_a_submit_can_be_answered_with_202(client: Client) -> None:
    client.sandbox.add_fault("submit", "accepted_202")
    assert client.submit().status_code == 202


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ({"fault": "link_other_host"}, "https://files.example.com/video-0.mp4"),
        ({"fault": "link_http"}, "http://files.example.com/video-0.mp4"),
        ({"fault": "link_private"}, "http://169.254.169.254/latest/video-0.mp4"),
        ({"fault": "link", "url": "file:///etc/passwd"}, "file:///etc/passwd"),
    ],
)
def test_links_of_a_result_can_be_anything(client: Client, fault: dict[str, Any], result: str) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", **fault)
    assert client.link(request_id) == result


def test_a_link_can_have_credentials_in_it(client: Client) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "link_credentials")
    assert client.link(request_id).startswith("http://user:secret@127.0.0.1:")


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ("videos", ["videos"]),
        ("both", ["video", "videos"]),
        ("image", ["image"]),
        ("image_and_video", ["image", "images", "video"]),
        ("video_url", ["video_url"]),
        ("download_url", ["download_url"]),
        ("generated_video", ["generated_video"]),
    ],
)
def test_output_comes_in_many_shapes(client: Client, shape: str, keys: list[str]) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "output_shape", shape=shape, n=2)
    output = client.result(request_id).json()["output"]
    assert sorted(output) == keys
    if shape == "videos":
        files = [client.session.get(url, headers={"Authorization": None}, timeout=10) for url in output["videos"]]
        assert files[0].content != files[1].content


@pytest.mark.parametrize(("shape", "kind"), [("bare", str), ("list", list)])
def test_output_can_be_a_bare_link_or_a_list(client: Client, shape: str, kind: type) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "output_shape", shape=shape, n=3)
    assert isinstance(client.result(request_id).json()["output"], kind)


@pytest.mark.parametrize(
    ("suffix", "ending", "content_type", "magic"),
    [
        ("webm", ".webm", "video/webm", b"\x1a\x45\xdf\xa3"),
        ("none", "", "video/mp4", b"\0\0\0"),
    ],
)
def test_links_can_lead_to_webm_or_have_no_suffix(
    client: Client, suffix: str, ending: str, content_type: str, magic: bytes
) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "output_shape", shape="video_url", suffix=suffix)
    url = client.result(request_id).json()["output"]["video_url"]
    assert url.partition("?")[0].endswith(f"video-0{ending}")
    answer = download(url)
    assert answer.headers["Content-Type"] == content_type
    assert answer.content.startswith(magic)
    assert len(answer.content) == int(answer.headers["Content-Length"])
    assert download(url, Range="bytes=5-9").content == answer.content[5:10]


def test_a_nested_link_has_the_key_uri(client: Client) -> None:
    client.sandbox.add_fault("generation", "output_shape", shape="generated_video")
    result = client.result(client.done_by_rules()).json()
    assert "/media/" in result["output"]["generated_video"]["uri"]


def test_a_success_can_be_without_output(client: Client) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "no_output")
    result = client.result(request_id).json()
    assert (result["status"], result.get("output")) == ("succeeded", None)


def test_a_result_can_lag_behind_the_status(client: Client) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "pending", count=1)
    client.sandbox.add_fault("result", "not_ready", count=1)
    assert client.word(request_id) == "completed"
    assert client.result(request_id).json()["status"] == "in_progress"
    assert client.result(request_id).json()["error_code"] == 400005
    assert client.result(request_id).json()["status"] == "succeeded"


def test_400005_only_for_as_long_as_it_is_early(client: Client) -> None:
    request_id = client.buy()
    client.sandbox.add_fault("result", "early_400005")
    assert client.result(request_id).json()["error_code"] == 400005
    client.finish(request_id)
    assert client.result(request_id).json()["status"] == "succeeded"


def test_cost_can_be_late_or_absent(client: Client) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "cost_late", seconds=3600, count=1)
    client.sandbox.add_fault("result", "cost_absent", count=1)
    costs = [client.result(request_id, include_cost="true").json().get("cost") for _ in range(3)]
    assert costs == [None, None, 0.2]


@pytest.mark.parametrize(("shape", "kind"), [("string", str), ("object", dict), ("list", list), ("null", type(None))])
def test_the_error_of_a_failure_has_any_shape(client: Client, shape: str, kind: type) -> None:
    client.sandbox.add_fault("generation", "fail", error_shape=shape, error="bad luck")
    request_id = client.done_by_rules()
    result = client.result(request_id).json()
    assert result["status"] == "failed"
    assert isinstance(result["error"], kind)
    assert shape == "null" or "bad luck" in str(result["error"])


def test_a_failure_can_be_without_error_and_can_be_charged(client: Client) -> None:
    client.sandbox.add_fault("generation", "fail", error_shape="absent", charged=True)
    request_id = client.done_by_rules()
    assert "error" not in client.result(request_id).json()
    assert client.sandbox.ledger()["charged_usd"] == 0.2


def test_a_rule_of_the_result_alone_says_failed(client: Client) -> None:
    request_id = client.done()
    client.sandbox.add_fault("result", "failed", error="it says")
    result = client.result(request_id).json()
    assert (result["status"], result["error"]) == ("failed", "it says")
    assert "output" not in result


def test_a_fate_can_be_chosen_by_the_prompt(client: Client) -> None:
    client.sandbox.add_fault("generation", "fail", prompt_contains="cursed")
    client.sandbox.control("speed", {"generation_seconds": 0})
    good, bad = client.buy(prompt="a fine day"), client.buy(prompt="a cursed day")
    assert [client.result(one).json()["status"] for one in (good, bad)] == ["succeeded", "failed"]


@pytest.mark.parametrize(("fate", "word"), [("stuck_queue", "in_queue"), ("stuck_running", "in_progress")])
def test_a_request_can_be_stuck_for_ever(client: Client, fate: str, word: str) -> None:
    client.sandbox.add_fault("generation", fate, count=1)
    stuck, other = client.buy(), client.buy()
    client.sandbox.control("speed", {"speed": 1e9})
    eventually(lambda: client.word(other) == "completed")
    assert client.word(stuck) == word


def test_a_request_can_take_longer(client: Client) -> None:
    client.sandbox.control("speed", {"generation_seconds": 0})
    client.sandbox.add_fault("generation", "slow", seconds=100_000, count=1)
    slow, other = client.buy(), client.buy()
    assert [client.word(one) for one in (slow, other)] == ["in_progress", "completed"]


def test_runcomfy_can_cancel_by_itself(client: Client) -> None:
    client.sandbox.add_fault("generation", "cancelled")
    request_id = client.done_by_rules()
    assert client.result(request_id).json()["status"] == "cancelled"
    assert client.sandbox.ledger()["charged_usd"] == 0


@pytest.mark.parametrize("told", [0, 2])
def test_a_result_can_vanish_after_it_was_there(client: Client, told: int) -> None:
    client.sandbox.add_fault("generation", "vanish", after_results=told)
    request_id = client.done_by_rules()
    assert client.word(request_id) == "completed"
    codes = [client.result(request_id).json().get("error_code") for _ in range(told + 1)]
    assert codes == [None] * told + [404001]
    assert client.status(request_id).json()["error_code"] == 404001
    assert client.sandbox.ledger()["charged_usd"] == 0.2


def test_a_request_can_vanish_at_once(client: Client) -> None:
    client.sandbox.add_fault("generation", "vanish", when="submitted")
    assert client.status(client.buy()).json()["error_code"] == 404001


def test_a_cancel_can_be_refused_though_it_is_queued(client: Client) -> None:
    _, _, queued = (client.buy() for _ in range(3))
    client.sandbox.add_fault("cancel", "not_cancellable")
    assert client.cancel(queued).json()["outcome"] == "not_cancellable"
    assert client.word(queued) == "in_queue"


def test_one_rule_can_be_about_one_request(client: Client) -> None:
    one, other = client.buy(), client.buy()
    client.sandbox.add_fault("status", "not_found", request_id=one)
    assert [client.status(name).status_code for name in (one, other)] == [404, 200]


def test_rules_from_the_start_come_back_after_a_reset() -> None:
    rules = ("balance:status:status=500,count=1", {"call": "models", "fault": "html"})
    with Sandbox(check_images=False, faults=rules) as sandbox:
        client = Client(sandbox)
        assert [client.get("/prod/v2/balance").status_code for _ in range(2)] == [500, 200]
        sandbox.clear_faults()
        assert client.get("/v1/models").json()["total"]
        sandbox.reset()
        assert client.get("/prod/v2/balance").status_code == 500
        assert "Sign in" in client.get("/v1/models").text


def test_an_outage_of_everything_changes_no_generation(client: Client) -> None:
    rule = client.sandbox.add_fault("*", "reset_after", count=1)
    with pytest.raises(CUT):
        client.submit()
    assert [one["hits"] for one in client.sandbox.control("faults")["faults"] if one["id"] == rule] == [1]
    assert client.submit().status_code == 200
    assert submit_request(client) == 2
