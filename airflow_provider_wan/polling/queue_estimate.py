# SPDX-License-Identifier: Apache-2.0
"""Which queued request starts next, as far as few polls can show. Pure: no I/O, no clock.

An account runs some requests at a time and queues the rest, including requests of others. While the first of ours
waits, so do all others, so only the first one is polled:

* **Order.** A request's *ticket* is its position plus how many had left the queue when it was seen there. It does not
  change while the queue moves, so requests that were polled at different times can be compared.
* **Rate.** Each poll of the first one measures how many have left the queue. That shows how fast the queue moves, and
  when its turn has probably come. If several start in a row, the next ones are polled at once, more and more together.
* **Comparison.** Requests may not start in order: models may have queues of their own, and queued requests may be
  cancelled. So the last one is polled from time to time. If it has moved by another number of places than the first
  one, twice in a row, all tickets are doubtful: each request is polled, and its position gives it a new ticket.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterator

from airflow_provider_wan.polling.schedule import PolledRequest

_REMEMBERED_MEASURES = 24
#: The first one is polled after this share of the time until its turn.
_TURN_SHARE = 0.8
#: Two requests have moved differently if the difference is larger than this many places, plus what leaves the queue in
#: so many seconds: positions come from polls of different moments.
_SLACK, _SLACK_S = 0.5, 10.0
#: Tickets given since the last measure are rough if the queue has moved by so many places more or less than is usual.
_ROUGH = 2.0


class QueueEstimate:
    """The queued requests by ticket, and how many requests have left the queue.

    :param gap_s: returns, for a time, the shortest pause between two polls of a queued request.
    :param check_s: returns, for a time, the time between two comparisons.
    """

    def __init__(self, gap_s: Callable[[float], float], check_s: Callable[[float], float]) -> None:
        self._gap_s = gap_s
        self._check_s = check_s
        self._waiting: list[PolledRequest] = []
        #: When the first one was polled, and how many had left the queue then.
        self._measures: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED_MEASURES)
        self._first_waited_at = -math.inf
        #: At least so many have left: the request with the ticket before this one has started.
        self._least_left = 0.0
        #: How many have started since one of the first was found waiting.
        self._in_turn = 0
        #: The smallest position seen, 0 or 1: that of the next request to start.
        self._first_position = 1
        #: Requests whose ticket was given since the last measure.
        self._rough: list[PolledRequest] = []
        #: The request that is compared with the first one; when two were compared last; whether it is to be polled for
        #: that now; and whether the two differed the last time.
        self._compared: PolledRequest | None = None
        self._compared_at = -math.inf
        self._is_comparison_due = False
        self._has_differed = False
        #: Requests whose ticket is not certain; and when the last of those taken before will have been polled.
        self._doubtful: list[PolledRequest] = []
        self._renewed_at = -math.inf

    # -- membership ----------------------------------------------------------------------------------------

    def add(self, request: PolledRequest, position: float, now: float) -> None:
        """Add a request at this position of the queue."""
        request.ticket = self.left_by(now) + position
        request.is_waiting = True
        bisect.insort(self._waiting, request, key=_order)

    def remove(self, request: PolledRequest) -> None:
        """Remove a request, if it is there."""
        if request.is_waiting:
            del self._waiting[bisect.bisect_left(self._waiting, _order(request), key=_order)]
            request.is_waiting = False

    def positions(self) -> dict[str, float]:
        """Return the position of each request, for :meth:`add` in another process."""
        left = self._measures[-1][1] if self._measures else self._least_left
        return {each.request_id: round((each.ticket or 0.0) - left, 1) for each in self._waiting}

    def take_doubtful(self, spread_s: Callable[[int], float], now: float) -> list[PolledRequest]:
        """Remove and return the requests that are to be polled, since their tickets are not certain.

        :param spread_s: returns within how many seconds so many requests will be polled.
        """
        doubtful, self._doubtful = self._doubtful, []
        for request in doubtful:
            self.remove(request)
        if doubtful and self._compared is None:
            self._renewed_at = now + spread_s(len(doubtful))
            self._compared_at = max(now, self._renewed_at + spread_s(len(doubtful)) - self._check_s(now))
        return doubtful

    # -- what to poll --------------------------------------------------------------------------------------

    def next_due(self, now: float) -> PolledRequest | None:
        """Return a request that is to be polled now, or None."""
        return next((request for request, at in self._moments(now) if at <= now), None)

    def next_at(self, now: float) -> float:
        """Return when :meth:`next_due` may return a request; infinity if only an answer can change that."""
        return min((at for _, at in self._moments(now)), default=math.inf)

    def _moments(self, now: float) -> Iterator[tuple[PolledRequest, float]]:
        """Yield the requests that matter, and when to poll each."""
        for request in self._first():
            if not request.is_asked:
                yield request, max(request.next_at, self._measure_at(now))
        last = self._compared
        if self._is_comparison_due and last is not None and last.is_waiting and not last.is_asked:
            yield last, last.next_at

    def _first(self) -> list[PolledRequest]:
        return self._waiting[: max(1, self._in_turn - 1)]

    def _measure_at(self, now: float) -> float:
        """Return when to poll the first one again."""
        if not self._measures or self._in_turn > 1 or self._has_differed:
            return -math.inf
        at, left = self._measures[-1]
        pause_s, rate = self._gap_s(now), self.rate()
        if rate and (ticket := self._waiting[0].ticket) is not None:
            pause_s = max(pause_s, _TURN_SHARE * (ticket + 1 - self._first_position - left) / rate)
        return min(at + pause_s, min(at, self._compared_at) + self._check_s(now))

    # -- how far the queue has moved -----------------------------------------------------------------------

    def left_by(self, now: float) -> float:
        """Return how many have probably left the queue by now."""
        if not self._measures:
            return self._least_left
        at, left = self._measures[-1]
        return max(self._least_left, left + self.rate() * (now - at))

    def rate(self) -> float:
        """Return how many leave the queue each second; 0 if that is not known."""
        if len(self._measures) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._measures[0], self._measures[-1]
        return max(last - first, _SLACK) / (last_at - first_at) if last_at > first_at else 0.0

    def _measure(self, left: float, now: float) -> None:
        if len(self._measures) > 1 and now - self._measures[-2][0] < self._gap_s(now):
            self._measures.pop()
        self._measures.append((now, left))

    # -- answers -------------------------------------------------------------------------------------------

    def on_queued(self, request: PolledRequest, position: int, now: float) -> None:
        """Record that a request is queued, and its position."""
        self._first_position = min(self._first_position, position)
        request.next_at = now + self._gap_s(now)
        if request in self._first():
            self._on_first(request, position, now)
            return
        if self._is_comparison_due and request is self._compared and request.is_waiting:
            self._is_comparison_due = False
            self._compare(request, position, now)
            return
        self.remove(request)
        self.add(request, position, now)
        self._rough.append(request)
        is_renewal = now < self._renewed_at
        if self._compared is None or (is_renewal and request is self._waiting[-1]):
            self._compared, self._compared_at = request, max(self._compared_at, now)

    def _on_first(self, first: PolledRequest, position: int, now: float) -> None:
        assert first.ticket is not None
        left = first.ticket - position
        before = self._measures[-1][1] if self._measures else left
        expected = self.left_by(now) - before
        if abs(left - before - expected) > expected + _ROUGH:
            self._doubtful = [other for other in self._rough if other.is_waiting and other is not self._compared]
        self._rough.clear()
        self._measure(left, now)
        self._in_turn, self._first_waited_at, self._least_left = 0, now, left
        self._is_comparison_due = self._has_differed or now >= self._compared_at + self._check_s(now)
        if self._compared is first:
            self._compared = self._waiting[-1]
        if self._compared is first:
            self._is_comparison_due, self._compared_at = False, now
        elif self._is_comparison_due and (self._compared is None or not self._compared.is_waiting):
            self._doubt_all()

    def _compare(self, last: PolledRequest, position: int, now: float) -> None:
        """Compare how far the first and the last one have moved."""
        assert last.ticket is not None
        moved = self.rate() * (now - self._first_waited_at)
        slack = _SLACK + _SLACK_S * self.rate() + 2 * moved
        differ = abs(last.ticket - position - self.left_by(now)) > slack
        if not differ:
            self._compared, self._compared_at, self._has_differed = self._waiting[-1], now, False
        elif not self._has_differed:
            self._has_differed = True
        else:
            self.remove(last)
            self.add(last, position, now)
            self._compared_at = now
            self._doubt_all()

    def _doubt_all(self) -> None:
        """Have all but the first one polled, the last ones first; the last one that still waits is compared next."""
        self._doubtful = self._waiting[:0:-1]
        self._compared = None
        self._is_comparison_due = self._has_differed = False

    def on_start(self, request: PolledRequest, now: float) -> tuple[float | None, float | None]:
        """Remove a request that has started, and return when it last waited and when it probably started.

        None where that is not known.
        """
        assert request.ticket is not None
        waited_until = request.queued_until
        is_in_turn = request in self._first()
        self._in_turn += is_in_turn
        self.remove(request)
        if is_in_turn:
            if self._first_waited_at > -math.inf:
                waited_until = max(self._first_waited_at, waited_until or -math.inf)
            self._least_left = max(self._least_left, request.ticket + 1)
        else:
            self._doubt_all()
        return waited_until, None if waited_until is None else (waited_until + now) / 2


def _order(request: PolledRequest) -> tuple[float, tuple[float, int]]:
    assert request.ticket is not None
    return request.ticket, request.number
