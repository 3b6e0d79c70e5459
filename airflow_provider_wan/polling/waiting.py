# SPDX-License-Identifier: Apache-2.0
"""The two loops, worker's and triggerer's, that carry out a wait; ``model_api/polling.py`` decides it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import replace
from logging import Logger
from typing import Any

from airflow_provider_wan.exceptions import WanError, WanTransientError
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.hooks.wan import WanAsyncHook, WanHook
from airflow_provider_wan.polling.pace import Experience, nap_s
from airflow_provider_wan.polling.request_wait import Ask, Over, RequestWait, WaitPolicy

_LONGEST_NAP_S = 5.0


def start_wait(
    request_id: str,
    *,
    deadline: float,
    poll_interval_s: float | None,
    is_known: bool = True,
    experience: Experience | None = None,
) -> RequestWait:
    """Begin a wait.

    :param deadline: its absolute end, in unix seconds.
    :param poll_interval_s: seconds between looks; None: adaptive.
    :param is_known: whether a task submitted it; false for an id that a person typed in.
    :param experience: what the waits of the same connection share, if there are others in this process.
    """
    policy = WaitPolicy(deadline, poll_interval_s, is_known=is_known)
    return RequestWait(request_id, policy, random.random, experience=experience)


def wait_in_worker(hook: WanHook, wait: RequestWait, log: Logger, *, stop: threading.Event) -> Over | None:
    """Wait in this process.

    :param stop: set from a signal handler to end the wait; then None is returned.
    """
    while not stop.is_set():
        step = wait.next_step(time.time())
        if isinstance(step, Over):
            return step
        if (ahead := step.at - time.time()) > 0:
            stop.wait(min(ahead, _LONGEST_NAP_S))
            continue
        try:
            _be_patient(wait, hook.settings)
            _tell(wait, step, _ask(hook, step, wait.request_id))
        except Exception as error:
            wait.on_error(_as_wan_error(error, wait.request_id), time.time())
        if wait.wants_fresh_connection and _refreshed(hook):
            log.info("The connection's token has changed; going on with the new one.")
        _show(wait, log)
    return None


async def wait_in_triggerer(hook: WanAsyncHook, wait: RequestWait, log: Logger) -> Over:
    """Wait on an event loop, beside thousands of others: what sleeps for minutes holds on to little."""
    while True:
        step = wait.next_step(time.time())
        if isinstance(step, Over):
            return step
        if (ahead := step.at - time.time()) > 0:
            await asyncio.sleep(nap_s(ahead, asyncio.get_running_loop().time()))
            continue
        await _look(hook, wait, step, log)


async def _look(hook: WanAsyncHook, wait: RequestWait, step: Ask, log: Logger) -> None:
    settings: WanSettings | None = None
    try:
        settings = await hook.get_settings()
        _be_patient(wait, settings)
        look = hook.get_status if step.call == "status" else hook.get_result
        _tell(wait, step, await look(wait.request_id, retry=False))
    except Exception as error:
        wait.on_error(_as_wan_error(error, wait.request_id), time.time())
    if wait.wants_fresh_connection and settings and await _refreshed_async(hook, settings):
        log.info("The connection's token has changed; going on with the new one.")
    _show(wait, log)


def _be_patient(wait: RequestWait, settings: WanSettings) -> None:
    """Give the wait the connection's patience with 404001, known only when the connection has been read."""
    if wait.policy.gone_after_s != settings.not_found_patience_s:
        wait.policy = replace(wait.policy, gone_after_s=settings.not_found_patience_s)


def _as_wan_error(error: Exception, request_id: str) -> WanError:
    """The request is paid for: a secrets backend that is out, say, must not end the wait before its deadline."""
    if isinstance(error, WanError):
        return error
    text = f"Looking at request {request_id} failed before anything was sent ({type(error).__name__})."
    return WanTransientError(text, request_id=request_id)


def _ask(hook: WanHook, step: Ask, request_id: str) -> Any:
    look = hook.get_status if step.call == "status" else hook.get_result
    return look(request_id, retry=False)


def _tell(wait: RequestWait, step: Ask, answer: Any) -> None:
    saw = wait.on_status if step.call == "status" else wait.on_result
    saw(answer, time.time())


def _refreshed(hook: WanHook) -> bool:
    try:
        return hook.refresh()
    except Exception:
        return False  # the next look says what is wrong


async def _refreshed_async(hook: WanAsyncHook, settings: WanSettings) -> bool:
    try:
        return await hook.refresh(settings)
    except Exception:
        return False  # the next look says what is wrong


def _show(wait: RequestWait, log: Logger) -> None:
    for note in wait.notes():
        log.info(note)
