# SPDX-License-Identifier: Apache-2.0
"""The state at RunComfy of the requests that a page shows as in progress. Polling is free, and bounded here."""

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
_POLLS_AT_ONCE = 6
_POLL_FOR_S = 3.0
_KEPT = 5000

#: Connection id and request id.
RequestKey = tuple[str, str]


class RequestStates:
    """Polls requests, each at most every 8 seconds in this process, however many viewers there are.

    :param poll_for_s: seconds that one page may wait for it.
    """

    def __init__(self, poll_for_s: float = _POLL_FOR_S) -> None:
        self._poll_for_s = poll_for_s
        self._known: dict[RequestKey, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def texts(self, requests: Iterable[RequestKey]) -> dict[str, str]:
        """Return the text for each request by its id; one that could not be polled in time keeps its text."""
        requests = list(requests)
        now = time.monotonic()
        stale = [request for request in requests if now - self._polled_at(request) > _FRESH_S]
        stale.sort(key=self._polled_at)  # those skipped last time come first
        self._poll_all(stale, now + self._poll_for_s)
        with self._lock:
            known = {request: self._known.get(request, ("", 0.0))[0] for request in requests}
        return {request_id: text for (_, request_id), text in known.items() if text}

    def _polled_at(self, request: RequestKey) -> float:
        with self._lock:
            return self._known.get(request, ("", -math.inf))[1]

    def _poll_all(self, requests: list[RequestKey], deadline: float) -> None:
        from airflow_provider_wan.hooks.wan import WanHook

        hooks = {conn_id: WanHook(conn_id) for conn_id, _ in requests}

        def poll(request: RequestKey) -> None:
            if time.monotonic() < deadline:
                self._poll(hooks[request[0]], request)

        if requests:
            with ThreadPoolExecutor(_POLLS_AT_ONCE, "wan-gallery-poll") as pool:
                list(pool.map(poll, requests))

    def _poll(self, hook: WanHook, request: RequestKey) -> None:
        try:
            text = text_of(hook.get_status(request[1], retry=False))
        except Exception:  # no answer, or no such connection here: the page keeps the earlier text
            text = ""
        with self._lock:
            if len(self._known) > _KEPT:
                self._known.clear()
            before, _ = self._known.get(request, ("", 0.0))
            self._known[request] = (text or before, time.monotonic())


def text_of(status: RequestStatus) -> str:
    """Return a status as the page shows it."""
    if status.is_over:
        return "finished, landing next"
    if status.state is State.QUEUED and status.queue_position is not None:
        return f"queued, position {status.queue_position}"
    return str(status.state).lower()
