# SPDX-License-Identifier: Apache-2.0
"""Preparing many images on all cores, in order, with few of them in memory at once.

Threads, not processes: Pillow lets go of the interpreter lock while it decodes, scales and encodes, so threads keep
all cores busy, cost no copies between processes, and work inside an Airflow task, which may not start child processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.images.prepare import PathOrBytes, PreparedImage, prepare
from airflow_provider_wan.images.sizes import TooSmall

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.inputs import ImageRules

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> Iterator[tuple[Item, Result | WanError]]:
    """Call a function for each item in threads; give each item with its result, in order, as they get ready.

    :param function: called in a thread. An error of this provider that it raises is given as the item's result, so
        that the other items are not harmed; any other error ends the run.
    :param items: taken only as fast as results are: at most two a worker are under way.
    :param workers: number of threads; default one a core that this process may use.
    """
    count = workers or usable_cores()
    under_way: deque[tuple[Item, Future[Result]]] = deque()
    executor = ThreadPoolExecutor(count, thread_name_prefix="wan-images")
    try:
        for item in items:
            under_way.append((item, executor.submit(function, item)))
            if len(under_way) >= 2 * count:
                done, future = under_way.popleft()
                result = _settled(future)
                yield done, result
        while under_way:
            done, future = under_way.popleft()
            result = _settled(future)
            yield done, result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def prepare_many(
    sources: Iterable[tuple[str, PathOrBytes | Callable[[], bytes]]],
    *,
    rules: ImageRules,
    background: str | tuple[int, int, int] = "white",
    too_small: TooSmall = "upscale",
    workers: int | None = None,
) -> Iterator[tuple[str, PreparedImage | WanError]]:
    """Prepare many images; give each name with its prepared image or the error that it ended in, in order.

    :param sources: name, and bytes, path or a function that fetches the bytes (called in a thread).
    :param rules: the model's image rules. The other parameters are those of
        :func:`~airflow_provider_wan.images.prepare.prepare` and :func:`map_in_order`.
    """

    def one(item: tuple[str, PathOrBytes | Callable[[], bytes]]) -> PreparedImage:
        name, source = item
        data = source() if callable(source) else source
        return prepare(data, rules=rules, name=name, background=background, too_small=too_small)

    for (name, _), result in map_in_order(one, sources, workers=workers):
        yield name, result


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settled(future: Future[Result]) -> Result | WanError:
    try:
        return future.result()
    except WanError as error:
        return error
