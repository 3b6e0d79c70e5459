# SPDX-License-Identifier: Apache-2.0
"""What is known of one watched request, and how closely requests may be watched. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

_LOOKS_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """How closely to watch.

    :param looks_per_second: the most status calls a second.
    :param slack: as many neighbours may stand in another order than they were submitted in: submits overtake each
        other on their way.
    :param gone_after_times: how many 404001 in a row mean that a request is gone.
    :param gone_after_s: over how many seconds they must have come.
    """

    looks_per_second: float = 50.0
    slack: int = 16
    gone_after_times: int = 3
    gone_after_s: float = 60.0


class _Connection(Protocol):
    """What counts of a connection's settings."""

    @property
    def requests_per_second(self) -> float | None: ...

    @property
    def not_found_patience_s(self) -> float: ...


def policy_of(settings: _Connection | None) -> PollPolicy:
    """Give how closely to watch over a connection; status calls leave a part of its rate to submits and results.

    :param settings: of the connection; None: not known.
    """
    if settings is None:
        return PollPolicy()
    rate = settings.requests_per_second
    most = PollPolicy().looks_per_second
    looks = most if rate is None else min(most, _LOOKS_SHARE * rate)
    return PollPolicy(looks_per_second=looks, gone_after_s=settings.not_found_patience_s)


@dataclass(slots=True, eq=False)
class PolledRequest:
    """One request that is watched.

    :param number: when it was submitted, and a count: its place in the order.
    """

    request_id: str
    number: tuple[float, int]
    submitted_at: float
    started_at: float | None = None
    next_at: float = 0.0
    #: The last moment at which it was certainly not over.
    alive_at: float | None = None
    #: Whether it is believed to wait in the queue.
    is_waiting: bool = True
    #: Whether a look at it is on its way.
    is_asked: bool = False
    is_forgotten: bool = False
    #: Looked at closely, as long as no duration is known.
    is_sample: bool = False
    #: Looked at for itself: it says nothing about the queue, nor about how long a model takes.
    is_apart: bool = False
    errors: int = 0
    not_found_times: int = 0
    not_found_since: float = 0.0

    def was_not_found(self, now: float) -> int:
        """Take in that the API does not know it; tells how often in a row that is."""
        if not self.not_found_times:
            self.not_found_since = now
        self.not_found_times += 1
        return self.not_found_times
