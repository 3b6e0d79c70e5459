# SPDX-License-Identifier: Apache-2.0
"""The ledger as a judge of tests, and the control that changes a sandbox at run time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest
import requests

from sandbox.tests.api_client import MODEL, Client
from wan_sandbox.server import ControlError, Sandbox


def test_it_tells_what_was_seen_bought_cancelled_charged_and_refused(client: Client) -> None:
    done, _, queued = (client.buy(prompt=prompt) for prompt in ("a", "b", "c"))
    client.submit(duration=7)
    client.cancel(queued)
    client.cancel(done)
    client.finish(done)
    client.word(done)
    book = client.sandbox.ledger()
    assert book["submits_seen"] == 4
    assert [entry["outcome"] for entry in book["submits"]] == ["accepted"] * 3 + ["refused 422"]
    assert {entry["account"] for entry in book["submits"]} == {"default"}
    assert [one["prompt"] for one in book["purchases"]] == ["a", "b", "c"]
    assert [one["state"] for one in book["purchases"]] == ["succeeded", "running", "cancelled"]
    assert [one["charged_usd"] for one in book["purchases"]] == [0.2, 0.0, 0.0]
    assert [(one["request_id"], one["outcome"]) for one in book["cancels"]] == [
        (queued, "cancelled"),
        (done, "not_cancellable"),
    ]
    assert book["charged_usd"] == 0.2
    assert book["calls"] == {"submit": 4, "cancel": 2, "status": 1}
    assert [(one["call"], one["status"]) for one in book["refusals"]] == [("submit", 422)]


def test_a_purchase_has_its_times_and_calls(client: Client) -> None:
    request_id = client.done()
    client.status(request_id)
    client.result(request_id)
    [one] = client.sandbox.ledger()["purchases"]
    assert one["model_id"] == MODEL
    assert one["inputs"] == {"prompt": "a slow wave", "img_url": "https://images.example.com/a.jpg"}
    assert one["at"] <= one["started_at"] <= one["finished_at"] <= one["noticed_at"]
    assert (one["status_calls"], one["result_calls"]) == (1, 1)
    assert (one["account"], one["cancelled"], one["vanished"]) == ("default", False, False)


def test_a_submit_that_a_fault_swallowed_was_seen_but_not_bought(client: Client) -> None:
    client.sandbox.add_fault("submit", "status", status=503)
    client.submit()
    book = client.sandbox.ledger()
    assert (book["submits_seen"], book["purchases"]) == (1, [])
    assert book["submits"][0]["outcome"] == "seen"
    assert book["faults"] == {"submit:status": 1}


def test_the_summary_has_the_sums_alone(client: Client) -> None:
    client.done()
    summary = client.sandbox.control("ledger?summary=1")
    assert (summary["purchases_count"], summary["charged_usd"]) == (1, 0.2)
    assert "purchases" not in summary


@pytest.mark.parametrize(
    ("retry_after", "is_early"),
    [("3600", True), (formatdate(4e9, usegmt=True), True), ("0", False), ("soon", False), ("-5", False)],
)
def test_who_does_not_wait_for_a_retry_after_is_noted(client: Client, retry_after: str, is_early: bool) -> None:
    request_id, other = client.buy(), client.buy()
    client.sandbox.add_fault("status", "status", status=429, retry_after=retry_after, count=1)
    client.status(request_id)
    client.status(other)
    client.result(request_id)
    client.status(request_id)
    early = client.sandbox.ledger()["too_early"]
    assert [(one["call"], one["request_id"]) for one in early] == [("status", request_id)] * is_early


def test_an_early_submit_is_told_apart_by_what_it_sends(client: Client) -> None:
    client.sandbox.add_fault("submit", "status", status=429, retry_after=60, count=1)
    client.submit(prompt="a")
    client.submit(prompt="b")
    assert client.sandbox.ledger()["too_early"] == []
    client.submit(prompt="a")
    assert [one["call"] for one in client.sandbox.ledger()["too_early"]] == ["submit"]


def test_an_early_download_is_noted(client: Client) -> None:
    link = client.link(client.done())
    client.sandbox.add_fault("media", "status", status=503, retry_after=60, count=1)
    for _ in range(2):
        requests.get(link, timeout=10)
    assert [one["call"] for one in client.sandbox.ledger()["too_early"]] == ["media"]


def test_a_reset_forgets_everything(client: Client) -> None:
    sandbox = client.sandbox
    client.buy()
    sandbox.control("tokens", {"add": "other"})
    sandbox.control("account", {"balance_usd": 0})
    sandbox.add_fault("*", "reset")
    sandbox.control("reset", {})
    book = sandbox.ledger()
    assert (book["submits_seen"], book["purchases"], book["calls"]) == (0, [], {})
    assert Client(sandbox, "other").get("/prod/v2/balance").status_code == 400
    assert client.get("/prod/v2/balance").json()["balance_usd"] == 1000
    client.buy()


def test_faults_are_listed_and_switched_off_one_by_one(client: Client) -> None:
    sandbox = client.sandbox
    first = sandbox.add_fault("balance", "html", count=3, prompt_contains="x")
    second = sandbox.add_fault("balance", "status", status=500)
    client.get("/prod/v2/balance")
    rules = sandbox.control("faults")["faults"]
    assert [(rule["id"], rule["fault"], rule["hits"]) for rule in rules] == [
        (first, "html", 0),
        (second, "status", 1),
    ]
    assert rules[1]["params"] == {"status": 500}
    sandbox.control(f"faults/{second}", method="DELETE")
    assert client.get("/prod/v2/balance").status_code == 200
    sandbox.clear_faults()
    assert sandbox.control("faults")["faults"] == []


def test_all_kinds_of_faults_are_explained(client: Client) -> None:
    kinds = client.sandbox.control("fault-kinds")["kinds"]
    assert {"reset_after", "drop_at", "stuck_queue", "lost_ack"} <= {kind["fault"] for kind in kinds}
    assert all(kind["about"] for kind in kinds)


def test_one_book_of_faults_serves_the_bucket_too(client: Client) -> None:
    sandbox = client.sandbox
    sandbox.bucket_control("buckets", {"name": "b"})
    sandbox.add_fault("bucket.*", "status", status=503, count=1)
    codes = [requests.get(f"{sandbox.bucket_url}/storage/v1/b/b/o", timeout=10).status_code for _ in range(2)]
    assert codes == [503, 200]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("faults", {"call": "status", "fault": "boom"}, "unknown fault"),
        ("faults", {"call": "status"}, "needs 'fault'"),
        ("faults", [], "JSON object"),
        ("tokens", {"revoke": "nobody's"}, "not known"),
        ("account", {"concurrency": 0}, "1 or more"),
        ("account", {"requests_per_second": -1}, "more than 0"),
        ("speed", {"speed": 0}, "more than 0"),
        ("speed", [1], "JSON object"),
        ("price", {}, "'price_usd' is missing"),
    ],
)
def test_a_control_that_cannot_be_done_says_why(sandbox: Sandbox, path: str, body: Any, says: str) -> None:
    with pytest.raises(ControlError, match=f"HTTP 400: .*{says}"):
        sandbox.control(path, body)


def test_a_request_can_be_forced_into_any_state(client: Client) -> None:
    ids = {state: client.buy() for state in ("succeeded", "failed", "cancelled", "stuck", "vanished")}
    for state, request_id in ids.items():
        client.finish(request_id, state)
    assert client.result(ids["succeeded"]).json()["status"] == "succeeded"
    assert client.result(ids["failed"]).json()["status"] == "failed"
    assert client.result(ids["cancelled"]).json()["status"] == "cancelled"
    assert client.word(ids["stuck"]) in {"in_queue", "in_progress"}
    assert client.status(ids["vanished"]).status_code == 404
    for request_id, state in ((ids["failed"], "succeeded"), ("unknown", "failed"), (ids["stuck"], "odd")):
        with pytest.raises(ControlError):
            client.finish(request_id, state)
    assert client.sandbox.control(f"requests/{ids['failed']}")["state"] == "failed"


def test_accounts_can_be_seen_and_changed(client: Client) -> None:
    changed = client.sandbox.control("account", {"balance_usd": 3, "concurrency": 1, "requests_per_second": 99})
    assert changed == {
        "account": "default",
        "balance_usd": 3.0,
        "reserved_usd": 0.0,
        "concurrency": 1,
        "requests_per_second": 99.0,
        "submits_per_second": None,
        "active": True,
    }
    client.buy()
    assert client.sandbox.control("account")["accounts"][0]["reserved_usd"] == 0.2


def test_the_price_can_change(client: Client) -> None:
    client.sandbox.control("price", {"price_usd": 1.5})
    client.done()
    assert client.get(f"/v1/models/{MODEL}").json()["base_price_usd"] == 1.5
    assert client.sandbox.ledger()["charged_usd"] == 1.5


@pytest.mark.parametrize(
    ("inputs", "usd"),
    [
        ({}, 0.25),
        ({"resolution": "1080P"}, 0.5),
        ({"resolution": "480p"}, 0.15),
        ({"resolution": "4k", "duration": 10}, 2.4),
        ({"duration": "auto"}, 0.25),
        ({"duration": "10"}, 0.5),
        ({"duration": 10, "generate_audio": True}, 0.665),
        ({"generate_audio": False}, 0.25),
    ],
)
def test_prices_by_inputs_differ_from_the_base_on_the_page(inputs: dict[str, Any], usd: float) -> None:
    model = "sandbox/price/720p"
    settings = {"price_usd": 0.1, "price_by_inputs": True, "models": (model,)}
    with Sandbox(**settings, video_bytes=50_000, check_images=False) as sandbox:
        client = Client(sandbox)
        page = client.get(f"/v1/models/{model}").json()
        request_id = client.submit(model, **inputs).json()["request_id"]
        client.finish(request_id)
        assert client.result(request_id, include_cost="true").json()["cost"] == usd
        assert sandbox.ledger()["charged_usd"] == usd
    assert (page["base_price_usd"], "base" in page["pricing_note"]) == (0.1, True)


def test_prices_by_inputs_take_the_schema_s_defaults(client: Client) -> None:
    client.sandbox.control("price", {"price_usd": 0.1, "by_inputs": True})
    for inputs in ({}, {"resolution": "480P"}, {"resolution": "1080P"}):
        client.done(**inputs)
    assert [row["charged_usd"] for row in client.sandbox.ledger()["purchases"]] == [0.15, 0.15, 0.5]


def test_every_clip_can_be_charged_otherwise_than_the_page_says(client: Client) -> None:
    shown = client.sandbox.control("price", {"price_usd": 0.1, "charged_usd": 0.5})
    assert shown == {"price_usd": 0.1, "by_inputs": None, "charged_usd": 0.5}
    client.done()
    assert client.get(f"/v1/models/{MODEL}").json()["base_price_usd"] == 0.1
    assert client.sandbox.ledger()["charged_usd"] == 0.5
    assert client.sandbox.control("price", {"charged_usd": None})["charged_usd"] is None


@pytest.mark.parametrize("changes", [{"price_usd": -1}, {"charged_usd": "dear"}, {"by_inputs": "yes"}])
def test_an_unusable_price_is_refused(client: Client, changes: dict[str, Any]) -> None:
    with pytest.raises(ControlError, match="HTTP 400"):
        client.sandbox.control("price", changes)


def test_many_at_once_are_each_bought_once_and_run_in_order(client: Client) -> None:
    client.sandbox.control("account", {"balance_usd": 10})  # enough for fifty
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: client.submit(prompt=str(number)), range(60)))
    assert sorted(answer.status_code for answer in answers) == [200] * 50 + [400] * 10
    purchases = client.sandbox.ledger()["purchases"]
    assert len({one["request_id"] for one in purchases}) == 50
    assert [one["state"] for one in purchases] == ["running"] * 2 + ["queued"] * 48
    positions = [client.status(one["request_id"]).json()["queue_position"] for one in purchases[2:]]
    assert positions == list(range(48))
