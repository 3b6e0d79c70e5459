# SPDX-License-Identifier: Apache-2.0
"""Single waits: what each answer means for the task that waits, and when its wait is over. Pure: no I/O, no clock.

* Any end in ``/status`` leads to ``/result``, and only ``/result`` decides how a request ended.
* An error never ends a wait before its deadline, for the request is paid for. Exceptions: the API says for a minute
  that it does not know the request; and an id that a person typed in is refused at once if it was never any of
  this account's.
* ``Retry-After`` is never undercut. A wait that reaches its deadline, or finds it passed because the process was
  down, polls once more before it gives up, if ``Retry-After`` allows that.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_wan.exceptions import (
    WanError,
    WanNotFoundError,
    WanTimeoutError,
)
from airflow_provider_wan.model_api.faults import error_of_result, is_about_the_id
from airflow_provider_wan.model_api.states import NOT_READY_WORD, State, is_unpaid_word
from airflow_provider_wan.model_api.values import RequestResult, RequestStatus
from airflow_provider_wan.polling.poller import RequestPoller

Call = Literal["status", "result"]
Outcome = Literal["succeeded", "failed", "cancelled", "gone", "refused", "timeout"]

_OUTCOME_OF_STATE: dict[State, Outcome] = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
_LOGGED_EVERY_ERRORS = 10
_LOGGED_WORDS = 20
#: In a queue of thousands the position changes with every poll: it is logged when it is a quarter nearer.
_NEARER = 0.75


@dataclass(frozen=True, slots=True)
class Over:
    """The end of a wait.

    :param outcome: how it ended.
    :param result: what ``/result`` said, if that ended it.
    :param error: the error to raise, None for ``succeeded``.
    """

    outcome: Outcome
    result: RequestResult | None = None
    error: WanError | None = None


class RequestWait:
    """The wait of one task for one request.

    :param request_id: the request.
    :param deadline: the absolute end of the wait, in unix seconds; a restart does not move it.
    :param poll_interval_s: seconds between polls that may find it over; None (default) adapts.
    :param is_known: whether a task submitted the request; false for an id that a person typed in.
    :param submitted_at: when it was submitted, in unix seconds, if that is known.
    :param not_before: until when a ``Retry-After`` asked to wait, in unix seconds.
    """

    def __init__(
        self,
        request_id: str,
        *,
        deadline: float,
        poll_interval_s: float | None = None,
        is_known: bool = True,
        submitted_at: float | None = None,
        not_before: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.deadline = deadline
        self.poll_interval_s = poll_interval_s
        self.is_known = is_known
        self.submitted_at = submitted_at
        self.not_before = not_before
        self.over: Over | None = None
        #: When it was first seen running, in unix seconds; None if it never was.
        self.running_since: float | None = None
        #: Whether ``/status`` said that it ended, and not that it failed or was cancelled.
        self.may_be_paid = False
        self.messages = ProgressMessages(request_id)
        #: The calls that were answered after the deadline.
        self.answered_late: set[Call] = set()
        self._had_answer = False
        self._errors = 0
        self._last_error: WanError | None = None

    def on_status(self, status: RequestStatus, now: float) -> None:
        """Record what ``/status`` said."""
        self._on_answer()
        self.messages.on_status(status)
        if status.state is State.RUNNING and self.running_since is None:
            self.running_since = now
        if status.is_over:
            self.may_be_paid = not is_unpaid_word(status.word)

    def on_result(self, result: RequestResult) -> None:
        """Record what ``/result`` said; a terminal state ends the wait."""
        self._on_answer()
        self.messages.on_result(result)
        if result.state.is_terminal:
            self.over = Over(_OUTCOME_OF_STATE[result.state], result, error_of_result(result))

    def on_error(self, error: WanError) -> None:
        """Record that a poll failed; it ends the wait only if a person mistyped the id."""
        self._errors += 1
        self._last_error = error
        self.messages.on_error(error, self._errors)
        never_seen = not self.is_known and not self._had_answer
        if never_seen and is_about_the_id(error) and not isinstance(error, WanNotFoundError):
            self.over = Over("refused", error=error)

    def on_gone(self, error: WanError) -> None:
        """End the wait: the API does not know the request any more."""
        text = (
            f"RunComfy says again and again that there is no request {self.request_id}: it was deleted, has expired "
            f"or never existed. {error} Check the id, and RunComfy's Generations page for its video."
        )
        self.over = Over("gone", error=WanNotFoundError(text, request_id=self.request_id, code=404001))

    def on_deadline(self) -> None:
        """End the wait: its time is up."""
        failed = f" The last poll failed: {self._last_error}" if self._last_error else ""
        text = f"Request {self.request_id} was not finished at the deadline, {self.messages.last_seen}.{failed}"
        self.over = Over("timeout", error=WanTimeoutError(text, request_id=self.request_id))

    def as_event(self) -> dict[str, Any]:
        """Return the end of the wait as plain JSON values, without links and secrets."""
        assert self.over is not None
        event: dict[str, Any] = {"outcome": self.over.outcome}
        if self.over.error is not None:
            event["message"] = str(self.over.error)
        if self.running_since is not None:
            event["running_since"] = self.running_since
        if self.over.outcome == "gone" and self.may_be_paid:
            event["may_be_paid"] = True
        return event

    def _on_answer(self) -> None:
        self._had_answer = True
        self.messages.on_answer(self._errors)
        self._errors, self._last_error = 0, None


class WaitSet:
    """Many waits that are polled together; several may be for the same request.

    :param poller: decides when to poll which request.
    """

    def __init__(self, poller: RequestPoller) -> None:
        self.poller = poller
        self._waits: dict[str, list[RequestWait]] = {}
        self._deadlines: list[tuple[float, int, RequestWait]] = []
        self._count = itertools.count()
        self._for_result: dict[str, int] = {}
        self._asked: set[str] = set()
        #: Waits with a new message or an end since the driver last took them.
        self.changed: set[RequestWait] = set()

    def add(self, wait: RequestWait, now: float) -> None:
        """Add a wait; its request is polled at once unless ``Retry-After`` forbids it."""
        self._waits.setdefault(wait.request_id, []).append(wait)
        heapq.heappush(self._deadlines, (wait.deadline, next(self._count), wait))
        self.poller.add(
            wait.request_id,
            wait.submitted_at,
            interval_s=wait.poll_interval_s,
            not_before=wait.not_before,
            now=now,
        )

    def remove(self, wait: RequestWait) -> None:
        """Remove a wait that is over or was cancelled; others for the same request continue."""
        waits = self._waits.get(wait.request_id, [])
        if wait in waits:
            waits.remove(wait)
        if not waits and self._waits.pop(wait.request_id, None) is not None:
            self._asked.discard(wait.request_id)
            self._for_result.pop(wait.request_id, None)
            self.poller.forget(wait.request_id)
        self.changed.discard(wait)

    def due(self, now: float, limit: int) -> list[tuple[str, Call]]:
        """Return the polls to make now; a wait whose deadline has passed is polled a last time, or ends."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, wait = heapq.heappop(self._deadlines)
            is_here = wait in self._waits.get(wait.request_id, ())
            if is_here and wait.over is None and wait.request_id not in self._asked:
                self._on_deadline(wait, now)
        requests = self.poller.due(now, limit)
        self._asked.update(requests)
        return [(request_id, self._call_for(request_id)) for request_id in requests]

    def next_at(self, now: float) -> float:
        """Return when to call :meth:`due` again."""
        return min(self.poller.next_at(now), self._deadlines[0][0] if self._deadlines else math.inf)

    def on_status(self, status: RequestStatus, now: float) -> None:
        """Record what ``/status`` said."""
        request_id = status.request_id
        self.poller.on_status(status, now)
        if request_id in self.poller.ready:
            self._for_result.setdefault(request_id, 0)
            self.poller.ask_again(request_id, now, at=now)
        for wait in self._answered(request_id):
            wait.on_status(status, now)
        self._after_answer(request_id, "status", now)

    def on_result(self, result: RequestResult, now: float) -> None:
        """Record what ``/result`` said."""
        request_id = result.request_id
        # /status has said that it ended, so the result is only late: only /result is polled.
        late = self._for_result.get(request_id, 0)
        self._for_result[request_id] = late + 1
        self.poller.ask_again(request_id, now, late=late)
        for wait in self._answered(request_id):
            wait.on_result(result)
        self._after_answer(request_id, "result", now)

    def on_error(self, request_id: str, call: Call, error: WanError, now: float) -> None:
        """Record that a call failed."""
        self.poller.on_error(request_id, error, now)
        is_gone = request_id in self.poller.gone
        self.poller.gone.clear()
        for wait in self._answered(request_id):
            wait.on_error(error)
            if is_gone and wait.over is None:
                wait.on_gone(error)
        self._after_answer(request_id, call, now)

    def _call_for(self, request_id: str) -> Call:
        return "result" if request_id in self._for_result else "status"

    def _answered(self, request_id: str) -> list[RequestWait]:
        self._asked.discard(request_id)
        return list(self._waits.get(request_id, ()))

    def _after_answer(self, request_id: str, call: Call, now: float) -> None:
        for wait in self._waits.get(request_id, ()):
            if now >= wait.deadline:
                wait.answered_late.add(call)
                if wait.over is None:
                    self._on_deadline(wait, now)
            if wait.over is not None or wait.messages.lines:
                self.changed.add(wait)

    def _on_deadline(self, wait: RequestWait, now: float) -> None:
        may_poll = self._call_for(wait.request_id) not in wait.answered_late
        if not (may_poll and self.poller.poll_now(wait.request_id, now)):
            wait.on_deadline()
            self.changed.add(wait)


