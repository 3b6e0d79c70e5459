# SPDX-License-Identifier: Apache-2.0
"""The state at RunComfy of the requests that a page shows as in progress. Polling is free, and bounded here."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from airflow_provider_wan.gallery.workers import SharedCache
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus

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
        self._texts = SharedCache(_KEPT, fresh_s=_FRESH_S)

    def texts(self, requests: Iterable[RequestKey]) -> dict[str, str]:
        """Return the text for each request by its id, without those that could not be polled in time."""
        from airflow_provider_wan.hooks.wan import WanHook

        requests = list(requests)
        random.shuffle(requests)  # with too many for the time, each gets its turn
        hooks = {conn_id: WanHook(conn_id) for conn_id, _ in requests}
        deadline = time.monotonic() + self._poll_for_s

        def poll(request: RequestKey) -> str:
            if time.monotonic() >= deadline:
                return ""
            hook = hooks[request[0]]

            def load(earlier: str | None) -> str:
                try:
                    return text_of(hook.get_status(request[1], retry=False))
                except Exception:  # no answer, or no such connection here: the page keeps the earlier text
                    return earlier or ""

            return self._texts.get(request, load)

        with ThreadPoolExecutor(_POLLS_AT_ONCE, "wan-gallery-poll") as pool:
            found = zip(requests, pool.map(poll, requests), strict=True)
            return {request_id: text for (_, request_id), text in found if text}


def text_of(status: RequestStatus) -> str:
    """Return a status as the page shows it."""
    if status.is_over:
        return "finished, landing next"
    if status.state is State.QUEUED and status.queue_position is not None:
        return f"queued, position {status.queue_position}"
    return str(status.state).lower()
