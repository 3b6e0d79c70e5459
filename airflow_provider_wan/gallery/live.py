# SPDX-License-Identifier: Apache-2.0
"""What RunComfy says about the requests that a page shows as in progress: asking is free, and is bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus

_FRESH_S = 8.0
_ASK_FOR_S = 3.0
_KEPT = 5000


class Questions:
    """Asks for the state of requests, each at most every 8 seconds in this process, whoever looks."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def words(self, wanted: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Give what to show for each request; one that there was no time to ask for keeps what was known.

        :param wanted: request id and connection id of each.
        """
        deadline = time.monotonic() + _ASK_FOR_S
        words = {}
        for request_id, conn_id in wanted:
            word, at = self._known.get(request_id, ("", 0.0))
            if time.monotonic() - at > _FRESH_S and time.monotonic() < deadline:
                word = self._ask(request_id, conn_id) or word
            if word:
                words[request_id] = word
        return words

    def _ask(self, request_id: str, conn_id: str) -> str:
        from airflow_provider_wan.hooks.wan import WanHook

        try:
            word = word_of(WanHook(conn_id).get_status(request_id, retry=False))
        except WanError:
            word = ""
        except Exception:  # no such connection here: the page does without
            word = ""
        with self._lock:
            if len(self._known) > _KEPT:
                self._known.clear()
            self._known[request_id] = (word, time.monotonic())
        return word


def word_of(status: RequestStatus) -> str:
    """Say a status as the page does."""
    if status.is_over:
        return "finished, on its way"
    if status.state is State.QUEUED and status.queue_position is not None:
        return f"queued, position {status.queue_position}"
    return str(status.state).lower()
