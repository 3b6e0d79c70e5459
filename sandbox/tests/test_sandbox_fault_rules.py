# SPDX-License-Identifier: Apache-2.0
"""Which calls a rule hits, and how the command line parses rules."""

from __future__ import annotations

from typing import Any

import pytest

from wan_sandbox.control.faults import FaultBook, FaultError, FaultKind, parse_rule


def book() -> FaultBook:
    faults = FaultBook()
    faults.register(
        [
            FaultKind("reset", "cut"),
            FaultKind("status", "an answer", frozenset({"status", "retry_after"})),
            FaultKind("no_id", "no id", calls=("submit",)),
        ]
    )
    return faults


@pytest.mark.parametrize(
    ("rule", "hits"),
    [
        ({}, [True, True, True, True]),
        ({"skip": 2}, [False, False, True, True]),
        ({"count": 1}, [True, False, False, False]),
        ({"skip": 1, "count": 2}, [False, True, True, False]),
        ({"rate": 0.0}, [False, False, False, False]),
    ],
)
def test_rule_hits_as_often_as_it_says(rule: dict[str, Any], hits: list[bool]) -> None:
    faults = book()
    faults.add("status", "reset", **rule)
    assert [faults.pick("status") is not None for _ in hits] == hits


def test_rate_is_a_share_of_calls_and_repeatable() -> None:
    def run() -> list[bool]:
        faults = book()
        faults.add("status", "reset", rate=0.3)
        return [faults.pick("status") is not None for _ in range(1000)]

    hits = run()
    assert 250 < sum(hits) < 350
    assert run() == hits


@pytest.mark.parametrize(
    ("call", "rule", "is_hit"),
    [
        ("status", "status", True),
        ("status", "result", False),
        ("bucket.get", "bucket.*", True),
        ("bucket.get", "*", True),
        ("submit", "bucket.*", False),
    ],
)
def test_rules_match_calls_by_name_or_glob(call: str, rule: str, is_hit: bool) -> None:
    faults = book()
    faults.add(rule, "reset")
    assert (faults.pick(call) is not None) is is_hit


def test_rule_can_match_one_request_or_one_text() -> None:
    faults = book()
    faults.add("status", "reset", request_id="a")
    faults.add("status", "status", params={"prompt_contains": "cat"})
    assert faults.pick("status", "b") is None
    assert faults.pick("status", "a").fault == "reset"  # type: ignore[union-attr]
    assert faults.pick("status", "b", {"prompt": "a dog"}) is None
    assert faults.pick("status", "b", {"prompt": "a cat"}).fault == "status"  # type: ignore[union-attr]


def test_first_rule_that_fires_wins_until_it_is_used_up() -> None:
    faults = book()
    faults.add("*", "reset", count=1)
    faults.add("status", "status")
    assert [faults.pick("status").fault for _ in range(2)] == ["reset", "status"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("status:reset", {"call": "status", "fault": "reset"}),
        (
            "*:status:status=429,retry_after=Wed, 21 Oct 2026 07:28:00 GMT,rate=0.5",
            {
                "call": "*",
                "fault": "status",
                "status": 429,
                "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT",
                "rate": 0.5,
            },
        ),
        (
            "media:redirect:location=http://10.0.0.1/a,clean=true",
            {"call": "media", "fault": "redirect", "location": "http://10.0.0.1/a", "clean": True},
        ),
    ],
)
def test_command_line_rules_are_parsed(text: str, rule: dict[str, Any]) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("status", "written call:fault"),
        ("status:reset:often", "no key=value"),
        ("status:explode", "unknown fault 'explode'"),
        ("status:status:retry-after=1,state=2", "no key"),
        ("status:status:state=2", "no parameter 'state'"),
        ("status:no_id", "no fault of 'status'"),
        ("status:reset:rate=2", "between 0 and 1"),
        ("status:reset:count=0", "count 1 or more"),
        ("status:reset:count=many", "must be numbers"),
    ],
)
def test_impossible_rule_is_refused_with_a_reason(text: str, says: str) -> None:
    faults = book()
    with pytest.raises(FaultError) as error:
        faults.add_json(parse_rule(text))
    assert says in str(error.value) or "no parameter" in str(error.value)


def test_rule_for_all_calls_skips_calls_its_fault_does_not_apply_to() -> None:
    faults = book()
    rule = faults.add("*", "no_id", count=1)
    assert faults.pick("status") is None
    assert faults.pick("submit") is rule
