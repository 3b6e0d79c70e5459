# SPDX-License-Identifier: Apache-2.0
"""What RunComfy says about the requests that a page shows as in progress: asking is free, and is bounded."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook

_FRESH_S = 8.0
_ASK_AT_ONCE = 6
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
        wanted = list(wanted)
        now = time.monotonic()
        stale = [one for one in wanted if now - self._asked_at(one[0]) > _FRESH_S]
        stale.sort(key=lambda one: self._asked_at(one[0]))  # whoever had no turn last time comes first
        self._ask_all(stale, now + _ASK_FOR_S)
        with self._lock:
            known = {request_id: self._known.get(request_id, ("", 0.0))[0] for request_id, _ in wanted}
        return {request_id: word for request_id, word in known.items() if word}

    def _asked_at(self, request_id: str) -> float:
        with self._lock:
            return self._known.get(request_id, ("", -math.inf))[1]

    def _ask_all(self, wanted: list[tuple[str, str]], deadline: float) -> None:
        from airflow_provider_wan.hooks.wan import WanHook

        hooks = {conn_id: WanHook(conn_id) for _, conn_id in wanted}

        def ask(request: tuple[str, str]) -> None:
            request_id, conn_id = request
            if time.monotonic() < deadline:
                self._ask(hooks[conn_id], request_id)

        if wanted:
            with ThreadPoolExecutor(_ASK_AT_ONCE, "wan-gallery") as pool:
                list(pool.map(ask, wanted))

    def _ask(self, hook: WanHook, request_id: str) -> None:
        try:
            word = word_of(hook.get_status(request_id, retry=False))
        except Exception:  # no answer, or no such connection here: the page does without
            word = ""
        with self._lock:
            if len(self._known) > _KEPT:
                self._known.clear()
            before, _ = self._known.get(request_id, ("", 0.0))
            self._known[request_id] = (word or before, time.monotonic())


def word_of(status: RequestStatus) -> str:
    """Say a status as the page does."""
    if status.is_over:
        return "finished, on its way"
    if status.state is State.QUEUED and status.queue_position is not None:
        return f"queued, position {status.queue_position}"
    return str(status.state).lower()
