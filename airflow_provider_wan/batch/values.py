# SPDX-License-Identifier: Apache-2.0
"""What a batch is told about its pace, what it hands to a wait, and what it remembers over one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from airflow_provider_wan.batch.results import ImageResult

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much at once, and for how long.

    :param max_in_flight: requests submitted and not over, at most.
    :param retries_per_image: how often a failed request is followed by another.
    :param deadline: the absolute end, in unix seconds.
    :param submit_threads: submits at the same time.
    :param landing_threads: landings at the same time; each holds up to one piece of its video in memory.
    :param look_threads: status calls at the same time, in a worker that watches.
    :param progress_every_s: seconds between two lines of progress.
    :param outage_s: for how long nothing but outages may answer to submits before the batch gives up.
    """

    deadline: float
    max_in_flight: int = 100
    retries_per_image: int = 0
    submit_threads: int = 8
    landing_threads: int = 4
    look_threads: int = 6
    progress_every_s: float = 30.0
    outage_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Pause:
    """There is nothing to do but wait.

    :param request_ids: what is in flight, in order of submission.
    :param started: which of them run, and since when.
    :param learned: what the watch has learned.
    :param not_later_than: when there is something to do again in any case, in unix seconds.
    :param look_at: of those that were over by their status and had no result, by request id: before when, in unix
        seconds, nobody needs to look at them again.
    """

    request_ids: tuple[str, ...]
    started: Mapping[str, int]
    learned: Mapping[str, Any]
    not_later_than: float | None = None
    look_at: Mapping[str, float] = field(default_factory=dict)


class RetryState(NamedTuple):
    """Something that fails for now, and is tried again.

    :param times: how often in a row it has failed.
    :param since: when it failed first, in unix seconds.
    :param at: when it is tried again, in unix seconds.
    """

    times: int = 0
    since: float = 0.0
    at: float = 0.0

    def later(self, now: float, pause_s: float) -> RetryState:
        """Take in that it has failed once more."""
        return RetryState(self.times + 1, self.since if self.times else now, now + pause_s)


@dataclass(slots=True)
class Retries:
    """What fails for now.

    :param submits: all submits together: the API is out, or is asked for too much.
    :param images: images that can't be fetched, by fingerprint.
    :param results: requests that are over by their status and have no result, by request id.
    """

    submits: RetryState = field(default_factory=RetryState)
    images: dict[str, RetryState] = field(default_factory=dict)
    results: dict[str, RetryState] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give them as plain JSON values."""
        return {"submits": self.submits, "images": self.images, "results": self.results}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> Self:
        """Read what :meth:`as_dict` gave; what is missing is taken for none."""
        given = plain or {}
        images, results = (
            {one: RetryState(*again) for one, again in (given.get(name) or {}).items()}
            for name in ("images", "results")
        )
        return cls(RetryState(*given.get("submits") or ()), images, results)


@dataclass(slots=True)
class Checkpoint:
    """What a batch that goes on in another process is told about its past.

    :param started_at: when this try began, in unix seconds.
    :param endings: how images have ended, as far as the journal does not tell.
    :param failures: failed requests of this try, by fingerprint.
    :param inherited: images whose request was bought by an earlier try, or by somebody else: if it fails, this try has
        not had its own yet.
    :param done_before: how many videos were there when it began.
    :param troubles: what fails for now: pauses get longer, and limits are met, over waits too.
    :param unwritten: ids of requests that were bought and that the journal does not name, by fingerprint.
    """

    started_at: float
    endings: dict[str, ImageResult] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    inherited: set[str] = field(default_factory=set)
    done_before: int | None = None
    troubles: Retries = field(default_factory=Retries)
    unwritten: dict[str, str] = field(default_factory=dict)


def pause_after_s(times: int) -> float:
    """Give the time to wait when something has failed so many times, 1 or more: twice as long each time, up to 60 s."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(times - 1, 10))
