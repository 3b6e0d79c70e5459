# SPDX-License-Identifier: Apache-2.0
"""The code of the racing and killed processes; a separate module, so that they import little."""

from __future__ import annotations

import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_provider_wan.durable.journal import BucketJournal, VersionedRecord
from airflow_provider_wan.durable.record import Record
from tests.durable.submission_support import a_video, bucket_journal, submission


class ReleasedAtTheClaim(BucketJournal):
    """Waits, before it writes a first claim, until the other process is there too."""

    def __init__(self, barrier: Any) -> None:
        opened = bucket_journal()
        super().__init__(opened._client, opened.where)
        self._barrier = barrier
        self.round_is_open = False

    def write(self, record: Record, *, replaces: VersionedRecord | None) -> VersionedRecord:
        if self.round_is_open:
            self.round_is_open = False
            self._barrier.wait(60)
        return super().write(record, replaces=replaces)


def race(barrier: Any, rounds: int, results: Any) -> None:
    """Obtain one video a round, at the same moment as the other process; tells what it obtained."""
    journal = ReleasedAtTheClaim(barrier)
    mine = submission(journal, sleep=lambda seconds: time.sleep(min(seconds, 0.01)))
    obtained = []
    for number in range(rounds):
        journal.round_is_open = True
        one = mine.obtain(a_video(f"round {number}"))
        obtained.append((one.request_id, one.how))
    results.put(obtained)


def want_all(prompts: list[str]) -> None:
    """Obtain several videos, each in a thread, until the process is killed."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda prompt: submission(bucket_journal()).obtain(a_video(prompt)), prompts))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    want_all(sys.argv[1:])
