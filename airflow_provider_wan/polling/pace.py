# SPDX-License-Identifier: Apache-2.0
"""How long to pause between two looks at a request. No I/O, clock or dice.

A look at a request that can't be over yet tells nothing, and thousands of waits in one process make thousands of
them. So looks are left out, but for ``max_interval_s`` at most, in the queue for twice as long:

* **In the queue.** A request's last two places tell how fast it moves. It is looked at again after half the time that
  it still needs at that pace, so that a queue that becomes faster is noticed before its turn has come.
* **While it runs.** All waits of one connection on one event loop share an :class:`Experience`, which knows the
  shortest of the latest generations. A request can't have started before it was last seen queued; until the shortest
  generation has passed since then, it is not looked at.

A request whose start was not seen, and the first few of a process, are looked at every interval.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus

#: The shortest adaptive interval.
SHORTEST_INTERVAL_S = 2.0
_SHARE_OF_ELAPSED = 0.1
_S_PER_QUEUE_PLACE = 3.0  # a place in the queue takes a clip's time, of which 1 to 5 minutes were seen
_INTERVAL_JITTER = 0.1
_LEAP_JITTER = 0.2
#: No account starts more requests a second than this, until its queue was seen to move.
_MOST_STARTS_PER_S = 20.0
#: Of the shortest generation: so exactly the start of one is worth knowing.
_SHARE_OF_START = 0.2
#: In the queue looks are left out for so many times the longest interval.
_LONGEST_IN_QUEUE = 2.0
_REMEMBERED = 100
_ENOUGH = 8
#: Of the shortest generation seen: the next one may be a little shorter still.
_MARGIN = 0.9
_TICK_S = 0.05
_SHORTEST_TO_SHARE_S = 1.0


def nap_s(ahead_s: float, clock_s: float) -> float:
    """Say how long to sleep so that many waits wake up together.

    A process that wakes up for each of thousands of waits spends more on waking up than on looking. So a wait of a
    second or more goes on at the next full twentieth of a second: more at once would make the loop wait.

    :param ahead_s: how long to sleep at least, in seconds.
    :param clock_s: the time now on a clock that all waits of the process share, in seconds.
    """
    return ahead_s if ahead_s < _SHORTEST_TO_SHARE_S else ahead_s + -(clock_s + ahead_s) % _TICK_S


class Experience:
    """How long the latest generations took at least."""

    def __init__(self) -> None:
        self._ran_s: deque[float] = deque(maxlen=_REMEMBERED)
        #: No generation is expected to be over sooner, in seconds; 0 as long as too few were seen.
        self.least_s = 0.0

    def saw(self, ran_s: float) -> None:
        """Take in one more success.

        :param ran_s: how long it ran at least, in seconds.
        """
        self._ran_s.append(max(0.0, ran_s))
        if len(self._ran_s) >= _ENOUGH:
            self.least_s = _MARGIN * min(self._ran_s)


class Pace:
    """How closely one request is watched.

    :param experience: what waits of the same account share.
    :param rnd: gives a fresh random number from 0 to 1 at each call.
    """

    def __init__(self, experience: Experience, rnd: Callable[[], float]) -> None:
        self._experience = experience
        self._rnd = rnd
        self._place = 0
        self._queued_at: float | None = None
        self._runs_since: float | None = None
        self._alive_at = 0.0
        self._has_leapt = False

    def pause_s(
        self, status: RequestStatus, now: float, *, waited_s: float, given_s: float | None, max_s: float
    ) -> float:
        """Take in where an unfinished request stands, and say how long to pause.

        :param waited_s: since the wait began.
        :param given_s: the interval; None: adaptive.
        :param max_s: the longest adaptive interval, and the longest for which looks are left out once it runs.
        """
        place, leap_s, longest_s = status.queue_position or 0, 0.0, max_s
        if status.state is State.QUEUED:
            leap_s = max(self._until_start_s(place, now) / 2, _SHARE_OF_START * self._experience.least_s)
            longest_s = _LONGEST_IN_QUEUE * max_s
            self._place, self._queued_at, self._runs_since = place, now, None
        elif status.state is State.RUNNING:
            self._alive_at = now
            self._runs_since = now if self._runs_since is None else self._runs_since
            if self._queued_at is not None:
                leap_s = self._queued_at + self._experience.least_s - now
        leap_s = min(leap_s, longest_s) * (1 - _LEAP_JITTER * self._rnd())
        interval_s = self.interval_s(now, waited_s=waited_s, given_s=given_s, max_s=max_s, place=place)
        self._has_leapt = leap_s > interval_s
        return max(interval_s, leap_s)

    def interval_s(
        self, now: float, *, waited_s: float, given_s: float | None, max_s: float, place: int = 0
    ) -> float:
        """Say how long to pause between looks that may find it over; see :meth:`pause_s`."""
        if given_s is None:
            if self._runs_since is not None and self._queued_at is not None:
                waited_s = now - self._queued_at  # how long it stood in the queue tells nothing any more
            wished_s = max(SHORTEST_INTERVAL_S, _SHARE_OF_ELAPSED * waited_s, _S_PER_QUEUE_PLACE * place)
            given_s = min(wished_s, max_s)
        return given_s * (1 + _INTERVAL_JITTER * (2 * self._rnd() - 1))

    def _until_start_s(self, place: int, now: float) -> float:
        if self._queued_at is None:
            return place / _MOST_STARTS_PER_S
        # As if one more had just started: a queue that stands still may move at once.
        return place * (now - self._queued_at) / (max(0, self._place - place) + 1)

    def on_success(self, over_at: float) -> None:
        """Tell the others how long it ran at least, if it was seen before it ran.

        :param over_at: when it was first seen to be over.
        """
        if self._queued_at is not None:
            ran_s = 0.0 if self._runs_since is None else self._alive_at - self._runs_since
            if self._has_leapt:  # it was over sooner than expected
                ran_s = max(ran_s, (over_at - self._queued_at) / 2)
            self._experience.saw(ran_s)