class ProgressMessages:
    """The log lines of a wait: changes only, so that the log of hours stays a page.

    :param request_id: the request.
    """

    def __init__(self, request_id: str) -> None:
        self.last_seen = "never seen"
        self._request_id = request_id
        self._logged_position: int | None = None
        self._unknown_words: tuple[str, ...] = ()
        #: New lines, oldest first.
        self.lines: list[str] = []

    def drain(self) -> list[str]:
        """Return and remove the new lines, oldest first."""
        lines, self.lines = self.lines, []
        return lines

    def on_status(self, status: RequestStatus) -> None:
        """Log a new state or position, or a word seen for the first time."""
        if status.is_over:
            self._seen("ended, its result still to come")
        elif status.state is State.UNKNOWN:
            self._on_unknown(status.word)
        elif status.queue_position is not None:
            self._on_position(status.state, status.queue_position)
        else:
            self._seen(status.state.value)

    def on_result(self, result: RequestResult) -> None:
        """Log a new state, or a word seen for the first time."""
        if result.state is not State.UNKNOWN:
            self._seen(result.state.value)
        elif result.word != NOT_READY_WORD:
            self._on_unknown(result.word)

    def on_error(self, error: WanError, times: int) -> None:
        """Log the first failed poll in a row, and every 10th."""
        if times == 1 or times % _LOGGED_EVERY_ERRORS == 0:
            count = f" {times} times in a row" if times > 1 else ""
            self.lines.append(f"Request {self._request_id}: a poll failed{count}, polling goes on. {error}")

    def on_answer(self, errors_before: int) -> None:
        """Log a recovery."""
        if errors_before:
            self.lines.append(f"Request {self._request_id}: answered again after {errors_before} failed polls.")

    def _on_position(self, state: State, position: int) -> None:
        text, logged = f"{state}, at position {position}", self._logged_position
        if logged is not None and _NEARER * logged < position <= logged and self.last_seen.startswith(state):
            self.last_seen = text
        else:
            self._seen(text)
            self._logged_position = position

    def _seen(self, text: str) -> None:
        if text != self.last_seen:
            self.lines.append(f"Request {self._request_id}: {text}.")
            self.last_seen = text

    def _on_unknown(self, word: str) -> None:
        self.last_seen = f"in a state unknown here, {word!r}"
        if word not in self._unknown_words and len(self._unknown_words) < _LOGGED_WORDS:
            self._unknown_words += (word,)
            self.lines.append(
                f"Request {self._request_id}: RunComfy says {word!r}, a word that is unknown here: neither a success "
                "nor a failure. Polling goes on until the deadline."
            )
