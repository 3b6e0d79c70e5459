# SPDX-License-Identifier: Apache-2.0
"""When to look at a request again, and when a wait is over; the loops with the sockets only obey.

Everything that affects a wait lives here:

* a terminal word from ``/status`` leads to ``/result``, and only ``/result`` ends a wait by a state;
* an error never ends a wait before its deadline, for the request is paid for: it backs off. The one
  exception is 404001, several times in a row over some time: the request is gone. And an id that a person
  typed in, and that the API has never had, is refused before anything else was ever seen of it;
* ``Retry-After`` is never undercut, and the deadline is never passed. Where the two do not fit together,
  nothing is asked any more and the wait ends at its deadline;
* a wait that finds its deadline passed (the process was down) looks once before it gives up, since what was
  paid for may be there;
* looks are left out while they can tell nothing, but never for long: see :mod:`.pace`.

A loop does this, with ``now`` in unix seconds:

1. ``step = wait.next_step(now)``; an :class:`Over` ends it.
2. If ``step.at`` lies ahead, sleep until then and go to 1 **without** asking.
3. Make ``step.call``, tell the wait what came (``saw_status``, ``saw_result``, ``saw_error``), log
   ``notes()``, read the connection again if ``wants_fresh_connection``, go to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanError,
    WanGenerationFailedError,
    WanNotFoundError,
    WanTimeoutError,
    WanTransientError,
)
from airflow_provider_wan.model_api.bodies import clean_text
from airflow_provider_wan.model_api.faults import is_about_the_id, is_auth_error
from airflow_provider_wan.model_api.states import State, is_unpaid_word
from airflow_provider_wan.model_api.values import RequestResult, RequestStatus
from airflow_provider_wan.polling.messages import ProgressMessages
from airflow_provider_wan.polling.pace import SHORTEST_INTERVAL_S, Experience, Pace

AskedFor = Literal["status", "result"]
Outcome = Literal["succeeded", "failed", "cancelled", "gone", "refused", "timeout"]

_FIRST_ERROR_PAUSE_S = 2.0
_LONGEST_ERROR_PAUSE_S = 60.0
_OUTCOME_OF_STATE: dict[State, Outcome] = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How long and how closely to watch a request.

    :param deadline: the absolute end of the wait, in unix seconds; a restart does not move it.
    :param poll_interval_s: seconds between looks that may find it over, give or take 10 %; ``None`` (default)
        adapts: about a tenth of the time waited so far, once it runs of the time since then, from 2 s to
        ``max_interval_s``, and longer deep in the queue, all give or take 10 % too.
    :param gone_after_times: how many 404001 in a row mean that the request is gone, default 3.
    :param gone_after_s: over how many seconds they must have come, default 60.
    :param max_interval_s: the longest adaptive interval in seconds, default 30; and the longest for which looks
        are left out because it can't be over yet, in the queue twice that.
    :param is_known: whether the request is known to have been submitted, default true: then an answer that its
        id is malformed, or another account's (403001: the token was changed for a while), is no end.
    """

    deadline: float
    poll_interval_s: float | None = None
    gone_after_times: int = 3
    gone_after_s: float = 60.0
    max_interval_s: float = 30.0
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the API for something, at a time; before that time, sleep and ask for the next step again.

    :param call: which call to make.
    :param at: when, in unix seconds; never past the deadline.
    """

    call: AskedFor
    at: float


@dataclass(frozen=True, slots=True)
class Over:
    """The wait has ended.

    :param outcome: how.
    :param result: what ``/result`` said, if it was that which ended it.
    :param error: the error to raise for it, ``None`` for ``succeeded``.
    """

    outcome: Outcome
    result: RequestResult | None = None
    error: WanError | None = None


class RequestWait:
    """The wait for one request, as a state machine without I/O, clock or dice.

    :param request_id: the request.
    :param policy: how long and how closely.
    :param rnd: gives a fresh random number from 0 to 1 at each call.
    :param experience: what waits of the same account share; by default it has its own.
    """

    def __init__(
        self,
        request_id: str,
        policy: WaitPolicy,
        rnd: Callable[[], float],
        *,
        experience: Experience | None = None,
    ) -> None:
        self.request_id = request_id
        self.policy = policy
        #: Whether the last thing seen was an auth error, so that a rotated token is worth a look.
        self.wants_fresh_connection = False
        #: When it was first seen running, in unix seconds; None where that was never seen.
        self.running_since: float | None = None
        #: Whether ``/status`` has said that it ended, and not that it failed or was cancelled.
        self.may_be_paid = False
        self._on_any_answer = False
        self._pace = Pace(experience or Experience(), rnd)
        self._ended_at = 0.0
        self._rnd = rnd
        self._over: Over | None = None
        self._next_call: AskedFor = "status"
        self._started_at: float | None = None
        self._next_at = 0.0
        self._not_before = 0.0
        self._looked_late: tuple[AskedFor, ...] = ()
        self._early_results = 0
        self._errors = 0
        self._last_error: WanError | None = None
        self._not_found_times = 0
        self._not_found_since = 0.0
        self._notebook = ProgressMessages(request_id)

    def next_step(self, now: float) -> Ask | Over:
        """Say what to do next.

        :param now: the time in unix seconds.
        """
        self._start(now)
        if self._over is None and now >= self.policy.deadline and not self._may_look_late(now):
            self._over = Over("timeout", error=self._timeout_error())
        return self._over or Ask(self._next_call, min(self._next_at, self.policy.deadline))

    def on_status(self, status: RequestStatus, now: float) -> None:
        """Take in what ``/status`` said.

        :param now: the time in unix seconds.
        """
        if self._take("status", now):
            self._on_answer()
            self._notebook.on_status(status)
            if status.state is State.RUNNING and self.running_since is None:
                self.running_since = now
            if status.is_over:
                self.may_be_paid = not is_unpaid_word(status.word)
                self._next_call, self._next_at, self._ended_at = "result", now, now
            else:
                self._next_at = now + self._pause_s(status, now)

    def on_result(self, result: RequestResult, now: float) -> None:
        """Take in what ``/result`` said; a terminal state there ends the wait.

        :param now: the time in unix seconds.
        """
        if not self._take("result", now):
            return
        self._on_answer()
        self._notebook.on_result(result)
        if result.state.is_terminal:
            if result.state is State.SUCCEEDED:
                self._pace.on_success(self._ended_at)
            over = Over(_OUTCOME_OF_STATE[result.state], result)
            self._over = replace(over, error=error_of_outcome(over, self.request_id))
            return
        # /status has said that it ended, so the result is only late: nothing but /result is worth asking.
        late_s = SHORTEST_INTERVAL_S * min(self._early_results, 5)
        self._early_results += 1
        self._next_at = now + self._interval_s(now) + late_s

    def on_error(self, error: WanError, now: float) -> None:
        """Take in that a look failed: back off; it is over only if the API says often enough that it is gone.

        :param error: what the look raised.
        :param now: the time in unix seconds.
        """
        if not self._take(self._next_call, now):
            return
        self._errors += 1
        self._last_error = error
        self.wants_fresh_connection = is_auth_error(error)
        self._notebook.on_error(error, self._errors)
        if self._is_mistyped(error):
            self._over = Over("refused", error=error)
        elif self._is_gone(error, now):
            self._over = Over("gone", error=_gone_error(self.request_id, error))
        else:
            self._next_at = self._after_error(error, now)

    def notes(self) -> list[str]:
        """Give the lines worth a place in the log since the last time, oldest first."""
        return self._notebook.drain()

    def _start(self, now: float) -> None:
        if self._started_at is None:
            self._started_at = self._next_at = now

    def _take(self, call: AskedFor, now: float) -> bool:
        """Count a look that ended after the deadline; false if the wait is over and nothing matters any more."""
        self._start(now)
        if now >= self.policy.deadline:
            self._looked_late += (call,)
        return self._over is None

    def _may_look_late(self, now: float) -> bool:
        """Whether the one look at the deadline is still to be made, and ``Retry-After`` allows it."""
        return self._next_call not in self._looked_late and self._not_before <= now

    def _on_answer(self) -> None:
        self._on_any_answer = True
        self._notebook.on_answer(self._errors)
        self._errors, self._last_error, self._not_found_times = 0, None, 0
        self.wants_fresh_connection = False

    def _interval_s(self, now: float) -> float:
        return self._pace.interval_s(
            now,
            waited_s=self._waited_s(now),
            given_s=self.policy.poll_interval_s,
            max_s=self.policy.max_interval_s,
        )

    def _pause_s(self, status: RequestStatus, now: float) -> float:
        return self._pace.pause_s(
            status,
            now,
            waited_s=self._waited_s(now),
            given_s=self.policy.poll_interval_s,
            max_s=self.policy.max_interval_s,
        )

    def _waited_s(self, now: float) -> float:
        return 0.0 if self._started_at is None else now - self._started_at

    def _after_error(self, error: WanError, now: float) -> float:
        longest_s = min(_LONGEST_ERROR_PAUSE_S, _FIRST_ERROR_PAUSE_S * 2.0 ** min(self._errors - 1, 10))
        next_at = now + longest_s * (0.5 + 0.5 * self._rnd())
        if isinstance(error, WanTransientError) and error.retry_after_s:
            self._not_before = now + error.retry_after_s
            next_at = max(next_at, self._not_before + _FIRST_ERROR_PAUSE_S * self._rnd())
        return next_at

    def _is_mistyped(self, error: WanError) -> bool:
        """Whether this is an id that a person typed in, and that was never one of this account's requests."""
        if self.policy.is_known or self._on_any_answer or isinstance(error, WanNotFoundError):
            return False
        return is_about_the_id(error)

    def _is_gone(self, error: WanError, now: float) -> bool:
        if not isinstance(error, WanNotFoundError):
            self._not_found_times = 0
            return False
        if self._not_found_times == 0:
            self._not_found_since = now
        self._not_found_times += 1
        return (
            self._not_found_times >= self.policy.gone_after_times
            and now - self._not_found_since >= self.policy.gone_after_s
        )

    def _timeout_error(self) -> WanTimeoutError:
        failed = f" The last look failed: {self._last_error}" if self._last_error else ""
        return _timeout_error(self.request_id, f", {self._notebook.last_seen}.{failed}")


