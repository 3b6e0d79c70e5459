# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next look at a request, by what is known of how long its model takes. Pure."""

from __future__ import annotations

from airflow_provider_wan.polling.durations import DurationEstimate
from airflow_provider_wan.polling.polled_request import PolledRequest, PollPolicy

#: Between two looks at a running request, and between two probes, as shares of the usual time.
_LOOK_SHARE = 0.1
_PROBE_SHARE = 0.06
#: Without any end seen, the queue is probed this often, as a share of the usual time.
_CALM_PROBE_SHARE = 0.4
#: Where others' requests stand between ours, their ends are not seen.
_FOREIGN_PROBE_SHARE = 0.2
_SHORTEST_S = 0.4
_FIRST_LOOK_S = 2.0
#: As long as no duration is known: a few are looked at closely, the rest seldom.
_SAMPLES = 8
_SAMPLE_GROWTH = 1.2
_BLIND_LOOK_S = 30.0
_BLIND_USUAL_S = 20.0
_LONGEST_PAUSE_S = 60.0


class PollIntervals:
    """Says how long to wait, each time.

    :param durations: what is known; goes on learning elsewhere.
    """

    def __init__(self, policy: PollPolicy, durations: DurationEstimate) -> None:
        self._policy = policy
        self._durations = durations
        self._samples = 0

    def first_look_at(self, one: PolledRequest, started_at: float) -> float:
        """Give the moment at which one that has started is looked at first."""
        if self._durations.is_known:
            return started_at + self._durations.first_look_s()
        if self._samples < _SAMPLES:
            self._samples += 1
            one.is_sample = True
            return started_at + _FIRST_LOOK_S
        return started_at + _BLIND_LOOK_S

    def running_s(self, one: PolledRequest, now: float) -> float:
        """Give the time between two looks at a running request."""
        if self._durations.is_known:
            return max(_SHORTEST_S, _LOOK_SHARE * self._durations.usual_s)
        if one.started_at is None:
            return _FIRST_LOOK_S
        age_s = max(0.0, now - one.started_at)
        if one.is_sample:
            return max(_FIRST_LOOK_S / 2, (_SAMPLE_GROWTH - 1) * age_s)
        return max(_BLIND_LOOK_S, age_s)

    def queued_s(self, count: int) -> float:
        """Give the time between two looks at a queued request where each of so many is looked at for itself."""
        fair_s = 2.0 * count / self._policy.looks_per_second
        usual_s = self._durations.usual_s if self._durations.is_known else _BLIND_USUAL_S
        return max(_FIRST_LOOK_S, _LOOK_SHARE * usual_s, fair_s)

    def odd_s(self, one: PolledRequest, now: float) -> float:
        """Give the time to wait after a word that nobody knows."""
        return max(_FIRST_LOOK_S, self.running_s(one, now))

    def not_found_s(self) -> float:
        """Give the time between two looks at one that the API does not know."""
        return self._policy.gone_after_s / max(1, self._policy.gone_after_times - 1)

    def failed_s(self, one: PolledRequest, now: float) -> float:
        """Give the time to wait after a look that failed."""
        return min(_LONGEST_PAUSE_S, self.running_s(one, now) * 2.0 ** min(one.errors - 1, 6))

    def probe_s(self, *, oldest_s: float, has_ends: bool, has_others: bool) -> float:
        """Give the time between two rounds of probing the queue.

        :param oldest_s: for how long the first in the queue has waited.
        :param has_ends: whether any of ours has ended since the last round.
        :param has_others: whether others' requests stand between ours.
        """
        if not self._durations.is_known:
            return max(_FIRST_LOOK_S, _LOOK_SHARE * oldest_s)
        share = _FOREIGN_PROBE_SHARE if has_others else _PROBE_SHARE if has_ends else _CALM_PROBE_SHARE
        return max(_SHORTEST_S, share * self._durations.usual_s)

    def tail_s(self) -> float:
        """Give the time between two looks at the last in the queue: has it started before its elders?"""
        return self._durations.usual_s if self._durations.is_known else _BLIND_LOOK_S

    def unseen_start_at(self, one: PolledRequest, now: float) -> float:
        """Guess when one has started whose start nobody saw."""
        return now - _PROBE_SHARE * self._durations.usual_s if self._durations.is_known else one.submitted_at
