# SPDX-License-Identifier: Apache-2.0
"""Which requests still wait in the account's queue, as far as few polls can show. Pure: no I/O, no clock.

An account runs some requests at a time and queues the rest, including requests of others. Think of a shop where
customers take numbered tickets: a request's *ticket* minus its ``queue_position`` is how many have left the queue,
the same number for every request. So one poll of any queued request shows how far the queue has moved for all of
them, and a request is polled when its turn has come:

* a request that was polled has its ticket from its own position; one that was only submitted has the ticket after the
  one submitted before it, until its own position corrects that;
* between polls the queue is expected to move at the rate seen so far. The first in the queue is polled often enough to
  correct that, and the last one every minute;
* until polls have shown that the queue is in order, every request is polled within the longest pause after the queue
  has moved: any of them may be running;
* where polls contradict each other (a request still waits although others far behind it have started), the queue is
  not in order. Then each request is polled by its own position, see :class:`.poller.RequestPoller`.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterator

from airflow_provider_wan.polling.schedule import PolledRequest

_REMEMBERED_MEASURES = 24
_CONTRADICTIONS = 3
_LARGEST_SLACK = 16
#: Positions of requests polled this many seconds apart may differ because the queue moved meanwhile.
_SLACK_S = 10.0
#: The next request to start has the ticket that equals the number that have left; it is polled this share of a
#: start interval later.
_TURN = 0.8
#: The last one is polled after half of the longest pause since the queue moved, and all others after this share of it.
_PROOF_SHARE = 0.75


class QueueEstimate:
    """The queued requests by ticket, and how many requests have left the queue.

    :param gap_s: returns, for a time, the shortest pause between two polls that only measure the queue.
    :param longest_s: returns how long the last one may be left unpolled.
    :param in_order: false if the queue is known not to be in order.
    """

    def __init__(
        self, gap_s: Callable[[float], float], longest_s: Callable[[], float], *, in_order: bool = True
    ) -> None:
        self.in_order = in_order
        self._gap_s = gap_s
        self._longest_s = longest_s
        self._waiting: list[PolledRequest] = []
        self._last_ticket = -1.0
        self._left: float | None = None
        self._first_position = 1
        #: When a position was seen last, and how many had left then.
        self._seen_waiting: tuple[float, float] | None = None
        self._measured_at = -math.inf
        self._measures: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED_MEASURES)
        self._last_polled_at = -math.inf
        self._contradicting: set[str] = set()
        #: Ends of ours whose successor was not found yet, as (not before, noticed at); and starts that were found
        #: before an end was noticed.
        self._ends: deque[tuple[float, float]] = deque()
        self._starts_ahead = 0
        self._ends_explain_starts = False
        #: This many of the first are polled together; doubles while all have started, if there are no positions.
        self._probes = 0
        self._has_positions = False
        #: When the queue moved first since all were polled; how many had left at the first poll, and by a later poll
        #: of the last one; and whether it is known that the first ones are those that leave.
        self._moved_at = math.inf
        self._left_at_first = 0.0
        self._left_by_last: float | None = None
        self._is_proven = False
        self._unproven: deque[PolledRequest] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    # -- membership ----------------------------------------------------------------------------------------

    def add(self, request: PolledRequest, ticket: float | None = None) -> None:
        """Add a request, behind all others unless its ticket is known."""
        request.ticket = self._last_ticket + 1 if ticket is None else ticket
        self._last_ticket = max(self._last_ticket, request.ticket)
        request.is_waiting = True
        bisect.insort(self._waiting, request, key=_order)

    def take_all(self) -> list[PolledRequest]:
        """Remove and return all requests."""
        taken, self._waiting = self._waiting, []
        for request in taken:
            request.is_waiting = False
        return taken

    def remove(self, request: PolledRequest) -> None:
        """Remove a request, if it is there."""
        if request.is_waiting:
            del self._waiting[bisect.bisect_left(self._waiting, _order(request), key=_order)]
            request.is_waiting = False

    def _move(self, request: PolledRequest, ticket: float) -> None:
        self.remove(request)
        self.add(request, ticket)

    def _spread(self, request: PolledRequest) -> None:
        """Assign tickets in between to the requests before this one that were never measured."""
        place = bisect.bisect_left(self._waiting, _order(request), key=_order)
        first = place
        while first and not self._waiting[first - 1].is_measured:
            first -= 1
        before = self._waiting[first - 1].ticket if first else self._left
        assert before is not None
        assert request.ticket is not None
        step = (request.ticket - before) / (place - first + 1)
        if step > 1:
            for number, other in enumerate(self._waiting[first:place]):
                other.ticket = before + step * (number + 1 if first else number)

    # -- what to poll --------------------------------------------------------------------------------------

    def left_by(self, now: float) -> float:
        """Return how many tickets have probably left the queue by now."""
        if self._left is None:
            return -math.inf
        rate = 0.0 if self._ends_explain_starts else self.rate()
        return self._left + rate * (now - self._measured_at)

    def rate(self) -> float:
        """Return how many tickets leave the queue each second; 0 if that is not known."""
        if len(self._measures) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._measures[0], self._measures[-1]
        return (last - first) / (last_at - first_at) if last_at - first_at >= self._gap_s(last_at) else 0.0

    def next_due(self, now: float) -> PolledRequest | None:
        """Return a request that is to be polled now, or None."""
        if not self._waiting:
            return None
        if now >= self._last_polled_at + self._longest_s() and _may_be_polled(last := self._waiting[-1], now):
            self._last_polled_at = now
            return last
        if (unproven := self._next_unproven(now)) is not None:
            return unproven
        for request in self._whose_turn_it_is(now):
            if _may_be_polled(request, now):
                return request
        if now >= self._measured_at + self._pause_s(now):
            first = self._waiting[0]
            if _may_be_polled(first, now):
                self._measured_at = max(self._measured_at, now - self._pause_s(now) + self._gap_s(now))
                return first
        return None

    def next_at(self, now: float) -> float:
        """Return when :meth:`next_due` may return a request again; infinity if only an answer can change that."""
        if not self._waiting:
            return math.inf
        first, last = self._waiting[0], self._waiting[-1]
        moments = []
        if not last.is_asked:
            moments.append(max(last.next_at, self._last_polled_at + self._longest_s()))
        if not self._is_proven:
            moments.append(now if self._unproven else self._moved_at + _PROOF_SHARE * self._longest_s())
        if not first.is_asked:
            moments.append(max(first.next_at, self._measured_at + self._pause_s(now)))
        moments.extend(request.next_at for request in self._whose_turn_it_is(now) if not request.is_asked)
        rate = 0.0 if self._ends_explain_starts else self.rate()
        if rate and first.ticket is not None:
            until_turn_s = max(0.0, first.ticket + _TURN - self.left_by(now)) / rate
            moments.append(max(first.next_at, now + until_turn_s + 0.001) if not first.is_asked else math.inf)
        return min(moments, default=math.inf)

    def _next_unproven(self, now: float) -> PolledRequest | None:
        """Return the next request that was not polled since the queue moved, if the order is still not known."""
        if self._is_proven:
            return None
        if now >= self._moved_at + _PROOF_SHARE * self._longest_s():
            since, self._moved_at, self._left_by_last = self._moved_at, math.inf, None
            self._unproven.extend(r for r in self._waiting if r.alive_at is None or r.alive_at < since)
        while self._unproven:
            request = self._unproven.popleft()
            if request.is_waiting and _may_be_polled(request, now):
                return request
        return None

    def _whose_turn_it_is(self, now: float) -> Iterator[PolledRequest]:
        """Yield the requests that have probably started."""
        allowed = max(len(self._ends), self._probes)
        left = self.left_by(now)
        for place, request in enumerate(self._waiting):
            if place >= allowed and (request.ticket is None or request.ticket + _TURN > left):
                return
            yield request

    def _pause_s(self, now: float) -> float:
        """Return the time between two measures: most of what one start takes."""
        if self._ends_explain_starts:
            return self._longest_s()
        rate = self.rate()
        return max(self._gap_s(now), min(0.8 / rate, self._longest_s())) if rate else self._gap_s(now)

    # -- answers -------------------------------------------------------------------------------------------

    def on_queued(self, request: PolledRequest, position: int | None, now: float) -> None:
        """Record that a request in the estimate is still queued, and its position."""
        assert request.ticket is not None
        request.next_at = now + self._gap_s(now)
        if position is None:
            self._on_bound(request, now)
            return
        moved_back = request.position is not None and position > request.position
        request.position = position
        position = self._places_ahead(position)
        if self._left is None or moved_back or not self._is_consistent(request, position):
            if self._left is None:
                self._left = request.ticket - position
            self._move(request, position + max(self._left, self.left_by(now)))
            self._spread(request)
        request.is_measured = True
        if request is self._waiting[0]:
            self._ends.clear()
        left = request.ticket - position
        if request is self._waiting[-1] and self._moved_at < now and left > self._left_at_first:
            self._left_by_last = left
        self._see(request.ticket - position, now)
        self._prove_order()

    def on_new(self, request: PolledRequest, position: int, now: float) -> None:
        """Record that a request outside the estimate is queued: it was never polled, or it ran before."""
        request.position = position
        request.is_measured = True
        request.next_at = now + self._gap_s(now)
        position = self._places_ahead(position)
        if self._left is None:
            self._left = self._last_ticket + 1 if self._waiting else 0.0
        self.add(request, position + max(self._left, self.left_by(now)))
        assert request.ticket is not None
        self._see(request.ticket - position, now)

    def on_start(self, request: PolledRequest, now: float) -> tuple[float | None, float | None]:
        """Remove a request that has started, and return when it last waited and when it probably started.

        None where that is not known.
        """
        assert request.ticket is not None
        ahead = bisect.bisect_left(self._waiting, _order(request), key=_order)
        if ahead > self._slack() and request.ticket > self.left_by(now) + self._slack():
            first = self._waiting[0]
            if first.alive_at is not None and now - first.alive_at < self._longest_s():
                self._contradicting.update(request.request_id for request in self._waiting[:_CONTRADICTIONS])
        waited_until = self._waited_until(request)
        end = self._match_start()
        self._measure(request.ticket + 1, now)
        self.remove(request)
        self._prove_order()
        if end is not None and (waited_until is None or end[1] > waited_until):
            waited_until = max(end[0], end[0] if waited_until is None else waited_until)
            return waited_until, (waited_until + end[1]) / 2
        return waited_until, None if waited_until is None else (waited_until + now) / 2

    def on_end(self, not_before: float, now: float) -> None:
        """Record that a request of ours ended: if the account is at its limit, another one started at that moment."""
        if not self._waiting:
            return
        self._on_move(now)
        if self._starts_ahead:
            self._starts_ahead -= 1
        else:
            self._ends.append((not_before, now))

    def _on_move(self, now: float) -> None:
        """Record that the queue has moved: until its order is known, each request may be running."""
        if self._has_positions and not self._is_proven and self._moved_at == math.inf:
            self._moved_at = now
            self._last_polled_at = min(self._last_polled_at, now - 0.5 * self._longest_s())

    def _prove_order(self) -> None:
        """Compare how far the first one has moved with how many have left by a poll of the last one.

        Where any request may be next, the first one stays. A few that overtake each other prove nothing.
        """
        if self._left_by_last is not None and self._waiting:
            first, left = self._waiting[0].ticket or 0.0, self._left_by_last - self._left_at_first
            self._is_proven = self._is_proven or 2 * (first - self._left_at_first) >= left

    def _match_start(self) -> tuple[float, float] | None:
        """Return the time of the end that made room for a start just found, if it was an end of ours."""
        self._ends_explain_starts = bool(self._ends)
        if self._ends:
            return self._ends.popleft()
        self._starts_ahead += 1
        if not self._has_positions:
            self._probes = 2 * self._probes or 2
        return None

    def _waited_until(self, request: PolledRequest) -> float | None:
        """Return when a request that has started was last known to wait: not before others with smaller tickets."""
        own = request.queued_until
        if request.ticket is None or not self._seen_waiting:
            return own
        seen_at, left = self._seen_waiting
        return own if left > request.ticket + 1 else max(seen_at, -math.inf if own is None else own)

    def is_contradicted(self) -> bool:
        """Return whether polls have shown that the queue is not in order."""
        return len(self._contradicting) >= min(_CONTRADICTIONS, max(1, len(self._waiting)))

    def _is_consistent(self, request: PolledRequest, position: int) -> bool:
        """Compare a position with how far the queue has moved; record it if the two contradict each other."""
        assert self._left is not None
        assert request.ticket is not None
        left = request.ticket - position
        if left < self._left - self._slack():
            if request.is_measured or request.ticket < self._left:
                self._contradicting.add(request.request_id)
            return False
        if left > self._left + self._slack() and not request.is_measured:
            # Requests of others lie between ours, so a measurement far behind this one is not precise enough.
            for other in self._waiting:
                other.is_measured = False
            self._left, self._last_polled_at = left, -math.inf
            self._measures.clear()
        return True

    def _places_ahead(self, position: int) -> int:
        """Return how many are ahead: the first in the queue has position 0 or 1, which shows once it is polled."""
        if position == 0 and self._first_position == 1:
            self._first_position = 0
            if self._left is not None:
                self._left -= 1
            self._measures = deque(((at, left - 1) for at, left in self._measures), _REMEMBERED_MEASURES)
        return position - self._first_position

    def _on_bound(self, request: PolledRequest, now: float) -> None:
        """Record a queued request without a position: the queue has not moved past it."""
        assert request.ticket is not None
        if self._left is not None and self._left > request.ticket + self._slack():
            self._contradicting.add(request.request_id)
        self._probes = 0
        if request is self._waiting[0]:
            self._ends.clear()
            self._measured_at = now

    def _see(self, left: float, now: float) -> None:
        self._measure(left, now)
        self._starts_ahead = self._probes = 0
        if not self._has_positions:
            self._has_positions = True
            self._left_at_first = min(0.0, left)
            self._on_move(now)  # those that started before are not known
        self._seen_waiting = now, self._left or left

    def _measure(self, left: float, now: float) -> None:
        if self._left is not None and left > self._left:
            self._on_move(now)
        self._left = left if self._left is None else max(self._left, left)
        self._measured_at = now
        if self._measures and self._measures[-1][0] >= now:
            self._measures[-1] = (now, self._left)
        else:
            self._measures.append((now, self._left))

    def _slack(self) -> float:
        return max(2.0, min(_LARGEST_SLACK, len(self._waiting) // 8)) + _SLACK_S * self.rate()


def _order(request: PolledRequest) -> tuple[float, tuple[float, int]]:
    assert request.ticket is not None
    return request.ticket, request.number


def _may_be_polled(request: PolledRequest, now: float) -> bool:
    return not request.is_asked and request.next_at <= now
