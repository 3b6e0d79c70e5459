# SPDX-License-Identifier: Apache-2.0
"""What both triggers share: their arguments, the import of what a wait needs, and kills of deferred tasks.

A killed task cancels a request only if no task instance owns it any more.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from airflow.triggers.base import BaseTrigger

_NEEDED = "airflow_provider_wan.polling.drivers"
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

#: Task states in which no task instance owns the request any more. In deferred, queued, scheduled and running another
#: try or another triggerer owns it; anything else is not certain.
OVER_FOR_GOOD = frozenset({"failed", "success", "skipped", "upstream_failed", "removed"})
#: Strong references: Airflow cancels ``on_kill`` after about a second, with everything that it awaits. A separate task
#: survives as long as something refers to it.
_unfinished: set[asyncio.Task[None]] = set()


class BaseWanTrigger(BaseTrigger):
    """A trigger that keeps each of its arguments in an attribute of the same name."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the arguments with which another triggerer continues."""
        kind = type(self)
        names = inspect.signature(kind).parameters
        return f"{kind.__module__}.{kind.__qualname__}", {name: getattr(self, name) for name in names}


async def load() -> None:
    """Return when the modules of a wait are imported; triggers that waited for it continue one after another.

    They are imported in a thread: on the event loop that would block all other triggers for a second.
    """
    loading = _loading()
    if loading.done():
        return
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        if not loading.done():
            await asyncio.shield(asyncio.wrap_future(loading))


@functools.cache
def _loading() -> Future[ModuleType]:
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wan-import")
    loading = thread.submit(importlib.import_module, _NEEDED)
    thread.shutdown(wait=False)
    return loading


async def cancel_if_over(
    trigger: BaseTrigger, cancel: Callable[[], Awaitable[None]], *, what: str, within_s: float
) -> None:
    """Cancel the requests of a trigger, if its task is certainly over.

    Airflow 3.3 and later call ``on_kill`` when a person or the end of a run ends the task; a triggerer that was stalled
    also calls it, falsely, for triggers that another one runs already. So the task's state is read first, and whatever
    is not certain is left alone.

    :param cancel: cancels them.
    :param what: their name in the log, such as ``Request 17``.
    :param within_s: how long all of it may take, in seconds.
    """

    async def work() -> None:
        try:
            async with asyncio.timeout(within_s):
                ti = trigger.task_instance
                state = await asyncio.to_thread(task_state, ti) if ti is not None else None
                if state not in OVER_FOR_GOOD:
                    trigger.log.info("%s: left alone, as the task's state is %s.", what, state or "unknown")
                    return
                await cancel()
        except Exception as error:
            trigger.log.warning("%s: not cancelled: %s", what, error)

    task = asyncio.get_running_loop().create_task(work())
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    await asyncio.shield(task)


def task_state(ti: Any) -> str | None:
    """Return the state of a task instance; None if it is not certain. Blocks: on an event loop, use a thread."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    mapped = ti.map_index is not None and ti.map_index >= 0
    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id,
        task_ids=[ti.task_id],
        run_ids=[ti.run_id],
        map_index=ti.map_index if mapped else None,
    )
    # The key of a mapped task carries its index: looked up without, every mapped task would seem gone.
    key = f"{ti.task_id}_{ti.map_index}" if mapped else ti.task_id
    state = states.get(ti.run_id, {}).get(key)
    return None if state is None else str(state)


def is_over_for_good(ti: Any) -> bool:
    """Return whether a task instance is certainly over, so that it no longer owns its request."""
    try:
        return task_state(ti) in OVER_FOR_GOOD
    except Exception:
        return False
