# SPDX-License-Identifier: Apache-2.0
"""The report of a batch at its end: the summary, and the error of the task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from airflow_provider_wan.batch.results import ImageResult, MaxFailures, Outcome, Progress, count_outcomes
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.exceptions import WanBatchError, WanError, WanStorageError

#: How many errors a message or the log names; the manifest has all of them.
SHOWN_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """How a batch ended.

    :param summary: small figures for the XCom.
    :param error: the error that the task must raise, if any.
    """

    summary: dict[str, Any]
    error: WanError | None = None


def all_results(state: BatchState) -> Iterator[ImageResult]:
    """Return the result of each image, in the order of the dataset; unusable rows come last."""
    return chain((state.results[fingerprint] for fingerprint in state.plan.items), state.plan.refused)


def summary_of(state: BatchState, progress: Progress) -> dict[str, Any]:
    """Return the summary.

    :param progress: the figures at the end.
    """
    budget = state.budget
    return {
        "total": state.plan.total,
        **count_outcomes(_outcomes(state)),
        "bought": budget.bought,
        "cost_usd": round(budget.spent_usd, 6),
        "cost_is_exact": not budget.unpriced,
        "cost_unknown": budget.unpriced,
        "bad": progress.bad,
        "further_takes": progress.further_takes,
        "usable": sum(result.is_usable for result in state.results.values()),
        "cost_per_usable_usd": progress.usable_usd,
        "size_bytes": sum(result.size_bytes or 0 for result in state.results.values()),
        "duration_s": round(progress.elapsed_s, 1),
        "videos_a_minute": round(progress.videos_a_minute, 2),
    }


def error_of(
    state: BatchState,
    max_failures: MaxFailures,
    manifest: str,
    *,
    resubmits: bool = False,
    rejected_fails: bool = False,
) -> WanError | None:
    """Return the error of the task: the reason for an early end, or too many failures; None if it succeeded.

    :param resubmits: whether a retry repeats submits whose answer was lost.
    :param rejected_fails: whether a rejected video counts as a failure.
    :param manifest: the manifest's address, for the message.
    """
    outcomes, total = _outcomes(state), state.plan.total
    left = outcomes[Outcome.LEFT]
    if state.unwritten:
        return _unwritten_error(state, left, manifest)
    if left:
        halted = state.halted or WanBatchError("The task was ended early; a rerun continues.", retry_helps=True)
        message = f"{left} of {total} images are not done. {halted} Manifest: {manifest}"
        halted.args = (message, *halted.args[1:])
        return halted
    failing = {each for each in Outcome if each.is_failure} | ({Outcome.REJECTED} if rejected_fails else set())
    failures = sum(outcomes[outcome] for outcome in failing)
    if max_failures.allows(failures, total):
        return None
    bad = [result for result in all_results(state) if result.outcome in failing]
    hopeless = {
        Outcome.REFUSED,
        Outcome.NO_OUTPUT,
        Outcome.REJECTED,
        *(() if resubmits else (Outcome.UNKNOWN,)),
    }
    first = "; ".join(f"{result.image}: {result.error}" for result in bad[:SHOWN_ERRORS])
    more = f" and {len(bad) - SHOWN_ERRORS} more" if len(bad) > SHOWN_ERRORS else ""
    return WanBatchError(
        f"{failures} of {total} images have no video{' that is good' if outcomes[Outcome.REJECTED] else ''}, more than "
        "max_failures allows; all others were finished. "
        f"{first}{more}. Manifest: {manifest}",
        retry_helps=any(result.outcome not in hopeless for result in bad),
    )


def _unwritten_error(state: BatchState, left: int, manifest: str) -> WanError:
    """Name every purchased request that is missing from the journal: nothing else in the bucket names it."""
    settle = dict(state.unwritten)
    return WanStorageError(
        f"{len(settle)} requests were bought and their ids could not be written to the journal; {left} of "
        f"{state.plan.total} images are not done. {state.halted or ''} The requests are not lost: when the journal can "
        f"be written, run the task with resolve={json.dumps(settle)}. Manifest: {manifest}"
    )


def _outcomes(state: BatchState) -> Counter[Outcome]:
    return Counter(result.outcome for result in all_results(state))
