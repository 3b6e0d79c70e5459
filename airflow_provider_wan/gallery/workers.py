# SPDX-License-Identifier: Apache-2.0
"""Threads of the gallery's own, and values that all viewers share.

Airflow's API server runs its routes in one pool of 40 threads. A bucket or an image host that answers slowly must not
hold those, so the gallery does all slow work in bounded pools of its own and refuses what does not fit.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: A value is kept at least this many times longer than it took to load: loading costs at most 5 % of a thread.
_KEEP_FACTOR = 20


class QueueFullError(Exception):
    """Too much work is waiting; try again later."""


class BoundedExecutor:
    """A thread pool that refuses work instead of queueing without end.

    :param name: prefix of the names of its threads.
    :param queued: number of calls that may wait for one of the threads.
    """

    def __init__(self, name: str, *, threads: int, queued: int) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._free = threading.BoundedSemaphore(threads + queued)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread of the pool.

        :raises QueueFullError: too many calls wait already.
        """
        if not self._free.acquire(blocking=False):
            raise QueueFullError("Too much work is waiting.")
        future = self._pool.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self._free.release())
        return future


class _Entry:
    """One value of a :class:`SharedCache`, with the lock of its loader."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Any = None
        self.is_loaded = False
        self.fresh_until = 0.0


class SharedCache:
    """Recently loaded values: each is loaded by one thread at a time, for all viewers.

    :param fresh_s: seconds until a value is loaded again.
    """

    def __init__(self, size: int, *, fresh_s: float) -> None:
        self._size = size
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[Any], T]) -> T:
        """Return a value, loading it first if it is not fresh.

        While another thread loads it again, the earlier value is returned.

        :param load: called with the earlier value, or None.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        if not entry.lock.acquire(blocking=not entry.is_loaded):
            earlier: T = entry.value
            return earlier
        try:
            started = time.monotonic()
            if not entry.is_loaded or started >= entry.fresh_until:
                entry.value = load(entry.value)
                entry.is_loaded = True
                ended = time.monotonic()
                entry.fresh_until = ended + max(self._fresh_s, _KEEP_FACTOR * (ended - started))
            value: T = entry.value
            return value
        finally:
            entry.lock.release()
