# SPDX-License-Identifier: Apache-2.0
"""The state of each image of a batch: to submit, in flight, finished, or with a result. One thread owns all of it.

Nothing here has to survive a crash: a request is in the journal before it is added here, and a video is in the
bucket. State that is in neither goes into the :class:`~airflow_provider_wan.batch.checkpoint.Checkpoint`.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import chain
from logging import Logger
from typing import Any

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.checkpoint import Checkpoint, RetryState, pause_after_s
from airflow_provider_wan.batch.metrics import BatchMetrics
from airflow_provider_wan.batch.plan import Item, Plan
from airflow_provider_wan.batch.prices import PriceBook
from airflow_provider_wan.batch.results import Outcome, Progress
from airflow_provider_wan.durable.journal import RecordSummary
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import WanBudgetError, WanError
from airflow_provider_wan.polling.poller import RequestPoller


class BatchState:
    """The state of each image, by fingerprint.

    :param poller: gets every request in flight.
    :param checkpoint: of an earlier process of this try; it is kept up to date.
    :param owner: the name of this task instance in records.
    :param started: when requests in flight began to run, as far as known.
    :param prices: what each request costs.
    :param rebuy_rejected: how many further takes follow a rejected one, at most.
    :param metrics: counts the events.
    """

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        poller: RequestPoller,
        log: Logger,
        *,
        checkpoint: Checkpoint,
        owner: str,
        started: Mapping[str, float],
        prices: PriceBook,
        rebuy_rejected: int = 0,
        metrics: BatchMetrics,
    ) -> None:
        self.plan = plan
        self.prices = prices
        self.budget = budget
        self.poller = poller
        self.metrics = metrics
        self.failures = checkpoint.failures
        self.inherited = checkpoint.inherited
        self.retries = checkpoint.retries
        self.unwritten = checkpoint.unwritten
        self.results = {name: result for name, result in checkpoint.results.items() if name in plan.items}
        #: Why nothing more is bought, so that the batch ends early.
        self.halted: WanError | None = None
        #: A limit that one image would exceed; others may still be within it.
        self.over_budget: WanBudgetError | None = None
        self.to_submit: deque[Item] = deque()
        #: Items that wait until the price of their combination is learned, by combination.
        self.waiting_for_price: dict[str, deque[Item]] = {}
        self.submitting: set[str] = set()
        #: Fingerprints by request id: requests in flight, and finished ones until they have a result.
        self.in_flight: dict[str, str] = {}
        self.finished: dict[str, str] = {}
        self.to_land: deque[str] = deque()
        self.landing: set[str] = set()
        #: When finished requests began to run, where known.
        self.running_since: dict[str, float] = {}
        #: The item that has each request, of all requests that this batch knows.
        self._holders: dict[str, Item] = {}
        self._later: list[tuple[float, str]] = []
        self._checkpoint = checkpoint
        self._owner = owner
        self._rebuy_rejected = rebuy_rejected
        self._log = log
        self._sort(started)
        self._restore_retries()
        if checkpoint.done_before is None:
            checkpoint.done_before = sum(result.outcome.is_there for result in self.results.values())
            self.metrics.on_start(adopted=len(self.in_flight), reused=checkpoint.done_before, refused=len(plan.refused))

    # -- at the beginning ----------------------------------------------------------------------------------

    def _sort(self, started: Mapping[str, float]) -> None:
        """Sort the images by their state in the journal and the checkpoint."""
        takes = {take.fingerprint: take for item in self.plan.items.values() for take in item.takes}
        for summary in chain(self.plan.known.values(), self.plan.former.values()):
            self._count_mine(summary, takes.get(summary.fingerprint))
        in_flight: list[tuple[str, str, str]] = []
        claimed: list[Item] = []
        for fingerprint, item in self.plan.items.items():
            known = self.plan.known.get(fingerprint)
            if known is None:
                if fingerprint not in self.results:
                    self.to_submit.append(item)
            elif known.request_id and (other := self.other_holder_of(known.request_id, fingerprint)):
                self.end_as_shared(fingerprint, known.request_id, other)
            elif fingerprint in self.results:
                continue
            elif fingerprint in self.plan.there:
                outcome = Outcome.LANDED if self._is_mine(known) else Outcome.REUSED
                self.results[fingerprint] = item.result_of(outcome, known)
            elif known.stage is Stage.LANDED and known.request_id:
                self.land(known.request_id, fingerprint)
            elif (
                (self._is_mine(known) or fingerprint in self.inherited)
                and known.request_id
                and known.stage in (Stage.SUBMITTED, Stage.SUCCEEDED)
            ):
                in_flight.append((known.submitted_at or "", known.request_id, fingerprint))
            elif known.stage is Stage.INTENT:
                claimed.append(item)  # perhaps by a killed task: it takes minutes to be sure, so it comes last
            else:
                self.to_submit.appendleft(item)  # perhaps paid for: it comes first
        self.to_submit.extend(claimed)
        for submitted_at, request_id, fingerprint in sorted(in_flight):
            if self._checkpoint.done_before is None:
                self.inherited.add(fingerprint)
            at = unix(submitted_at) or self._checkpoint.started_at
            self.mark_submitted(request_id, fingerprint, at, started_at=started.get(request_id))

    def _count_mine(self, known: RecordSummary, item: Item | None) -> None:
        """Count this task instance's purchases for an image, whatever their outcome and whoever bought it later."""
        purchases = known.bought_by(self._owner)
        if purchases:
            cost_usd = known.cost_usd if self._is_mine(known) else None
            key = self.prices.key_of(item.inputs if item else {})
            self.budget.bought_before(
                known.fingerprint,
                purchases=purchases,
                cost_usd=cost_usd,
                price_usd=self.prices.usd_of(key),
            )

    def _restore_retries(self) -> None:
        """Keep requests of this try that have no record in flight, and failed images that wait for their retry."""
        items, self.to_submit = self.to_submit, deque()
        for item in items:
            fingerprint = item.fingerprint
            if fingerprint in self.unwritten:
                self.mark_submitted(self.unwritten[fingerprint], fingerprint, time.time())
            elif fingerprint in self.retries.images:
                self.retry_at(fingerprint, self.retries.images[fingerprint].at)
            else:
                self.to_submit.append(item)

    def _is_mine(self, known: RecordSummary) -> bool:
        return known.buyer == self._owner

    # -- transitions ---------------------------------------------------------------------------------------

    def retry_at(self, fingerprint: str, at: float) -> None:
        """Submit an image, but not before this moment."""
        heapq.heappush(self._later, (at, fingerprint))

    def next_retry_at(self) -> float | None:
        """Return when the first of those images is due."""
        return self._later[0][0] if self._later else None

    def take_due_retries(self, now: float) -> None:
        """Queue the images that are due."""
        while self._later and self._later[0][0] <= now:
            self.to_submit.append(self.plan.items[heapq.heappop(self._later)[1]])

    def mark_submitted(
        self, request_id: str, fingerprint: str, submitted_at: float, *, started_at: float | None = None
    ) -> None:
        """Record that a request is in flight."""
        self.in_flight[request_id] = fingerprint
        late = self.retries.results.get(request_id)
        if late is None:
            self.poller.add(request_id, submitted_at, started_at=started_at)
        else:
            self.poller.add_apart(request_id, late.since, poll_at=late.at)

    def mark_not_finished(self, request_id: str, now: float, *, asked_s: float = 0.0) -> None:
        """Record that a request that seemed finished has not finished, or that its state is not known.

        :param asked_s: how long the server asked to wait, in seconds.
        """
        self.in_flight[request_id] = self.finished.pop(request_id)
        before = self.retries.results.get(request_id, RetryState())
        late = before.later(now, max(pause_after_s(before.times + 1), asked_s))
        self.retries.results[request_id] = late
        self.poller.add_apart(request_id, now, poll_at=late.at)

    def other_holder_of(self, request_id: str, fingerprint: str) -> Item | None:
        """Return another item of this batch that has this request; one request is one video."""
        holder = self._holders.setdefault(request_id, self.plan.items[fingerprint])
        return None if holder.fingerprint == fingerprint else holder

    def end_as_shared(self, fingerprint: str, request_id: str, other: Item) -> None:
        """End an image whose request belongs to another image of this batch; nothing was bought for it."""
        error = (
            f"Its record names request {request_id}, which belongs to {other.source.shown} (fingerprint "
            f"{other.fingerprint}): one of the two was settled with the wrong id. Nothing is bought and nothing lands "
            f"for this one; correct or delete the journal record {fingerprint}.json."
        )
        self._log.error("%s: %s", self.plan.items[fingerprint].source.shown, error)
        self.end(fingerprint, Outcome.UNKNOWN, error=error)

    def poll_at(self) -> dict[str, float]:
        """Return when to poll again the requests that had finished by their status and had no result."""
        late = self.retries.results
        return {request_id: late[request_id].at for request_id in self.in_flight if request_id in late}

    def forget_finished(self, request_id: str) -> None:
        """Record that nothing more has to be done about a finished request."""
        self.finished.pop(request_id)
        self.retries.results.pop(request_id, None)

    def mark_finished(self, request_ids: Iterable[str]) -> None:
        """Record that requests have finished."""
        for request_id in request_ids:
            if request_id in self.in_flight:
                if (since := self.poller.started_at(request_id)) is not None:
                    self.running_since[request_id] = since
                self.poller.forget(request_id)
                self.finished[request_id] = self.in_flight.pop(request_id)
                self.to_land.append(request_id)

    def land(self, request_id: str, fingerprint: str) -> None:
        """Queue the landing of a finished request."""
        self.finished[request_id] = fingerprint
        self.to_land.append(request_id)

    def mark_missing(self, request_ids: Iterable[str]) -> None:
        """Queue images whose request the API does not know any more: the decision table decides the next step."""
        for request_id in request_ids:
            fingerprint = self.in_flight.pop(request_id, None)
            if fingerprint is not None:
                self.poller.forget(request_id)
                self.unwritten.pop(fingerprint, None)
                self.failures[fingerprint] += 1
                self.to_submit.append(self.plan.items[fingerprint])

    def end(self, fingerprint: str, outcome: Outcome, **more: Any) -> None:
        """Record the result of an image."""
        self.results[fingerprint] = self.plan.items[fingerprint].result(outcome, **more)

    def mark_landed(self, fingerprint: str, outcome: Outcome, record: Record) -> None:
        """Record that the videos of a request are in the bucket, and its id in the journal."""
        self.unwritten.pop(fingerprint, None)
        self.end(
            fingerprint,
            Outcome.REJECTED if record.is_rejected else outcome,
            verdict=record.verdict,
            reasons=record.reasons or None,
            error=record.defects,
            request_id=record.request_id,
            uri=record.videos[0].uri if record.videos else None,
            size_bytes=sum(video.size_bytes for video in record.videos),
            cost_usd=record.cost_usd,
            created_at=record.created_at or record.submitted_at,
            finished_at=record.finished_at,
        )
        if record.is_rejected:
            self._buy_again(fingerprint)

    def _buy_again(self, fingerprint: str) -> None:
        """Queue another take of a video that was rejected, if one is left."""
        item = self.plan.items[fingerprint]
        number = len(item.takes)
        if number > self._rebuy_rejected:
            return
        rejection = self.results.pop(fingerprint)
        key = self.prices.key_of(item.inputs)
        if self.prices.must_learn(key):  # its cost appears late
            self.retries.prices.setdefault(key, RetryState(at=time.time()))
        take = item.next_take(rejection, self.prices.model)
        self.plan.replace({fingerprint: take})
        self.to_submit.append(take)
        self._log.warning(
            "%s: the video of request %s is rejected (%s). Take %d of at most %d follows.",
            item.source.shown,
            rejection.request_id,
            rejection.error,
            number + 1,
            self._rebuy_rejected + 1,
        )

    def keep_rejected(self, item: Item, why: str) -> None:
        """End an image with its rejected take, because no other one may be bought."""
        assert item.before is not None
        assert item.rejection is not None
        self.plan.replace({item.fingerprint: item.before})
        error = f"{item.rejection.error}; it was not bought again: {why}"
        self.results[item.before.fingerprint] = replace(item.rejection, error=error)
        self._log.warning("%s stays rejected, and is not bought again: %s", item.source.shown, why)

    def refuse(self, fingerprint: str, error: WanError) -> None:
        """Record that an image breaks a rule; nothing was bought."""
        self.metrics.on_refused()
        self.end(fingerprint, Outcome.REFUSED, error=str(error))

    def halt(self, error: WanError, *, instead_of: WanError | None = None) -> None:
        """Stop buying; purchased requests are finished.

        :param instead_of: an earlier error that this one replaces.
        """
        if self.halted is instead_of:
            self.halted = error
            self._log.warning("Nothing more is submitted: %s What is paid for is finished.", error)

    # -- the state of all ----------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Return whether nothing is in flight and nothing is left to submit."""
        more = not self.halted and (self.to_submit or self._later or self.waiting_for_price)
        return not self.in_flight and not more

    def leave_in_flight(self, error: str) -> None:
        """End requests in flight as left: a rerun adopts them."""
        for request_id in list(self.in_flight):
            self.poller.forget(request_id)
            self.end(self.in_flight.pop(request_id), Outcome.LEFT, request_id=request_id, error=error)

    def leave_the_rest(self) -> None:
        """End everything without a result as left."""
        self.halted = self.halted or self.over_budget
        why = str(self.halted) if self.halted else "the task was ended early"
        for fingerprint in self.plan.items:
            if fingerprint not in self.results:
                self.end(fingerprint, Outcome.LEFT, error=why)

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """Return the lines of the status file; images with a result have the same line as in the manifest."""
        requests = {name: request_id for request_id, name in chain(self.in_flight.items(), self.finished.items())}
        for fingerprint, item in self.plan.items.items():
            result = self.results.get(fingerprint)
            if result is not None:
                yield result.as_dict()
                continue
            line: dict[str, Any] = {
                "image": item.source.shown,
                "outcome": "to_do",
                "fingerprint": fingerprint,
            }
            if item.before is not None:
                line["takes"] = item.result(Outcome.LEFT).takes
            if fingerprint in requests:
                line |= {"outcome": "in_flight", "request_id": requests[fingerprint]}
            yield line
        yield from (result.as_dict() for result in self.plan.refused)

    def progress(self) -> Progress:
        """Return the present figures."""
        outcomes = Counter(result.outcome for result in self.results.values())
        failed = sum(count for outcome, count in outcomes.items() if outcome.is_failure)
        queued = min(self.poller.queued, len(self.in_flight))
        return Progress(
            total=self.plan.total,
            done=outcomes[Outcome.LANDED] + outcomes[Outcome.REUSED],
            before=self._checkpoint.done_before or 0,
            failed=failed + len(self.plan.refused),
            running=len(self.in_flight) - queued,
            queued=queued,
            ready=len(self.to_land) + len(self.landing),
            to_submit=len(self.to_submit)
            + len(self._later)
            + len(self.submitting)
            + sum(map(len, self.waiting_for_price.values())),
            cost_usd=self.budget.spent_usd,
            cost_is_exact=not self.budget.unpriced,
            elapsed_s=time.time() - self._checkpoint.started_at,
            bad=sum(result.outcome.is_there and not result.is_usable for result in self.results.values()),
            rejected=outcomes[Outcome.REJECTED],
            further_takes=sum(len(item.takes) - 1 for item in self.plan.items.values()),
            usable=sum(result.outcome is Outcome.LANDED and result.is_usable for result in self.results.values()),
        )


def unix(text: str | None) -> float | None:
    """Return a time of a record in unix seconds; None if it is not set."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
