# SPDX-License-Identifier: Apache-2.0
"""The wait for all requests of a batch in the triggerer: one trigger, whatever their number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from airflow_provider_wan.triggers.base import BaseWanTrigger, cancel_if_over, load
from airflow_provider_wan.utils.task import bucket_journal

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan_async import WanAsyncHook
    from airflow_provider_wan.polling.poller import RequestPoller

_POLLS_AT_ONCE = 20
#: Between two log lines that say how many requests wait.
_LOG_EVERY_S = 300.0
_ON_KILL_S = 300.0
_CANCELS_AT_ONCE = 8
#: Requests in one event, which is written to the log and the database. The worker finds the others again.
_MOST_READY = 500
_MOST_STARTED = 300


class WanBatchTrigger(BaseWanTrigger):
    """Waits for many requests of one account, and fires when it is worth a worker.

    Fires one event, ``{"outcome", "deadline", "ready", "gone", "started", "learned"}``, without links and without
    secrets: outcome is ``ready`` (``ready`` names requests that are over), ``due`` (there is something else to do) or
    ``timeout``.

    :param wan_conn_id: the connection.
    :param request_ids: the requests in flight, in order of submission.
    :param deadline: the absolute end of the wait, in unix seconds; no restart of a triggerer moves it.
    :param resume_when_ready: fire when so many are over.
    :param resume_after: or when the first that was over has waited so long, in seconds.
    :param not_later_than: fire at this time in any case, in unix seconds; None: only at the deadline.
    :param started: when running requests started, in unix seconds.
    :param learned: the state of the poller, see ``RequestPoller.learned``.
    :param look_at: requests that were over by their status and had no result: when to poll each again, in unix
        seconds.
    :param cancel_on_kill: whether requests that are still queued are cancelled when a person marks the task, or its
        run, failed or successful (Airflow 3.3 and later).
    :param journal: ``gs://bucket/prefix`` where the records live, to see who else owns a request.
    :param watcher: how records name this task instance.
    :param gcp_conn_id: for the journal.
    :param impersonation_chain: for the journal.
    """

    def __init__(
        self,
        *,
        wan_conn_id: str,
        request_ids: Sequence[str],
        deadline: float,
        resume_when_ready: int = 1,
        resume_after: float = 60.0,
        not_later_than: float | None = None,
        started: Mapping[str, float] | None = None,
        learned: Mapping[str, Any] | None = None,
        look_at: Mapping[str, float] | None = None,
        cancel_on_kill: bool = True,
        journal: str | None = None,
        watcher: str | None = None,
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.wan_conn_id = wan_conn_id
        self.request_ids = list(request_ids)
        self.deadline = deadline
        self.resume_when_ready = resume_when_ready
        self.resume_after = resume_after
        self.not_later_than = not_later_than
        self.started = dict(started or {})
        self.learned = dict(learned or {})
        self.look_at = dict(look_at or {})
        self.cancel_on_kill = cancel_on_kill
        self.journal = journal
        self.watcher = watcher
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        await load()
        from airflow_provider_wan.hooks.wan import WanAsyncHook

        async with WanAsyncHook(self.wan_conn_id) as hook:
            poller = await self._new_poller(hook)
            outcome = await self._poll(hook, poller)
        ready = list(poller.ready)[:_MOST_READY]
        # Of requests that are over too: how long they queued and ran is recorded when they have landed.
        over = {each: round(at) for each in ready if (at := poller.started_at(each)) is not None}
        started = dict(list({**poller.started(), **over}.items())[:_MOST_STARTED])
        yield TriggerEvent(
            {
                "outcome": outcome,
                "deadline": self.deadline,
                "ready": ready,
                "gone": list(poller.gone),
                "started": started,
                "learned": poller.learned(),
            }
        )

    async def _new_poller(self, hook: WanAsyncHook) -> RequestPoller:
        from airflow_provider_wan.polling.poller import RequestPoller
        from airflow_provider_wan.polling.schedule import policy_of

        policy = policy_of(None)
        while time.time() <= self.deadline:
            try:
                policy = policy_of(await hook.get_settings())
                break
            except (
                Exception
            ) as error:  # the requests are paid for: an outage of a secrets backend must not end the wait
                self.log.warning("The connection can't be read yet: %s", type(error).__name__)
                await asyncio.sleep(policy.intervals.unknown_s)
        return RequestPoller.resume(
            policy, self.learned, self.request_ids, self.started, time.time(), poll_at=self.look_at
        )

    async def _poll(self, hook: WanAsyncHook, poller: RequestPoller) -> str:
        """Poll until it is worth a worker; return why."""
        from airflow_provider_wan.polling.drivers import as_wan_error, poll_until

        log_at = time.time() + _LOG_EVERY_S
        outcome = "timeout"

        def is_over(now: float) -> bool:
            nonlocal log_at, outcome
            if now >= log_at:
                log_at = now + _LOG_EVERY_S
                self._log_progress(poller)
            outcome = self._outcome(poller, now) or ""
            return bool(outcome)

        async def ask(request_id: str) -> None:
            try:
                status = await hook.get_status(request_id, retry=False)
            except Exception as error:
                poller.on_error(request_id, as_wan_error(error, request_id), time.time())
            else:
                poller.on_status(status, time.time())

        await poll_until(
            is_over,
            due=poller.due,
            next_at=lambda now: min(poller.next_at(now), self._come_back_at(poller)),
            ask=ask,
            changed=asyncio.Event(),
            at_once=_POLLS_AT_ONCE,
        )
        return outcome

    def _log_progress(self, poller: RequestPoller) -> None:
        over, queued = len(poller.ready), poller.queued
        running = len(poller) - over - queued
        self.log.info("Still waiting: %d running, %d queued, %d over.", running, queued, over)

    def _outcome(self, poller: RequestPoller, now: float) -> str | None:
        if now >= self.deadline:
            return "timeout"
        if poller.gone or (self.not_later_than is not None and now >= self.not_later_than):
            return "due"
        all_over = bool(self.request_ids) and len(poller.ready) == len(poller)
        if all_over or len(poller.ready) >= self.resume_when_ready:
            return "ready"
        oldest = min(poller.ready.values(), default=now)
        return "ready" if poller.ready and now - oldest >= self.resume_after else None

    def _come_back_at(self, poller: RequestPoller) -> float:
        moments = [self.deadline]
        if self.not_later_than is not None:
            moments.append(self.not_later_than)
        if poller.ready:
            moments.append(min(poller.ready.values()) + self.resume_after)
        return min(moments)

    async def on_kill(self) -> None:
        """Cancel the requests that are still queued, if no task owns them any more."""
        if self.cancel_on_kill:
            what = f"A batch with {len(self.request_ids)} requests"
            await cancel_if_over(self, self._cancel_queued, what=what, within_s=_ON_KILL_S)

    async def _cancel_queued(self) -> None:
        from airflow_provider_wan.hooks.wan import WanAsyncHook

        mine = await asyncio.to_thread(self._without_other_owners)
        gate = asyncio.Semaphore(_CANCELS_AT_ONCE)
        async with WanAsyncHook(self.wan_conn_id) as hook:

            async def cancel(request_id: str) -> bool:
                async with gate:
                    try:
                        return (await hook.cancel(request_id)).cancelled
                    except Exception as error:  # of one request, such as an outage of the secrets backend
                        self.log.warning("Request %s was not cancelled: %s", request_id, error)
                        return False

            # Last in the queue first: cancelling from the front moves the others up, and they could start meanwhile.
            cancelled = await asyncio.gather(*(cancel(request_id) for request_id in reversed(mine)))
        self.log.info(
            "%d of %d requests were still queued: they are cancelled and not charged. The others run on.",
            sum(cancelled),
            len(self.request_ids),
        )

    def _without_other_owners(self) -> list[str]:
        """Return the requests that no other task owns, by one listing of the journal. Blocks."""
        if self.journal is None or self.watcher is None:
            return []
        journal: Any = bucket_journal(
            self.journal, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain
        )
        request_ids = set(self.request_ids)
        mine = {
            listed.request_id
            for listed in journal.listing()
            if listed.request_id in request_ids and listed.watchers == 1 and listed.buyer == self.watcher
        }
        return [request_id for request_id in self.request_ids if request_id in mine]
