# SPDX-License-Identifier: Apache-2.0
"""What the page says about requests in progress: what RunComfy says, asked for a bounded time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_wan.gallery import live
from airflow_provider_wan.gallery.live import Questions

if TYPE_CHECKING:
    from wan_sandbox.server import Sandbox

MODEL = "wan-ai/wan-2-2/image-to-video"


def submit(count: int) -> list[tuple[str, str]]:
    from airflow_provider_wan.hooks.wan import WanHook

    hook = WanHook()
    inputs = {"prompt": "a wave", "img_url": "https://images.example.com/a.jpg"}
    return [
        (hook.submit(MODEL, {**inputs, "seed": number}).request_id, "wan_default") for number in range(count)
    ]


def test_requests_are_told_as_they_stand(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    wanted = submit(3)
    words = Questions().words(wanted)
    assert words[wanted[0][0]] == "running"
    assert {words[one] for one, _ in wanted[1:]} == {"queued, position 0", "queued, position 1"}


def test_who_had_no_turn_is_asked_the_next_time(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    wanted, questions = submit(5), Questions()
    first = questions.words(wanted[:2])
    monkeypatch.setattr(live, "_ASK_FOR_S", 0.0)
    assert questions.words(wanted) == first
    monkeypatch.undo()
    for name, value in sandbox.env().items():
        monkeypatch.setenv(name, value)
    assert questions.words(wanted).keys() == {request_id for request_id, _ in wanted}


def test_an_answer_is_good_for_a_while(sandbox: Sandbox) -> None:
    wanted, questions = submit(1), Questions()
    questions.words(wanted)
    before = sandbox.ledger()["calls"]
    questions.words(wanted)
    assert sandbox.ledger()["calls"] == before


def test_an_api_that_does_not_answer_leaves_the_page_as_it_is(sandbox: Sandbox) -> None:
    wanted = submit(1)
    sandbox.add_fault("status", "status", status=503)
    assert Questions().words([*wanted, ("another", "no_such_connection")]) == {}
