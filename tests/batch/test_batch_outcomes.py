# SPDX-License-Identifier: Apache-2.0
"""When a batch fails, and its progress figures."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_wan.batch.results import ImageResult, MaxFailures, Outcome, Progress


@pytest.mark.parametrize(
    ("given", "failures", "total", "allowed"),
    [
        (0, 0, 10, True),
        (0, 1, 10, False),
        (3, 3, 10, True),
        (3, 4, 10, False),
        ("3", 4, 10, False),
        (0.1, 1, 10, True),
        (0.1, 2, 10, False),
        ("10%", 1, 10, True),
        ("10%", 2, 10, False),
        (1.0, 10, 10, True),
        ("0.5", 6, 10, False),
        (0.1, 0, 0, True),
    ],
)
def test_max_failures_is_a_count_or_a_share(given: Any, failures: int, total: int, allowed: bool) -> None:
    assert MaxFailures.of(given).allows(failures, total) is allowed


@pytest.mark.parametrize("given", [-1, 1.5, "150%", "many", "", -0.1])
def test_an_invalid_max_failures_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"max_failures|invalid literal|could not convert"):
        MaxFailures.of(given)


def test_a_result_survives_a_checkpoint() -> None:
    result = ImageResult("gs://b/ü.jpg", Outcome.FAILED, "f", "r", cost_usd=0.2, error="no", row="set.csv, line 3")
    assert ImageResult.from_dict(result.as_dict()) == result
    assert "\n" not in result.to_json()


def progress(**changes: Any) -> Progress:
    given: dict[str, Any] = {
        "total": 1000,
        "done": 412,
        "before": 31,
        "failed": 5,
        "running": 62,
        "queued": 38,
        "ready": 0,
        "to_submit": 483,
        "cost_usd": 82.4,
        "cost_is_exact": True,
        "elapsed_s": 950.0,
    }
    return Progress(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {},
            "412 of 1,000 done (31 were there); 5 failed; 62 running, 38 queued, 483 to submit; 24.1 videos/min; "
            "82.40 USD; about 24 min left",
        ),
        (
            {"bad": 3, "rejected": 4, "further_takes": 9, "usable": 374},
            "412 of 1,000 done (31 were there); 5 failed; 3 bad; 4 rejected; 9 rejected before and bought "
            "again; 62 running, 38 queued, 483 to submit; 24.1 videos/min; 82.40 USD, 0.220 USD for each usable "
            "video; about 24 min left",
        ),
        (
            {"done": 0, "before": 0, "failed": 0, "elapsed_s": 0.0, "cost_is_exact": False, "ready": 2},
            "0 of 1,000 done; 62 running, 38 queued, 483 to submit; 2 to land; 0.0 videos/min; about 82.40 USD",
        ),
        (
            {"done": 1000, "running": 0, "queued": 0, "to_submit": 0, "failed": 0, "before": 0},
            "1,000 of 1,000 done; 0 running, 0 queued, 0 to submit; 63.2 videos/min; 82.40 USD",
        ),
    ],
)
def test_a_line_of_progress_has_the_figures(changes: dict[str, Any], line: str) -> None:
    assert progress(**changes).line() == line


def test_figures_are_plain_json() -> None:
    figures = progress().as_dict()
    assert figures["videos_a_minute"] == 24.06
    assert figures["left_s"] == pytest.approx(1454, abs=1)
