# SPDX-License-Identifier: Apache-2.0
"""Where each image of a batch stands: to do, in flight, over, or ended. One thread owns it all.

Nothing that must survive is kept here: requests are in the journal before this file hears of them, and videos are in
the bucket.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from logging import Logger
from typing import Any

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.listener import BatchListener
from airflow_provider_wan.batch.plan import Item, Plan
from airflow_provider_wan.batch.progress import Progress
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.batch.values import Checkpoint, RetryState, pause_after_s
from airflow_provider_wan.durable.journal import RecordSummary
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import WanBudgetError, WanError
from airflow_provider_wan.polling.poller import RequestPoller


class BatchState:
    """Knows where each image stands; images are named by their fingerprints.

    :param watch: is told of every request in flight.
    :param memory: of this try, from an earlier process; goes on being written.
    :param watcher: how records name this task instance.
    :param started: of requests in flight, when they began to run, as far as it is known.
    :param witness: is told what happens.
    """

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        watch: RequestPoller,
        log: Logger,
        *,
        memory: Checkpoint,
        watcher: str,
        started: Mapping[str, float],
        listener: BatchListener | None = None,
    ) -> None:
        self.plan = plan
        self.budget = budget
        self.watch = watch
        self.listener = listener or BatchListener()
        self.failures = memory.failures
        self.inherited = memory.inherited
        self.troubles = memory.troubles
        self.unwritten = memory.unwritten
        self.endings = dict(memory.endings)
        #: Why nothing more is bought, and the batch ends early.
        self.halted: WanError | None = None
        #: A limit that one image has met; others may still be within it.
        self.over_budget: WanBudgetError | None = None
        self.to_submit: deque[Item] = deque()
        self.submitting: set[str] = set()
        #: Fingerprints by request id, from here on.
        self.in_flight: dict[str, str] = {}
        self.over: dict[str, str] = {}
        self.to_land: deque[str] = deque()
        self.landing: set[str] = set()
        #: Of what is over, when it is believed to have begun to run, where that is known.
        self.running_since: dict[str, float] = {}
        self._later: list[tuple[float, str]] = []
        self._memory = memory
        self._watcher = watcher
        self._log = log
        self._sort_out(started)
        self._go_on_as_before()
        if memory.done_before is None:
            memory.done_before = sum(ending.outcome.is_there for ending in self.endings.values())
            self.listener.began(
                adopted=len(self.in_flight), reused=memory.done_before, refused=len(plan.refused)
            )

    # -- at the beginning ----------------------------------------------------------------------------------

    def _sort_out(self, started: Mapping[str, float]) -> None:
        """Sort the images by what the journal and this try's past tell of them."""
        for known in chain(self.plan.known.values(), self.plan.former.values()):
            self._count_mine(known)
        flying: list[tuple[str, str, str]] = []
        claimed: list[Item] = []
        for one, item in self.plan.items.items():
            listed = self.plan.known.get(one)
            if listed is None:
                if one not in self.endings:
                    self.to_submit.append(item)
                continue
            if self.plan.is_done(one):
                self._has_landed(item, listed)
            elif one in self.endings:
                continue
            elif listed.stage is Stage.LANDED and listed.request_id:
                self.land(listed.request_id, one)
            elif (
                self._is_mine(listed)
                and listed.request_id
                and listed.stage in (Stage.SUBMITTED, Stage.SUCCEEDED)
            ):
                flying.append((listed.submitted_at or "", listed.request_id, one))
            elif listed.stage is Stage.INTENT:
                claimed.append(item)  # by one that was killed, perhaps: it takes minutes to be sure
            else:
                self.to_submit.appendleft(item)  # paid for, perhaps: that comes first
        self.to_submit.extend(claimed)
        for submitted_at, request_id, one in sorted(flying):
            if self._memory.done_before is None:
                self.inherited.add(one)
            at = unix(submitted_at) or self._memory.started_at
            self.mark_submitted(request_id, one, at, started_at=started.get(request_id))

    def _count_mine(self, listed: RecordSummary) -> None:
        """Count what this task instance has bought for an image, whatever became of it and whoever bought later."""
        purchases = listed.bought_by(self._watcher)
        if purchases:
            cost_usd = listed.cost_usd if self._is_mine(listed) else None
            self.budget.bought_before(listed.fingerprint, purchases=purchases, cost_usd=cost_usd)

    def _go_on_as_before(self) -> None:
        """Do not submit what this try has bought, though the journal does not name it, nor too early what failed."""
        sorted_out, self.to_submit = self.to_submit, deque()
        for item in sorted_out:
            one = item.fingerprint
            if one in self.unwritten:
                self.mark_submitted(self.unwritten[one], one, time.time())
            elif one in self.troubles.images:
                self.retry_at(one, self.troubles.images[one].at)
            else:
                self.to_submit.append(item)

    def _is_mine(self, listed: RecordSummary) -> bool:
        return listed.buyer == self._watcher

    def _has_landed(self, item: Item, listed: RecordSummary) -> None:
        outcome = Outcome.LANDED if self._is_mine(listed) else Outcome.REUSED
        self.end(
            item.fingerprint,
            outcome,
            request_id=listed.request_id,
            uri=listed.uri,
            size_bytes=listed.size_bytes,
            cost_usd=listed.cost_usd,
        )

    # -- from stage to stage -------------------------------------------------------------------------------

    def retry_at(self, one: str, at: float) -> None:
        """Submit an image, but not before a moment."""
        heapq.heappush(self._later, (at, one))

    def next_later_at(self) -> float | None:
        """Give the first such moment."""
        return self._later[0][0] if self._later else None

    def take_up_later(self, now: float) -> None:
        """Take up those whose moment has come."""
        while self._later and self._later[0][0] <= now:
            self.to_submit.append(self.plan.items[heapq.heappop(self._later)[1]])

    def mark_submitted(
        self, request_id: str, one: str, submitted_at: float, *, started_at: float | None = None
    ) -> None:
        """Take in that a request is in flight."""
        self.in_flight[request_id] = one
        late = self.troubles.results.get(request_id)
        if late is None:
            self.watch.add(request_id, submitted_at, started_at=started_at)
        else:
            self.watch.add_apart(request_id, late.since, look_at=late.at)

    def mark_not_finished(self, request_id: str, now: float) -> None:
        """Take in that a request that was taken for over is not, or that nobody can tell."""
        self.in_flight[request_id] = self.over.pop(request_id)
        before = self.troubles.results.get(request_id, RetryState())
        late = before.later(now, pause_after_s(before.times + 1))
        self.troubles.results[request_id] = late
        self.watch.add_apart(request_id, now, look_at=late.at)

    def look_at(self) -> dict[str, float]:
        """Tell of what is in flight, was over by its status and had no result, when it is looked at again."""
        late = self.troubles.results
        return {request_id: late[request_id].at for request_id in self.in_flight if request_id in late}

    def forget_over(self, request_id: str) -> None:
        """Take in that nothing more is to be done about a request that is over."""
        self.unwritten.pop(self.over.pop(request_id), None)
        self.troubles.results.pop(request_id, None)

    def mark_finished(self, request_ids: Iterable[str]) -> None:
        """Take in what was found to be over."""
        for request_id in request_ids:
            if request_id in self.in_flight:
                if (since := self.watch.started_at(request_id)) is not None:
                    self.running_since[request_id] = since
                self.watch.forget(request_id)
                self.over[request_id] = self.in_flight.pop(request_id)
                self.to_land.append(request_id)

    def land(self, request_id: str, one: str) -> None:
        """Take in that the videos of a request are wanted where they are not."""
        self.over[request_id] = one
        self.to_land.append(request_id)

    def mark_missing(self, request_ids: Iterable[str]) -> None:
        """Take in what the API does not know any more: the decision table says what follows."""
        for request_id in request_ids:
            one = self.in_flight.pop(request_id, None)
            if one is not None:
                self.watch.forget(request_id)
                self.unwritten.pop(one, None)
                self.failures[one] += 1
                self.to_submit.append(self.plan.items[one])

    def end(self, one: str, outcome: Outcome, **more: Any) -> None:
        """Take in how an image has ended."""
        self.endings[one] = self.plan.items[one].ending(outcome, **more)

    def mark_landed(self, one: str, outcome: Outcome, record: Record) -> None:
        """Take in that the videos of a request are in the bucket."""
        self.end(
            one,
            outcome,
            request_id=record.request_id,
            uri=record.videos[0].uri if record.videos else None,
            size_bytes=sum(video.size_bytes for video in record.videos),
            cost_usd=record.cost_usd,
        )

    def refuse(self, one: str, error: WanError) -> None:
        """Take in that an image breaks a rule; nothing was bought."""
        self.listener.refused()
        self.end(one, Outcome.REFUSED, error=str(error))

    def halt(self, error: WanError, *, instead_of: WanError | None = None) -> None:
        """Buy nothing more from now on; what is paid for is finished.

        :param instead_of: an earlier error that this one says better.
        """
        if self.halted is instead_of:
            self.halted = error
            self._log.warning("Nothing more is submitted: %s What is paid for is finished.", error)

    # -- where all of them stand ---------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether nothing is in flight and nothing will be."""
        more = not self.halted and (self.to_submit or self._later)
        return not self.in_flight and not more

    def leave_in_flight(self, error: str) -> None:
        """Write down what is in flight as left: a rerun takes it over."""
        for request_id in list(self.in_flight):
            self.watch.forget(request_id)
            self.end(self.in_flight.pop(request_id), Outcome.LEFT, request_id=request_id, error=error)

    def leave_the_rest(self) -> None:
        """Write down what has no end as left."""
        self.halted = self.halted or self.over_budget
        why = str(self.halted) if self.halted else "the task was ended early"
        for one in self.plan.items:
            if one not in self.endings:
                self.end(one, Outcome.LEFT, error=why)

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """Say where each image stands now, in the order of a manifest, which has such lines for those that are over."""
        requests = {one: request_id for request_id, one in chain(self.in_flight.items(), self.over.items())}
        for one, item in self.plan.items.items():
            ending = self.endings.get(one)
            if ending is not None:
                yield ending.as_dict()
                continue
            line = {"image": item.source.shown, "outcome": "to_do", "fingerprint": one}
            yield line | ({"outcome": "in_flight", "request_id": requests[one]} if one in requests else {})
        yield from (ending.as_dict() for ending in self.plan.refused)

    def progress(self) -> Progress:
        """Give the figures of now."""
        outcomes = Counter(ending.outcome for ending in self.endings.values())
        failed = sum(count for outcome, count in outcomes.items() if outcome.is_failure)
        queued = min(self.watch.queued, len(self.in_flight))
        return Progress(
            total=self.plan.total,
            done=outcomes[Outcome.LANDED] + outcomes[Outcome.REUSED],
            before=self._memory.done_before or 0,
            failed=failed + len(self.plan.refused),
            running=len(self.in_flight) - queued,
            queued=queued,
            ready=len(self.to_land) + len(self.landing),
            to_submit=len(self.to_submit) + len(self._later) + len(self.submitting),
            cost_usd=self.budget.spent_usd,
            cost_is_exact=not self.budget.unpriced,
            elapsed_s=time.time() - self._memory.started_at,
        )


def unix(text: str | None) -> float | None:
    """Read a time of a record, in unix seconds; None where there is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
