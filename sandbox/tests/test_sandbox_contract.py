# SPDX-License-Identifier: Apache-2.0
"""Each line of the API's contract, over a real socket."""

from __future__ import annotations

import re

import pytest

from sandbox.tests.api_client import MODEL, Client, eventually
from wan_sandbox.server import Sandbox


def test_a_submit_answers_with_an_id_and_three_urls(client: Client) -> None:
    answer = client.submit()
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"request_id", "status_url", "result_url", "cancel_url"}
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", body["request_id"])
    assert body["status_url"] == f"{client.sandbox.url}/v1/requests/{body['request_id']}/status"


def test_a_request_queues_runs_and_is_done(client: Client) -> None:
    ids = [client.buy() for _ in range(4)]
    answers = [client.status(request_id).json() for request_id in ids]
    assert [answer["status"] for answer in answers] == ["in_progress", "in_progress", "in_queue", "in_queue"]
    assert [answer.get("queue_position") for answer in answers] == [None, None, 0, 1]
    client.finish(ids[0])
    assert client.word(ids[0]) == "completed"
    assert client.word(ids[2]) == "in_progress"


def test_status_says_completed_for_a_failure_too_and_only_the_result_tells(client: Client) -> None:
    request_id = client.buy()
    client.finish(request_id, "failed", error="out of memory")
    assert client.word(request_id) == "completed"
    result = client.result(request_id).json()
    assert (result["status"], result["error"]) == ("failed", "out of memory")
    assert "output" not in result


def test_a_result_has_output_times_and_on_demand_the_cost(client: Client) -> None:
    request_id = client.done()
    plain, with_cost = client.result(request_id).json(), client.result(request_id, include_cost="true").json()
    assert plain["status"] == "succeeded"
    assert plain["output"]["video"].startswith(f"{client.sandbox.url}/media/{request_id}/video-0.mp4?")
    assert plain["created_at"] <= plain["finished_at"]
    assert "cost" not in plain
    assert with_cost["cost"] == 0.2


@pytest.mark.parametrize(("early_result", "status"), [("state", 200), ("400005", 400)])
def test_a_result_asked_too_early_is_a_state_or_400005(early_result: str, status: int) -> None:
    with Sandbox(video_bytes=50_000, check_images=False, early_result=early_result) as sandbox:
        client = Client(sandbox)
        answer = client.result(client.buy())
    assert answer.status_code == status
    assert answer.json().get("status" if status == 200 else "error_code") in {"in_progress", 400005}


def test_only_what_is_queued_is_cancelled_and_outcome_alone_tells(client: Client) -> None:
    running, _, queued = (client.buy() for _ in range(3))
    answer = client.cancel(queued)
    assert answer.status_code == 202
    # as published: the status next to a true cancel says completed
    assert answer.json() == {"request_id": queued, "status": "completed", "outcome": "cancelled"}
    assert client.cancel(running).json()["outcome"] == "not_cancellable"
    assert client.word(queued) == "cancelled"
    assert client.result(queued).json()["status"] == "cancelled"
    assert client.cancel(queued).json()["outcome"] == "cancelled"


def test_a_model_has_a_price_and_its_schema(client: Client) -> None:
    model = client.get(f"/v1/models/{MODEL}").json()
    assert (model["model_id"], model["base_price_usd"], model["price_unit"]) == (MODEL, 0.2, "output")
    assert "prompt" in model["input_schema"]["properties"]
    assert model["display_name"]
    assert model["pricing_note"]


def test_a_price_can_be_a_second_s() -> None:
    with Sandbox(price_usd=0.5, price_unit="second", check_images=False) as sandbox:
        model = Client(sandbox).get(f"/v1/models/{MODEL}").json()
    assert (model["base_price_usd"], model["price_unit"]) == (0.1, "second")


def test_the_balance_is_what_is_left_after_charges(client: Client) -> None:
    assert client.get("/prod/v2/balance").json() == {
        "balance_usd": 1000.0,
        "balance_microdollars": 1_000_000_000,
        "currency": "USD",
    }
    client.done()
    assert client.get("/prod/v2/balance").json()["balance_usd"] == 999.8


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/requests/unknown-id/status", 404, 404001),
        ("/v1/requests/unknown-id/result", 404, 404001),
        ("/v1/models/no-such-model", 400, 400001),
        ("/v1/models/wan-ai/nothing", 400, 400001),
    ],
)
def test_what_is_not_there_has_the_contract_s_code(client: Client, path: str, status: int, code: int) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)


