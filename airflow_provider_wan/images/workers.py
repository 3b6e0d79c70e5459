# SPDX-License-Identifier: Apache-2.0
"""Work on many images in threads: in order, on all cores, with a bounded amount of them in memory.

Threads, not processes: Pillow releases the interpreter lock while it decodes, scales and encodes, so threads keep all
cores busy, copy nothing between processes, and work inside an Airflow task, which may not start child processes.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.images.readers import WEB_MOST_BYTES

#: Bytes of files that are read and prepared at the same time; a larger file goes alone.
MOST_BYTES = 256 * 1024 * 1024

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> Iterator[tuple[Item, Result | WanError]]:
    """Call a function for each item in threads; yield each item with its result, in order.

    :param function: called in a thread. An error of this provider that it raises is yielded as the item's result, so
        it does not affect the other items; any other error ends the run.
    :param items: taken as fast as results are: at most two per worker are in progress.
    :param workers: number of threads; default one per core that this process may use.
    """
    count = workers or usable_cores()
    in_progress: deque[tuple[Item, Future[Result]]] = deque()
    executor = ThreadPoolExecutor(count, thread_name_prefix="wan-images")
    try:
        for item in items:
            in_progress.append((item, executor.submit(function, item)))
            if len(in_progress) >= 2 * count:
                done, future = in_progress.popleft()
                result = _result_of(future)
                yield done, result
        while in_progress:
            done, future = in_progress.popleft()
            result = _result_of(future)
            yield done, result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _result_of(future: Future[Result]) -> Result | WanError:
    try:
        return future.result()
    except WanError as error:
        return error


class Limits:
    """Bounds for the threads that prepare images: more of them wait for the network than there are cores.

    :param most_bytes: of source files in memory together.
    :param cores: how many images are decoded at once.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES, cores: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self.decoding = threading.BoundedSemaphore(cores or usable_cores())

    @contextmanager
    def holding(self, size_bytes: int | None) -> Iterator[None]:
        """Wait until a file of this size may be in memory too."""
        size = min(WEB_MOST_BYTES if size_bytes is None else size_bytes, self._most_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._bytes + size <= self._most_bytes)
            self._bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()
