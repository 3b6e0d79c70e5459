# SPDX-License-Identifier: Apache-2.0
"""The wait for a request in the triggerer, where it holds no worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_wan.faces.journals import bucket_journal, is_watched_by_others

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.polling import Over, RequestWait

#: Task states in which nobody owns the request any more. Deferred, queued, scheduled and running mean that
#: another try or another triggerer does; anything else is not certain.
OVER_FOR_GOOD = frozenset({"failed", "success", "skipped", "upstream_failed", "removed"})
_ON_KILL_S = 60.0
#: Strong references: Airflow cancels ``on_kill`` after about a second, and what it awaits with it; a task of its
#: own survives, as long as somebody holds it.
_unfinished: set[asyncio.Task[None]] = set()


class WanRequestTrigger(BaseTrigger):
    """Waits until a request is finished, or its deadline has passed.

    Fires one event, ``{"request_id", "outcome", "fingerprint"}``, without links and without secrets: outcome is
    ``succeeded``, ``failed``, ``cancelled``, ``gone``, ``refused`` or ``timeout``, and a ``message`` says more where
    there is more to say, ``running_since`` (unix seconds) when it was first seen running.

    :param wan_conn_id: the connection.
    :param request_id: the request.
    :param deadline: the absolute end of the wait, in unix seconds; no restart of a triggerer moves it.
    :param poll_interval: seconds between looks; None (default) adapts to the time waited and the queue.
    :param cancel_on_kill: whether a request that is still queued is cancelled when somebody marks the task, or
        its run, failed or successful (Airflow 3.3 and later).
    :param fingerprint: of the record, for the event.
    :param journal: ``gs://bucket/prefix`` where the record lives, to see who else counts on the request.
    :param watchers: how the record names this task instance, and the one that submitted on its behalf.
    :param is_known: whether a task submitted the request, default True. An id that a person typed in may be
        wrong: where the first answer says so, the outcome is ``refused``.
    :param gcp_conn_id: for the journal.
    :param impersonation_chain: for the journal.
    """

    def __init__(
        self,
        *,
        wan_conn_id: str,
        request_id: str,
        deadline: float,
        poll_interval: float | None = None,
        cancel_on_kill: bool = True,
        fingerprint: str | None = None,
        journal: str | None = None,
        watchers: Sequence[str] = (),
        is_known: bool = True,
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.wan_conn_id = wan_conn_id
        self.request_id = request_id
        self.deadline = deadline
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.fingerprint = fingerprint
        self.journal = journal
        self.watchers = list(watchers)
        self.is_known = is_known
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give what another triggerer needs to go on."""
        return (
            "airflow_provider_wan.triggers.wan.WanRequestTrigger",
            {
                "wan_conn_id": self.wan_conn_id,
                "request_id": self.request_id,
                "deadline": self.deadline,
                "poll_interval": self.poll_interval,
                "cancel_on_kill": self.cancel_on_kill,
                "fingerprint": self.fingerprint,
                "journal": self.journal,
                "watchers": self.watchers,
                "is_known": self.is_known,
                "gcp_conn_id": self.gcp_conn_id,
                "impersonation_chain": self.impersonation_chain,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait."""
        from airflow_provider_wan.generation.waiting import start_wait, wait_in_triggerer
        from airflow_provider_wan.hooks.wan import WanAsyncHook

        async with WanAsyncHook(self.wan_conn_id) as hook:
            wait = start_wait(
                self.request_id,
                deadline=self.deadline,
                poll_interval_s=self.poll_interval,
                is_known=self.is_known,
            )
            over = await wait_in_triggerer(hook, wait, self.log)
        event = {"request_id": self.request_id, "fingerprint": self.fingerprint, **event_of(over, wait)}
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """Cancel the request if it is still queued and nobody owns it any more.

        Called by Airflow 3.3 and later when a person or a run's end takes the task away; also, falsely, by a
        triggerer that was stalled and whose triggers another one runs already. So it looks first, at the task's
        state in the database, and leaves alone whatever is not certain.
        """
        if not self.cancel_on_kill:
            return
        work = asyncio.get_running_loop().create_task(self._cancel_if_nobody_owns_it())
        _unfinished.add(work)
        work.add_done_callback(_unfinished.discard)
        await asyncio.shield(work)

    async def _cancel_if_nobody_owns_it(self) -> None:
        try:
            async with asyncio.timeout(_ON_KILL_S):
                state = await asyncio.to_thread(self._task_state)
                if state not in OVER_FOR_GOOD:
                    self.log.info(
                        "Request %s is left alone: the task's state is %s.",
                        self.request_id,
                        state or "unknown",
                    )
                    return
                if await asyncio.to_thread(self._is_watched_by_others):
                    self.log.info("Request %s is left alone: other tasks count on it.", self.request_id)
                    return
                await self._cancel()
        except Exception as error:
            self.log.warning("Request %s was not cancelled: %s", self.request_id, error)

    def _task_state(self) -> str | None:
        return task_state(self.task_instance) if self.task_instance is not None else None

    def _is_watched_by_others(self) -> bool:
        if self.journal is None or not self.watchers:
            return False
        journal = bucket_journal(
            self.journal, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain
        )
        return is_watched_by_others(journal, self.fingerprint, self.watchers)

    async def _cancel(self) -> None:
        from airflow_provider_wan.hooks.wan import WanAsyncHook

        async with WanAsyncHook(self.wan_conn_id) as hook:
            outcome = await hook.cancel(self.request_id)
        if outcome.cancelled:
            self.log.info("Request %s was still queued: it is cancelled and not charged.", self.request_id)
        else:
            self.log.warning(
                "Request %s can't be cancelled any more (%s): it runs on and is charged.",
                self.request_id,
                outcome.word,
            )


def event_of(over: Over, wait: RequestWait) -> dict[str, Any]:
    """Say how a wait ended, without links and without secrets."""
    event: dict[str, Any] = {"outcome": over.outcome}
    if over.error is not None:
        event["message"] = str(over.error)
    if wait.running_since is not None:
        event["running_since"] = wait.running_since
    if over.outcome == "gone" and wait.may_be_paid:
        event["may_be_paid"] = True
    return event


def task_state(ti: Any) -> str | None:
    """Look up a task instance's state; None where that is not certain. Blocks: on an event loop, use a thread."""
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
    """Tell whether a task instance is certainly over, so that nobody owns its request; in doubt, no."""
    try:
        return task_state(ti) in OVER_FOR_GOOD
    except Exception:
        return False


def deadline_in(seconds: float) -> float:
    """Give the absolute end, in unix seconds, of a wait that begins now."""
    return time.time() + seconds
