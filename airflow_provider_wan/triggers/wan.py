# SPDX-License-Identifier: Apache-2.0
"""The wait for a request in the triggerer, where it holds no worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from airflow.triggers.base import TriggerEvent

from airflow_provider_wan.triggers.base import BaseWanTrigger, cancel_if_over, is_over_for_good, load
from airflow_provider_wan.triggers.wan_batch import WanBatchTrigger
from airflow_provider_wan.utils.task import bucket_journal, has_other_owners

__all__ = ["WanBatchTrigger", "WanRequestTrigger", "deadline_in", "is_over_for_good", "trigger_for"]

if TYPE_CHECKING:
    from airflow_provider_wan.utils.results import AwaitedRequest

_ON_KILL_S = 60.0


class WanRequestTrigger(BaseWanTrigger):
    """Waits until a request is finished, or its deadline has passed.

    Fires one event, ``{"request_id", "outcome", "fingerprint"}``, without links and without secrets: outcome is
    ``succeeded``, ``failed``, ``cancelled``, ``gone``, ``refused`` or ``timeout``; ``message`` is the text of the
    error, if there is one; ``running_since`` (unix seconds) is when it was first seen running.

    :param wan_conn_id: the connection.
    :param request_id: the request.
    :param deadline: the absolute end of the wait, in unix seconds; no restart of a triggerer moves it.
    :param poll_interval: seconds between polls that may find it over; None (default) adapts to the queue and the usual
        generation time.
    :param cancel_on_kill: whether a request that is still queued is cancelled when a person marks the task, or
        its run, failed or successful (Airflow 3.3 and later).
    :param fingerprint: of the record, for the event.
    :param journal: ``gs://bucket/prefix`` where the record lives, to see who else owns the request.
    :param watchers: how the record names this task instance, and the one that submitted on its behalf.
    :param is_known: whether a task submitted the request, default True. An id that a person typed in may be
        wrong: if the first answer says so, the outcome is ``refused``.
    :param submitted_at: when the request was submitted, in unix seconds; None (default): not known. It is not polled
        before it can be over.
    :param not_before: when the server allows the next poll, in unix seconds, by the ``Retry-After`` of an earlier
        one; None (default): at any time.
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
        submitted_at: float | None = None,
        not_before: float | None = None,
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
        self.submitted_at = submitted_at
        self.not_before = not_before
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        await load()
        from airflow_provider_wan.polling.drivers import wait_in_triggerer
        from airflow_provider_wan.polling.wait import RequestWait

        wait = RequestWait(
            self.request_id,
            deadline=self.deadline,
            poll_interval_s=self.poll_interval,
            is_known=self.is_known,
            submitted_at=self.submitted_at,
            not_before=self.not_before or 0.0,
        )
        await wait_in_triggerer(self.wan_conn_id, wait, self.logger())
        yield TriggerEvent({"request_id": self.request_id, "fingerprint": self.fingerprint, **wait.as_event()})

    async def on_kill(self) -> None:
        """Cancel the request if it is still queued and no task owns it any more."""
        if self.cancel_on_kill:
            what = f"Request {self.request_id}"
            await cancel_if_over(self, self._cancel_unless_owned, what=what, within_s=_ON_KILL_S)

    async def _cancel_unless_owned(self) -> None:
        from airflow_provider_wan.hooks.wan import WanAsyncHook

        if await asyncio.to_thread(self._has_other_owners):
            self.log.info("Request %s is left alone: other tasks depend on it.", self.request_id)
            return
        async with WanAsyncHook(self.wan_conn_id) as hook:
            outcome = await hook.cancel(self.request_id)
        self.log.info("Request %s: %s", self.request_id, outcome.sentence)

    def _has_other_owners(self) -> bool:
        if self.journal is None or not self.watchers:
            return False
        journal = bucket_journal(
            self.journal, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain
        )
        return has_other_owners(journal, self.fingerprint, self.watchers)


def trigger_for(
    wait: AwaitedRequest,
    *,
    timeout_s: float,
    poll_interval: float | None,
    cancel_on_kill: bool,
    is_known: bool = True,
    not_before: float | None,
) -> WanRequestTrigger:
    """Return the trigger of a task that waits for a request from now on.

    :param not_before: when the server allows the next poll, in unix seconds; None: at any time.
    """
    operator, ref = wait.task.operator, wait.ref
    return WanRequestTrigger(
        wan_conn_id=operator.wan_conn_id,
        request_id=ref.request_id,
        deadline=deadline_in(timeout_s),
        poll_interval=poll_interval,
        cancel_on_kill=cancel_on_kill and wait.may_be_cancelled,
        fingerprint=ref.fingerprint,
        journal=ref.journal,
        watchers=wait.task.owners(ref),
        is_known=is_known,
        submitted_at=wait.submitted_at,
        not_before=not_before,
        gcp_conn_id=operator.gcp_conn_id,
        impersonation_chain=operator.impersonation_chain,
    )


def deadline_in(seconds: float) -> float:
    """Return the deadline of a wait that begins now, in unix seconds."""
    return time.time() + seconds
