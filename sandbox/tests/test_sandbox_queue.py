# SPDX-License-Identifier: Apache-2.0
"""The queue of an account, on a clock that is moved by hand."""

from __future__ import annotations

import pytest

from wan_sandbox.runcomfy.clock import Clock
from wan_sandbox.runcomfy.generations import Generation, Lane, Phase


class HandClock(Clock):
    def __init__(self) -> None:
        super().__init__(1.0)
        self.time = 0.0

    def now(self) -> float:
        return self.time


class Queue:
    """A lane whose generations end as soon as their time is over, and that remembers when."""

    def __init__(self, concurrency: int) -> None:
        self.clock = HandClock()
        self.lane = Lane(self.clock, concurrency=concurrency, on_finish=self._finish)
        self.finished: list[tuple[str, float]] = []

    def _finish(self, generation: Generation, moment: float) -> None:
        generation.phase = Phase.SUCCEEDED
        self.finished.append((generation.request_id, moment))

    def add(self, name: str, seconds: float, fate: str = "") -> Generation:
        generation = Generation(name, "default", "model", {}, seconds, 0.0, 0, fate=fate)
        self.lane.add(generation)
        return generation

    def at(self, moment: float) -> None:
        self.clock.time = moment
        self.lane.advance()


def test_so_many_run_and_the_rest_waits_in_order() -> None:
    queue = Queue(concurrency=2)
    names = [queue.add(name, 10) for name in "abcd"]
    assert [one.phase for one in names] == [Phase.RUNNING, Phase.RUNNING, Phase.QUEUED, Phase.QUEUED]
    assert [queue.lane.position(one) for one in names[2:]] == [0, 1]
    queue.at(10)
    assert [one.phase for one in names[2:]] == [Phase.RUNNING, Phase.RUNNING]


def test_a_late_look_gives_the_times_of_an_early_one() -> None:
    queue = Queue(concurrency=1)
    for name in "abc":
        queue.add(name, 10)
    queue.at(1000)
    assert queue.finished == [("a", 10), ("b", 20), ("c", 30)]


def test_who_leaves_the_queue_is_ahead_of_nobody() -> None:
    queue = Queue(concurrency=1)
    _, first, second, third = (queue.add(name, 10) for name in "abcd")
    assert queue.lane.cancel(first)
    assert [queue.lane.position(one) for one in (second, third)] == [0, 1]
    queue.at(10)
    assert (second.phase, queue.lane.position(third)) == (Phase.RUNNING, 0)


def test_only_what_waits_can_be_cancelled() -> None:
    queue = Queue(concurrency=1)
    running, waiting = queue.add("a", 10), queue.add("b", 10)
    assert not queue.lane.cancel(running)
    assert queue.lane.cancel(waiting)
    assert not queue.lane.cancel(waiting)


def test_a_stuck_one_in_the_queue_lets_others_pass_and_a_stuck_run_keeps_its_place() -> None:
    queue = Queue(concurrency=1)
    waits, runs, last = (
        queue.add("a", 1, "stuck_queue"),
        queue.add("b", 1, "stuck_running"),
        queue.add("c", 1),
    )
    queue.at(10_000)
    assert [one.phase for one in (waits, runs, last)] == [Phase.QUEUED, Phase.RUNNING, Phase.QUEUED]
    assert queue.lane.position(waits) == 0


@pytest.mark.parametrize("fate", ["", "stuck_queue", "stuck_running"])
def test_any_can_be_ended_at_once_and_makes_room(fate: str) -> None:
    queue = Queue(concurrency=1)
    one, other = queue.add("a", 100, fate), queue.add("b", 100)
    queue.lane.finish_now(one)
    assert (one.phase, other.phase) == (Phase.SUCCEEDED, Phase.RUNNING)


def test_a_running_one_can_be_stuck_later() -> None:
    queue = Queue(concurrency=1)
    one = queue.add("a", 10)
    queue.lane.stick(one)
    queue.at(10_000)
    assert one.phase is Phase.RUNNING
    queue.lane.finish_now(one)
    assert one.phase is Phase.SUCCEEDED


def test_more_room_starts_more_and_less_room_stops_nothing() -> None:
    queue = Queue(concurrency=1)
    names = [queue.add(name, 10) for name in "abc"]
    queue.lane.concurrency = 3
    queue.at(1)
    assert {one.phase for one in names} == {Phase.RUNNING}
    queue.lane.concurrency = 1
    queue.at(2)
    assert {one.phase for one in names} == {Phase.RUNNING}


def test_the_clock_goes_on_smoothly_when_its_speed_changes() -> None:
    clock = Clock(1000.0)
    before = clock.now()
    clock.set_speed(1.0)
    between = clock.now()
    clock.set_speed(100_000.0)
    assert before <= between <= clock.now()