def error_of_outcome(over: Over, request_id: str) -> WanError | None:
    """Give the error to raise for the end of a wait, ``None`` for a success.

    An :class:`Over` that was carried elsewhere by its outcome alone gets a full message too.

    :param over: how the wait ended.
    :param request_id: the request.
    """
    if over.error is not None or over.outcome == "succeeded":
        return over.error
    if over.outcome == "timeout":
        return _timeout_error(request_id, ".")
    if over.outcome == "gone":
        return _gone_error(request_id, None)
    if over.outcome == "cancelled":
        return WanCancelledError(
            f"Request {request_id} was cancelled before it ran; there is no video. Run the task again to submit "
            "a new one.",
            request_id=request_id,
        )
    said = clean_text((over.result and over.result.error) or "RunComfy gave no reason")
    return WanGenerationFailedError(
        f"Request {request_id} failed at RunComfy: {said}. Correct the inputs if they are the cause; running the "
        "task again submits a new request.",
        request_id=request_id,
    )


def _timeout_error(request_id: str, seen: str) -> WanTimeoutError:
    return WanTimeoutError(
        f"Request {request_id} was not finished at the deadline{seen}", request_id=request_id
    )


def _gone_error(request_id: str, last: WanError | None) -> WanNotFoundError:
    said = f" {last}" if last else ""
    return WanNotFoundError(
        f"RunComfy says again and again that there is no request {request_id}: it was deleted, has expired or "
        f"never was.{said} Check the id, and RunComfy's Generations page for its video.",
        request_id=request_id,
        code=404001,
    )
