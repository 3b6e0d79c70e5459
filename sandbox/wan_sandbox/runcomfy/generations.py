# SPDX-License-Identifier: Apache-2.0
"""One paid generation, and the lane of an account in which generations wait for their turn and run.

Nothing runs in the background: a lane is advanced when it is read (:meth:`Lane.advance`), in steps that cost
no more the more requests there are, so that thousands of status calls a second stay cheap.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from wan_sandbox.runcomfy.clip import Clip
from wan_sandbox.runcomfy.clock import Clock


class Phase(StrEnum):
    """State of a generation."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether this is a final state."""
        return self not in {Phase.QUEUED, Phase.RUNNING}


@dataclass(slots=True, eq=False)
class Generation:
    """A request that was accepted.

    :param seconds: how long it runs, in sandbox time.
    :param fate: fault of the call ``generation`` that was chosen when it was bought, if any.
    :param img_url: address of its first image, whatever the model calls the field.
    :param clip: what its inputs ask for.
    :param video_key: stands for what determines the bytes of its video.
    :param image_path: file of its first image, if it was fetched and kept.
    """

    request_id: str
    account: str
    model_id: str
    inputs: dict[str, Any]
    seconds: float
    submitted_at: float
    price_micro: int
    clip: Clip = field(default_factory=Clip)
    img_url: str | None = None
    output_shape: str = "video"
    video_key: str = ""
    fate: str = ""
    fate_params: Mapping[str, Any] = field(default_factory=dict)
    image_path: Path | None = None
    phase: Phase = Phase.QUEUED
    number: int = -1
    finish: float = math.inf
    started_at: float | None = None
    finished_at: float | None = None
    noticed_at: float | None = None
    charged_micro: int = 0
    error: Any = None
    vanished: bool = False
    #: A generation ends when its video is encoded and its time is over.
    video_ready: bool = True
    time_is_over: bool = False
    status_calls: int = 0
    result_calls: int = 0
    results_told: int = 0

    def subject(self) -> dict[str, str]:
        """Return the texts by which a fault rule can be limited."""
        return {"prompt": str(self.inputs.get("prompt", "")), "img_url": str(self.img_url or "")}

    def to_json(self) -> dict[str, Any]:
        """Return it as the ledger shows it."""
        inputs = {name: _short(value) for name, value in self.inputs.items()}
        return {
            "request_id": self.request_id,
            "account": self.account,
            "model_id": self.model_id,
            "inputs": inputs,
            "img_url": _short(self.img_url),
            "prompt": inputs.get("prompt"),
            "at": self.submitted_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "noticed_at": self.noticed_at,
            "state": str(self.phase),
            "vanished": self.vanished,
            "cancelled": self.phase is Phase.CANCELLED,
            "charged_usd": self.charged_micro / 1e6,
            "status_calls": self.status_calls,
            "result_calls": self.result_calls,
        }


def _short(value: Any) -> Any:
    return value if not isinstance(value, str) or len(value) <= 2000 else value[:2000] + "..."


class Lane:
    """The queue of one account: first in, first out, so many running at the same time.

    :param clock: sandbox time.
    :param concurrency: how many run at the same time.
    :param on_finish: called with each generation whose time is over, and the moment.
    """

    def __init__(self, clock: Clock, *, concurrency: int, on_finish: Callable[[Generation, float], None]) -> None:
        self.concurrency = concurrency
        self._clock = clock
        self._on_finish = on_finish
        self._waiting: deque[Generation] = deque()
        self._running: list[tuple[float, int, Generation]] = []
        self._running_count = 0
        self._next_number = 0
        #: Sorted numbers of generations that left the queue out of turn: they do not count for positions.
        self._left: list[int] = []

    def add(self, generation: Generation) -> None:
        """Add a generation to the end of the queue, and start it if there is room."""
        self.advance()
        generation.number = self._next_number
        self._next_number += 1
        self._waiting.append(generation)
        self._fill(self._clock.now())

    def advance(self) -> None:
        """Advance to the present: finish the generations whose time is over, and start the next ones."""
        now = self._clock.now()
        while self._running and self._running[0][0] <= now:
            moment, _, generation = heapq.heappop(self._running)
            if generation.phase is not Phase.RUNNING or generation.finish != moment:
                continue  # moved to another time since
            self._running_count -= 1
            self._on_finish(generation, moment)
            self._fill(moment)
        self._fill(now)

    def position(self, generation: Generation) -> int:
        """Return the number of generations ahead in the queue."""
        head = self._waiting[0].number if self._waiting else self._next_number
        left = bisect.bisect_left(self._left, generation.number) - bisect.bisect_left(self._left, head)
        return max(0, generation.number - head - max(0, left))

    def cancel(self, generation: Generation) -> bool:
        """Remove a generation from the queue; False if it is not queued any more."""
        self.advance()
        if generation.phase is not Phase.QUEUED:
            return False
        bisect.insort(self._left, generation.number)
        generation.phase = Phase.CANCELLED
        return True

    def finish_now(self, generation: Generation) -> None:
        """End one at once, wherever it is."""
        self.advance()
        if generation.phase is Phase.QUEUED:
            bisect.insort(self._left, generation.number)
            self._start(generation, self._clock.now())
        self._reschedule(generation, self._clock.now())
        self.advance()

    def stick(self, generation: Generation) -> None:
        """Leave a generation running, or queued, forever."""
        self.advance()
        generation.fate = "stuck_queue" if generation.phase is Phase.QUEUED else "stuck_running"
        self._reschedule(generation, math.inf)

    def _reschedule(self, generation: Generation, moment: float) -> None:
        if generation.phase is Phase.RUNNING:
            generation.finish = moment
            heapq.heappush(self._running, (moment, generation.number, generation))

    def _fill(self, moment: float) -> None:
        while self._waiting and self._running_count < self.concurrency:
            generation = self._waiting.popleft()
            # A stuck one stays queued and lets the others pass.
            if generation.phase is Phase.QUEUED and generation.fate != "stuck_queue":
                self._start(generation, moment)

    def _start(self, generation: Generation, moment: float) -> None:
        generation.phase = Phase.RUNNING
        generation.started_at = self._clock.wall_time(moment)
        generation.finish = math.inf if generation.fate == "stuck_running" else moment + generation.seconds
        self._running_count += 1
        heapq.heappush(self._running, (generation.finish, generation.number, generation))
