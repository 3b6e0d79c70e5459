# SPDX-License-Identifier: Apache-2.0
"""Either hook behind one interface, so that each test runs on both."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Iterator
from typing import Any

from airflow_provider_wan.hooks.wan import WanAsyncHook, WanHook
from airflow_provider_wan.model_api.faults import RetryPolicy

#: No pause of our own: only what a server asks for is waited.
QUICK = RetryPolicy(first_s=0.001, max_s=0.001)
KINDS = ("sync", "async")


class EitherHook:
    """Calls a method of ``WanHook``, or of ``WanAsyncHook`` in an event loop of its own; only the first can submit."""

    def __init__(self, kind: str, conn_id: str = "wan_default", retry: RetryPolicy = QUICK) -> None:
        self.kind = kind
        self._conn_id = conn_id
        self._retry = retry
        self._kept = WanHook(conn_id, retry=retry) if kind == "sync" else None

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._kept is not None or method == "submit":
            hook = self._kept or WanHook(self._conn_id, retry=self._retry)
            return getattr(hook, method)(*args, **kwargs)

        async def run() -> Any:
            async with WanAsyncHook(self._conn_id, retry=self._retry) as hook:
                return await getattr(hook, method)(*args, **kwargs)

        return asyncio.run(run())


def connection(host: str, token: str = "sandbox-token", **extra: Any) -> str:
    """Write a connection as an ``AIRFLOW_CONN_...`` variable has it."""
    more = {"account_host": host, "download_hosts": [host], **extra}
    return json.dumps({"conn_type": "wan", "host": host, "password": token, "extra": more})


def everything_in(error: BaseException) -> str:
    """Return the text that a logger could find in an exception, its causes and its attributes."""
    return "\n".join([*traceback.format_exception(error), *_dig(error, set(), 0)])


def _dig(value: Any, seen: set[int], depth: int) -> Iterator[str]:
    if id(value) in seen or depth > 6:
        return
    seen.add(id(value))
    yield repr(value)
    yield str(value)
    if isinstance(value, BaseException):
        inside = [*value.args, value.__cause__, value.__context__, *vars(value).values()]
    elif isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        inside = list(value)
    elif type(value).__module__.split(".")[0] in ("requests", "urllib3", "aiohttp"):
        inside = list(getattr(value, "__dict__", {}).values())
    else:
        return
    for one in inside:
        yield from _dig(one, seen, depth + 1)
