# SPDX-License-Identifier: Apache-2.0
"""The threads of a batch: they do what takes time, and what they bring back comes through one queue."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, Self

from airflow_provider_wan.batch.values import BatchLimits

Kind = Literal["submit", "land", "look"]


class Completion(NamedTuple):
    """What a thread has brought back.

    :param about: as it was given to :meth:`WorkerPool.do`.
    :param brought: what the work gave, or the error that it raised.
    """

    kind: Kind
    about: str
    brought: Any


class WorkerPool:
    """One pool of threads for each kind of work; a context manager that waits for all of them at its end."""

    def __init__(self, pace: BatchLimits) -> None:
        self._sizes: dict[Kind, int] = {
            "submit": pace.submit_threads,
            "land": pace.landing_threads,
            "look": pace.look_threads,
        }
        self._pools: dict[Kind, ThreadPoolExecutor] = {}
        self._inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for kind, size in self._sizes.items():
            self._pools[kind] = self._stack.enter_context(ThreadPoolExecutor(size, f"wan-{kind}"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._pools.clear()

    def do(self, kind: Kind, about: str, work: Callable[[], Any]) -> None:
        """Let a thread do a piece of work; its end is told by :meth:`news`, whatever it is."""

        def run() -> None:
            try:
                self._inbox.put(Completion(kind, about, work()))
            except BaseException as error:
                self._inbox.put(Completion(kind, about, error))

        self._pools[kind].submit(run)

    def news(self, timeout_s: float) -> Iterator[Completion]:
        """Wait for news, for so long at most, and give all that there is."""
        try:
            yield self._inbox.get(timeout=timeout_s)
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return
