# SPDX-License-Identifier: Apache-2.0
"""Which of our requests wait at the API, as far as few looks can tell. No I/O, clock or dice.

Requests are believed to start in the order of their submission. One look at a queued one then tells how many before
it have started: its place in our order less its ``queue_position``. Such a look is a *probe*; one *round* of one or a
few probes finds out where the queue begins. Where positions tell nothing, since the API gives none or others' requests
stand between ours, a round searches for the first that waits.

The belief can be wrong. A request that runs or ends before one of its elders has started shows that the queue is not
in order, unless it has only overtaken its neighbours.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping

from airflow_provider_wan.polling.intervals import PollIntervals
from airflow_provider_wan.polling.polled_request import PolledRequest

_Number = tuple[float, int]


class QueueEstimate:
    """Holds those that are believed to wait, in order, and says which of them to probe.

    :param slack: as many neighbours may stand in another order than they were submitted in.
    :param watched: all that is watched, the running ones too; kept by the caller.
    :param begin: is told ``(one, started_at, now)`` of each that has started.
    :param give_up: is told ``(now)`` when the queue turns out not to be in order.
    """

    def __init__(
        self,
        patience: PollIntervals,
        *,
        slack: int,
        watched: Mapping[str, PolledRequest],
        begin: Callable[[PolledRequest, float, float], None],
        give_up: Callable[[float], None],
        in_order: bool = True,
    ) -> None:
        self.in_order = in_order
        #: When requests of ours ended, since the last round: others have started then.
        self.ends: list[float] = []
        self._patience = patience
        self._most_slack = slack
        self._watched = watched
        self._begin = begin
        self._give_up = give_up
        self._waiting: list[PolledRequest] = []
        self._probe: PolledRequest | None = None
        self._probed_at: float | None = None
        self._rounds = 0
        self._round_goes_on = False
        self._probe_next = 0
        self._step = 1
        self._head_runs = False
        self._younger: _Number | None = None
        self._known_queued: _Number | None = None
        self._vacated: float | None = None
        self._tail_seen_at = float("-inf")
        #: The position that the first in the queue has: 0 or 1, as the API counts.
        self._base: int | None = None
        self._has_others = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, one: PolledRequest) -> None:
        """Put one into its place."""
        one.is_waiting = True
        bisect.insort(self._waiting, one, key=lambda other: other.number)

    def remove(self, one: PolledRequest) -> None:
        """Take one out, if it is there; nothing is concluded from that."""
        if one.is_waiting:
            self._waiting.remove(one)
            one.is_waiting = False

    def set_apart(self, one: PolledRequest) -> None:
        """Take one out that the API does not know."""
        if one.is_waiting:
            self.remove(one)
            self._round_goes_on = False

    def answered(self, one: PolledRequest | None) -> None:
        """Take in that the look at one came back, whatever it brought."""
        if one is self._probe:
            self._probe = None

    def probe_again(self, one: PolledRequest) -> None:
        """Ask again, since a probe failed: whoever stands there then."""
        self._probe_next = self._place(one.number)

    # -- which one to probe --------------------------------------------------------------------------------

    def probe_at(self, now: float) -> float | None:
        """Give the moment of the next probe; None if there is nothing to probe, or a probe is on its way."""
        if not self.in_order or not self._waiting or self._probe is not None:
            return None
        if self._round_goes_on or self._probed_at is None:
            return now
        return self._probed_at + self._patience.probe_s(
            oldest_s=now - self._waiting[0].submitted_at,
            has_ends=bool(self.ends),
            has_others=self._has_others,
        )

    def next_probe(self, now: float) -> PolledRequest | None:
        """Give the request to probe now, and count on its answer."""
        at = self.probe_at(now)
        if at is None or now < at:
            return None
        index = self._probe_next if self._round_goes_on else self._begin_round(now)
        one = self._waiting[max(0, min(index, len(self._waiting) - 1))]
        if one.is_asked:
            return None
        self._probe = one
        return one

    def _begin_round(self, now: float) -> int:
        """Begin to find out how many have started; gives the place to look at first."""
        self._rounds += 1
        self._head_runs, self._step, self._younger, self._known_queued = False, 1, None, None
        self._round_goes_on = True
        last = len(self._waiting) - 1
        if self._probed_at is None:
            return last  # the last one's position tells about the whole queue
        if now - self._tail_seen_at > self._patience.tail_s():
            self._tail_seen_at = now
            return last  # has it started before its elders?
        if self._has_others or not self.ends or self._rounds % 4 == 0:
            return 0
        starts = len(self.ends)
        return starts + int(starts**0.5) + 1

    def _end_round(self) -> None:
        self._round_goes_on = False
        self.ends.clear()

    def _search_on(self) -> None:
        """Look between the elders that have started and the first that is known to wait."""
        if not self._waiting:
            self._end_round()
        elif self._known_queued is not None:
            self._probe_next = self._place(self._known_queued) // 2
        else:
            self._step *= 2
            self._probe_next = min(self._step - 1, len(self._waiting) - 1)

    def _place(self, number: _Number) -> int:
        """Give the place in our own order, from 0, of the request with this number."""
        return bisect.bisect_left(self._waiting, number, key=lambda one: one.number)

    # -- what was seen -------------------------------------------------------------------------------------

    def on_queued(self, one: PolledRequest, position: int | None, now: float) -> None:
        """Take in that one waits, and where."""
        if one.started_at is not None:  # it was believed to run, for a younger one did
            self._on_overtaken(one, now)
            return
        self._probed_at = now
        place = self._place(one.number)
        if place == 0:
            if self._younger is not None and not self._has_overtaken(self._younger, now):
                self._fall_into_disorder(now)
                return
            self._on_head_queued(position)
            self._end_round()
            return
        if position is not None:
            self._mark_started(place - position + (self._base or 0), now)
        self._known_queued = one.number
        if position is not None and not self._has_others and self._base is not None:
            self._end_round()
        elif self._younger is None and not self._head_runs:
            self._probe_next = 0
        else:
            self._search_on()

    def on_start(self, one: PolledRequest, now: float) -> None:
        """Take in that one that was believed to wait has started; its elders then have too, if order holds."""
        self._probed_at = now
        place = self._place(one.number)
        if place == 0 and self._known_queued is not None and not self._head_runs:
            self._has_others = True  # the positions behind it told that it waits: others stand between
        if place > 0 and not self._head_runs:
            self._younger = one.number
            self._probe_next = 0  # is its eldest running too? else the queue is not in order
            return
        self._head_runs = True
        if self._younger is not None:
            place = max(place, self._place(self._younger) - 1)
            if place + 1 < len(self._waiting) and self._waiting[place + 1].number == self._younger:
                place += 1
            self._younger = None
        self._mark_started(place + 1, now)
        self._search_on()

    def _on_overtaken(self, one: PolledRequest, now: float) -> None:
        """It waits, though others that were submitted after it have started; a few may have overtaken it."""
        younger = sum(
            1
            for other in self._watched.values()
            if other.started_at is not None and not other.is_apart and other.number > one.number
        )
        if younger > self._slack():
            self._fall_into_disorder(now)
            return
        self._vacated, one.started_at = one.started_at, None
        self.add(one)
        self._round_goes_on = False

    def _slack(self) -> int:
        return min(
            self._most_slack, max(8, len(self._watched) // 8)
        )  # in a few, looking at each costs little

    def _has_overtaken(self, number: _Number, now: float) -> bool:
        """Take one that runs before its eldest as overtaking its neighbours; false if it was too far behind."""
        place = self._place(number)
        if place > self._slack():
            return False
        if place < len(self._waiting) and self._waiting[place].number == number:
            one = self._waiting.pop(place)
            self._begin_one(one, now if self._vacated is None else self._vacated, now)
            self._vacated = None
        return True

    def _on_head_queued(self, position: int | None) -> None:
        """Our first one waits: what its position says beyond the least ever seen are others' requests."""
        if position is None:
            self._has_others = True  # positions tell nothing here: find the first one that waits by looking
            return
        self._base = position if self._base is None else min(self._base, position)
        self._has_others = position > self._base

    def _mark_started(self, count: int, now: float) -> None:
        """The first so many of the queue have started, most likely when others ended."""
        count = max(0, min(count, len(self._waiting)))
        begun, self._waiting = self._waiting[:count], self._waiting[count:]
        ends = sorted(self.ends)
        for index, one in enumerate(begun):
            behind = len(begun) - index
            moment = (
                ends[len(ends) - behind] if len(ends) >= behind else self._patience.unseen_start_at(one, now)
            )
            self._begin_one(one, max(one.submitted_at, min(moment, now)), now)

    def _begin_one(self, one: PolledRequest, started_at: float, now: float) -> None:
        one.is_waiting = False
        self._begin(one, started_at, now)

    def _fall_into_disorder(self, now: float) -> None:
        if self.in_order:
            self.in_order = False
            self._probe, self._round_goes_on = None, False
            self._give_up(now)