@pytest.mark.parametrize("model", ["no-such-model", "wan-ai/wan-9/text", "wan ai/x"])
def test_a_wrong_model_id_is_refused(client: Client, model: str) -> None:
    answer = client.submit(model)
    assert (answer.status_code, answer.json()["error_code"]) == (400, 400001)


def test_a_model_without_schema_takes_any_input(client: Client) -> None:
    assert client.submit("sandbox/free-form/any", steps=30, strength=0.5).status_code == 200


def test_a_bad_token_arrives_as_http_400(sandbox: Sandbox) -> None:
    for token in ("wrong", ""):
        answer = Client(sandbox, token).submit()
        assert (answer.status_code, answer.json()["error_code"]) == (400, 400004)


def test_a_token_can_be_rotated_while_a_request_runs(client: Client) -> None:
    request_id = client.buy()
    client.sandbox.control("tokens", {"add": "fresh", "revoke": "sandbox-token"})
    assert client.status(request_id).json()["error_code"] == 400004
    assert Client(client.sandbox, "fresh").word(request_id) == "in_progress"


def test_a_request_of_another_user_is_403001(client: Client) -> None:
    request_id = client.buy()
    client.sandbox.control("tokens", {"add": "theirs", "account": "other"})
    answer = Client(client.sandbox, "theirs").status(request_id)
    assert (answer.status_code, answer.json()["error_code"]) == (403, 403001)


def test_an_inactive_account_is_400004(client: Client) -> None:
    client.sandbox.control("account", {"active": False})
    assert client.get("/prod/v2/balance").json()["error_code"] == 400004


def test_an_empty_wallet_arrives_as_http_400_and_what_is_promised_counts(client: Client) -> None:
    client.sandbox.control("account", {"balance_usd": 0.5})
    client.buy()
    waiting = client.buy()
    answer = client.submit()
    assert (answer.status_code, answer.json()["error_code"]) == (400, 400002)
    client.finish(waiting, "failed")
    client.buy()


def test_too_many_calls_a_second_are_429_with_retry_after(client: Client) -> None:
    request_id = client.buy()
    client.sandbox.control("account", {"requests_per_second": 0.5})
    client.status(request_id)
    answer = client.status(request_id)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")


def test_submits_have_a_limit_of_their_own(client: Client) -> None:
    client.sandbox.control("account", {"submits_per_second": 1})
    request_id = client.buy()
    answer = client.submit()
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert client.word(request_id) == "in_progress"
    assert len(client.sandbox.ledger()["purchases"]) == 1


def test_generations_end_by_themselves_and_speed_makes_it_sooner() -> None:
    with Sandbox(video_bytes=50_000, check_images=False, speed=1.0) as sandbox:
        client = Client(sandbox)
        request_id = client.buy()
        assert client.word(request_id) == "in_progress"
        sandbox.control("speed", {"speed": 100_000})
        eventually(lambda: client.word(request_id) == "completed")


def test_lifelike_lengths_scatter_within_the_known_bounds() -> None:
    with Sandbox(video_bytes=50_000, check_images=False, speed=1_000_000, concurrency=400) as sandbox:
        client = Client(sandbox)
        for resolution in ["480P", "1080P"] * 60:
            client.buy(resolution=resolution)
        eventually(lambda: sandbox.ledger()["states"] == {"succeeded": 120})
        lengths: dict[str, list[float]] = {"480P": [], "1080P": []}
        for one in sandbox.ledger()["purchases"]:
            seconds = (one["finished_at"] - one["started_at"]) * 1_000_000
            lengths[one["inputs"]["resolution"]].append(seconds)
    # a microsecond here is a second there: the clock's own grain allows a few
    assert 50 < min(lengths["480P"]) < 90 < 120 < max(lengths["480P"]) < 190
    assert 130 < sorted(lengths["1080P"])[30] < 200
