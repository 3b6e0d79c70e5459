# SPDX-License-Identifier: Apache-2.0
"""How a batch ended: the sums for the XCom, and what its task fails with, if it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from airflow_provider_wan.batch.progress import Progress
from airflow_provider_wan.batch.results import ImageResult, MaxFailures, Outcome, count_outcomes
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.exceptions import WanBatchError, WanError

#: So many are named in a message or in the log; all are in the manifest.
SHOWN_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """How a batch ended.

    :param summary: small, for the XCom.
    :param error: what to raise, if anything.
    """

    summary: dict[str, Any]
    error: WanError | None = None


def all_endings(standing: BatchState) -> Iterator[ImageResult]:
    """Give how each image has ended, those that nothing could be made of last."""
    return chain((standing.endings[one] for one in standing.plan.items), standing.plan.refused)


def summary_of(standing: BatchState, progress: Progress) -> dict[str, Any]:
    """Give the sums.

    :param progress: of the end.
    """
    budget = standing.budget
    return {
        "total": standing.plan.total,
        **count_outcomes(_outcomes(standing)),
        "bought": budget.bought,
        "cost_usd": round(budget.spent_usd, 6),
        "cost_is_exact": not budget.unpriced,
        "size_bytes": sum(ending.size_bytes or 0 for ending in standing.endings.values()),
        "duration_s": round(progress.elapsed_s, 1),
        "videos_a_minute": round(progress.videos_a_minute, 2),
    }


def error_of(standing: BatchState, max_failures: MaxFailures, manifest: str) -> WanError | None:
    """Give what the task fails with: what has halted it, or too many failures; None where it has succeeded.

    :param manifest: its address, for the message.
    """
    outcomes, total = _outcomes(standing), standing.plan.total
    left = outcomes[Outcome.LEFT]
    if left:
        halted = standing.halted or WanBatchError(
            "The task was ended early; a rerun goes on.", retry_helps=True
        )
        message = f"{left} of {total} images are not done. {halted} Manifest: {manifest}"
        halted.args = (message, *halted.args[1:])
        return halted
    failures = sum(count for outcome, count in outcomes.items() if outcome.is_failure)
    if max_failures.allows(failures, total):
        return None
    bad = [ending for ending in all_endings(standing) if ending.outcome.is_failure]
    first = "; ".join(f"{ending.image}: {ending.error}" for ending in bad[:SHOWN_ERRORS])
    more = f" and {len(bad) - SHOWN_ERRORS} more" if len(bad) > SHOWN_ERRORS else ""
    return WanBatchError(
        f"{failures} of {total} images have no video, more than max_failures allows; all others were finished. "
        f"{first}{more}. Manifest: {manifest}",
        retry_helps=any(ending.outcome not in (Outcome.REFUSED, Outcome.UNKNOWN) for ending in bad),
    )


def _outcomes(standing: BatchState) -> Counter[Outcome]:
    return Counter(ending.outcome for ending in all_endings(standing))
