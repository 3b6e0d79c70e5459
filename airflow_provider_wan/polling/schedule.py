# SPDX-License-Identifier: Apache-2.0
"""When each request is looked at next, and how many looks the API may be asked for now. Pure."""

from __future__ import annotations

import heapq

from airflow_provider_wan.exceptions import WanError, WanTransientError
from airflow_provider_wan.polling.polled_request import PolledRequest

_LONGEST_PAUSE_S = 60.0
#: So many failed looks in a row are not one request's trouble: the API is out.
_OUTAGE_AFTER = 5


class PollSchedule:
    """Keeps the moments of looks, a rate, and a pause while the API is out or asks for one.

    :param looks_per_second: the most looks a second; as many can be saved up.
    """

    def __init__(self, looks_per_second: float) -> None:
        self._rate = looks_per_second
        self._moments: list[tuple[float, tuple[float, int], PolledRequest]] = []
        self._credit = looks_per_second
        self._credit_at: float | None = None
        self._errors = 0
        self._pause_until = 0.0

    def schedule(self, one: PolledRequest, at: float) -> None:
        """Look at a request at this moment, and not at the one that was set before."""
        one.next_at = at
        heapq.heappush(self._moments, (at, one.number, one))

    def next_due(self, now: float) -> PolledRequest | None:
        """Give, and take off, a request that is to be looked at by now."""
        while self._moments and self._moments[0][0] <= now:
            at, _, one = heapq.heappop(self._moments)
            if _is_current(at, one):
                return one
        return None

    def first_at(self) -> float | None:
        """Give the next moment at which any is to be looked at."""
        while self._moments and not _is_current(self._moments[0][0], self._moments[0][2]):
            heapq.heappop(self._moments)
        return self._moments[0][0] if self._moments else None

    # -- rate and outages ----------------------------------------------------------------------------------

    def may_look(self, now: float) -> bool:
        """Tell whether one more look may be made."""
        if self._credit_at is not None:
            more = max(0.0, now - self._credit_at) * self._rate
            self._credit = min(max(1.0, self._rate), self._credit + more)
        self._credit_at = now
        return now >= self._pause_until and self._credit >= 1

    def looked(self) -> None:
        """Count a look."""
        self._credit -= 1

    def not_before(self, wished_at: float, now: float) -> float:
        """Give the first moment from the wished one on at which a look may be made."""
        at = max(wished_at, self._pause_until)
        return at if self._credit >= 1 else max(at, now + (1 - self._credit) / self._rate)

    def on_answer(self) -> None:
        """Take in that the API answers."""
        self._errors = 0

    def on_outage(self, error: WanError, now: float) -> None:
        """Take in that a look failed, and pause if that is not one request's trouble."""
        self._errors += 1
        if isinstance(error, WanTransientError) and error.retry_after_s:
            self._pause_until = max(self._pause_until, now + error.retry_after_s)
        elif self._errors >= _OUTAGE_AFTER:
            pause_s = 0.5 * 2 ** min(self._errors - _OUTAGE_AFTER, 8)
            self._pause_until = now + min(_LONGEST_PAUSE_S, pause_s)


def _is_current(at: float, one: PolledRequest) -> bool:
    return not one.is_forgotten and not one.is_asked and one.next_at == at
