# SPDX-License-Identifier: Apache-2.0
"""Whether somebody who claimed a video may still be at its POST, and the wait beside such a claim."""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger

from airflow_provider_wan.durable.api import Api
from airflow_provider_wan.durable.journal import Journal, VersionedRecord
from airflow_provider_wan.durable.record import Record

#: A claim is believed to be alive for as long as its POST may take, from the claim on, and this much longer, in
#: seconds: that is for writing the id.
CLAIM_MARGIN_S = 5.0
_FIRST_NAP_S = 0.1
_LONGEST_NAP_S = 2.0


class ClaimWatch:
    """What one submission knows of other people's claims.

    :param hook: the API, for how long a submit takes.
    """

    def __init__(
        self, hook: Api, journal: Journal | None, log: Logger, *, sleep: Callable[[float], None]
    ) -> None:
        #: A POST may leave this long after its claim at the latest, and is answered, or lost, as much later.
        self.send_within_s = hook.submit_takes_at_most_s
        self._window_s = self.send_within_s + hook.submit_takes_at_most_s + CLAIM_MARGIN_S
        self._journal = journal
        self._log = log
        self._sleep = sleep
        self._seen: dict[str, float] = {}
        self._told: set[str] = set()

    def may_be_alive(self, held: VersionedRecord | None) -> bool:
        """Tell whether a record is a claim whose writer may still be at its POST."""
        if self._journal is None or held is None or held.record.request_id is not None:
            return False
        if self._seen_for_s(held.record) > self._window_s:
            return False
        return self._journal.age_s(held) <= self._window_s

    def nap_beside(self, record: Record) -> None:
        """Sleep a little before looking again at somebody else's claim, the longer the longer it stands."""
        if record.claim not in self._told:
            self._told.add(record.claim)
            self._log.info(
                "Somebody claimed this video at %s and has not written a request id. Waiting up to %.0f s for it.",
                record.claimed_at,
                self._window_s,
            )
        self._sleep(min(max(_FIRST_NAP_S, self._seen_for_s(record) / 2), _LONGEST_NAP_S))

    def _seen_for_s(self, record: Record) -> float:
        now = time.monotonic()
        return now - self._seen.setdefault(record.claim, now)
