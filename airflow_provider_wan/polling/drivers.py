# SPDX-License-Identifier: Apache-2.0
"""Make the polls that :class:`.poller.RequestPoller` decides, in a worker or on the event loop of a triggerer.

In a triggerer all single waits of a connection share one set. A task of the set does the polling, in a context of its
own; each trigger awaits its own request, and writes its own log lines, since Airflow finds the log of a trigger by the
context that a line is written in.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from logging import Logger
from typing import TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_wan.exceptions import WanError, WanTransientError
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.hooks.wan import WanAsyncHook, WanHook
from airflow_provider_wan.polling.poller import RequestPoller
from airflow_provider_wan.polling.schedule import DurationEstimate, policy_of
from airflow_provider_wan.polling.wait import Call, Over, RequestWait, WaitSet

_T = TypeVar("_T")
_LONGEST_SLEEP_S = 5.0
#: The loop of a set runs at most once in so many seconds: answers that come together are handled together.
_TICK_S = 0.05
#: Single waits are limited by their own intervals, and by the connection's ``requests_per_second``.
_POLLS_PER_SECOND = 2000.0
_POLLS_AT_ONCE = 100


def as_wan_error(error: Exception, request_id: str) -> WanError:
    """Return any error of a poll as a WanError: an outage of a secrets backend must not end a paid wait."""
    if isinstance(error, WanError):
        return error
    text = f"Polling request {request_id} failed before anything was sent ({type(error).__name__})."
    return WanTransientError(text, request_id=request_id)


# -- in a worker -------------------------------------------------------------------------------------------


def wait_in_worker(hook: WanHook, wait: RequestWait, log: Logger, *, stop: threading.Event) -> Over | None:
    """Wait in this process.

    :param stop: set from a signal handler to end the wait; then None is returned.
    """
    waits = WaitSet(RequestPoller(policy_of(None)))
    waits.add(wait, time.time())
    while not stop.is_set():
        now = time.time()
        for request_id, call in waits.due(now, 1):
            _ask_in_worker(hook, waits, request_id, call)
        for line in wait.messages.drain():
            log.info(line)
        if wait.over is not None:
            return wait.over
        now = time.time()
        stop.wait(min(_LONGEST_SLEEP_S, max(0.0, waits.next_at(now) - now)))
    return None


def _ask_in_worker(hook: WanHook, waits: WaitSet, request_id: str, call: Call) -> None:
    try:
        waits.poller.use_policy(policy_of(hook.settings))
        if call == "status":
            waits.on_status(hook.get_status(request_id, retry=False), time.time())
        else:
            waits.on_result(hook.get_result(request_id, retry=False), time.time())
    except Exception as error:
        waits.on_error(request_id, call, as_wan_error(error, request_id), time.time())


# -- in a triggerer ----------------------------------------------------------------------------------------


async def poll_until(
    is_over: Callable[[float], bool],
    *,
    due: Callable[[float, int], Sequence[_T]],
    next_at: Callable[[float], float],
    ask: Callable[[_T], Awaitable[None]],
    changed: asyncio.Event,
    at_once: int,
) -> None:
    """Poll until every wait is over.

    :param is_over: whether every wait is over at a given time.
    :param due: returns the polls to make at a given time, up to a limit.
    :param next_at: returns when to call ``due`` and ``is_over`` again.
    :param ask: makes one poll and handles its answer; never raises.
    :param changed: set by others when ``due`` may return more.
    :param at_once: the maximum number of concurrent calls.
    """
    asking: set[asyncio.Task[None]] = set()

    def done(task: asyncio.Task[None]) -> None:
        asking.discard(task)
        changed.set()

    try:
        while not is_over(now := time.time()):
            for what in due(now, at_once - len(asking)):
                task = asyncio.ensure_future(ask(what))
                asking.add(task)
                task.add_done_callback(done)
            sleep_s = _LONGEST_SLEEP_S if len(asking) >= at_once else next_at(now) - now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_LONGEST_SLEEP_S, max(_TICK_S, sleep_s))):
                    await changed.wait()
                    await asyncio.sleep(_TICK_S)
            changed.clear()
    finally:
        for task in list(asking):
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


class SharedWaits:
    """All single waits of one connection on one event loop.

    :param wan_conn_id: the connection.
    :param durations: how long generations take, as earlier waits of the connection have learned.
    """

    def __init__(self, wan_conn_id: str, durations: DurationEstimate) -> None:
        self._conn_id = wan_conn_id
        self.durations = durations
        policy = policy_of(None, polls_per_second=_POLLS_PER_SECOND)
        self._waits = WaitSet(RequestPoller(policy, durations=durations))
        self._events: dict[RequestWait, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._settings: WanSettings | None = None

    async def wait(self, wait: RequestWait, log: Logger) -> Over:
        """Wait for one request; its log lines are written by this task."""
        event = self._events[wait] = asyncio.Event()
        self._waits.add(wait, time.time())
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._poll(), context=contextvars.Context())
        try:
            while True:
                await event.wait()
                event.clear()
                for line in wait.messages.drain():
                    log.info(line)
                if wait.over is not None:
                    return wait.over
                if self._task.done():
                    self._task.result()
                    raise RuntimeError(f"The polls of connection {self._conn_id} have stopped.")
        finally:
            await self._leave(wait)

    async def _leave(self, wait: RequestWait) -> None:
        del self._events[wait]
        self._waits.remove(wait)
        if not self._events and self._task is not None:  # the last one closes the client
            task, self._task = self._task, None
            # The old event refers to the loop. It is replaced before the await, since a wait that joins meanwhile must
            # wake the task that it starts.
            self._changed = asyncio.Event()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _poll(self) -> None:
        try:
            async with WanAsyncHook(self._conn_id) as hook:
                await poll_until(
                    self._wake_changed,
                    due=self._waits.due,
                    next_at=self._waits.next_at,
                    ask=lambda what: self._ask(hook, *what),
                    changed=self._changed,
                    at_once=_POLLS_AT_ONCE,
                )
        finally:
            for event in self._events.values():
                event.set()

    def _wake_changed(self, now: float) -> bool:
        """Wake the tasks whose wait has changed. Returns false: the set itself is never over."""
        for wait in self._waits.changed:
            self._events[wait].set()
        self._waits.changed.clear()
        return False

    async def _ask(self, hook: WanAsyncHook, request_id: str, call: Call) -> None:
        try:
            settings = await hook.get_settings()
            if settings is not self._settings:
                self._settings = settings
                self._waits.poller.use_policy(policy_of(settings, polls_per_second=_POLLS_PER_SECOND))
            if call == "status":
                self._waits.on_status(await hook.get_status(request_id, retry=False), time.time())
            else:
                self._waits.on_result(await hook.get_result(request_id, retry=False), time.time())
        except Exception as error:
            self._waits.on_error(request_id, call, as_wan_error(error, request_id), time.time())


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, SharedWaits]] = WeakKeyDictionary()


async def wait_in_triggerer(wan_conn_id: str, wait: RequestWait, log: Logger) -> Over:
    """Wait on an event loop, in the set that all waits of this connection share."""
    sets = _shared.setdefault(asyncio.get_running_loop(), {})
    if wan_conn_id not in sets:
        sets[wan_conn_id] = SharedWaits(wan_conn_id, DurationEstimate())
    return await sets[wan_conn_id].wait(wait, log)
