# SPDX-License-Identifier: Apache-2.0
"""The state at RunComfy of requests in progress, polled for a bounded time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_wan.gallery.run_data import RequestStates

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

MODEL = "wan-ai/wan-2-2/image-to-video"


def submit(count: int) -> list[tuple[str, str]]:
    from airflow_provider_wan.hooks.wan import WanHook

    hook = WanHook()
    inputs = {"prompt": "a wave", "img_url": "https://images.example.com/a.jpg"}
    return [("wan_default", hook.submit(MODEL, {**inputs, "seed": number}).request_id) for number in range(count)]


def test_running_and_queued_requests_are_shown_with_their_position(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    requests = submit(3)
    texts = RequestStates().texts(requests)
    assert texts[requests[0][1]] == "running"
    assert {texts[request_id] for _, request_id in requests[1:]} == {
        "queued, position 0",
        "queued, position 1",
    }


def test_request_without_time_to_poll_keeps_its_text_and_comes_first_later(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    requests, states = submit(3), RequestStates(poll_for_s=0.0)
    assert states.texts(requests) == {}
    assert RequestStates().texts(requests).keys() == {request_id for _, request_id in requests}


def test_request_is_polled_once_for_all_viewers(sandbox: Sandbox) -> None:
    requests, states = submit(1), RequestStates()
    states.texts(requests)
    before = sandbox.ledger()["calls"]
    states.texts(requests)
    assert sandbox.ledger()["calls"] == before


def test_failing_api_leaves_the_page_as_it_is(sandbox: Sandbox) -> None:
    requests = submit(1)
    sandbox.add_fault("status", "status", status=503)
    assert RequestStates().texts([*requests, ("no_such_connection", "another")]) == {}


def test_connection_that_cannot_poll_hides_nothing_from_another(sandbox: Sandbox) -> None:
    ((conn_id, request_id),) = submit(1)
    states = RequestStates()
    assert states.texts([("no_such_connection", request_id)]) == {}
    assert states.texts([(conn_id, request_id)]).keys() == {request_id}
