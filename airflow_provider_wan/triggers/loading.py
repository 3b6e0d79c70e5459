# SPDX-License-Identifier: Apache-2.0
"""Import the modules of a wait in a thread: on the event loop it would block all other triggers for a second."""

from __future__ import annotations

import asyncio
import functools
import importlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from weakref import WeakKeyDictionary

_NEEDED = "airflow_provider_wan.polling.drivers"
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def load() -> None:
    """Return when the modules of a wait are imported; triggers that waited for it continue one after another."""
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
