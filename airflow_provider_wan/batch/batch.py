# SPDX-License-Identifier: Apache-2.0
"""A whole set of images to videos in a bucket: puts plan, budget, engine and files together.

Everything that a killed run needs is in the journal. A batch that begins again plans again, lists the journal instead
of reading it, counts what it has bought before against its limits, takes over what is in flight, and goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.checkpoint import BatchFiles
from airflow_provider_wan.batch.engine import BatchEngine
from airflow_provider_wan.batch.listener import BatchListener
from airflow_provider_wan.batch.plan import Plan
from airflow_provider_wan.batch.planner import BatchSpec, Planner
from airflow_provider_wan.batch.progress import Progress
from airflow_provider_wan.batch.report import (
    SHOWN_ERRORS,
    Report,
    all_endings,
    error_of,
    summary_of,
)
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.batch.saved_plan import lines_of
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.batch.values import Checkpoint, Pause
from airflow_provider_wan.batch.work import BatchWork
from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.durable.submission import Submission
from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.landing.download import Downloader, DownloadPolicy
from airflow_provider_wan.landing.landing import Landing
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.polling.polled_request import policy_of
from airflow_provider_wan.polling.poller import RequestPoller

if TYPE_CHECKING:
    from google.cloud import storage

#: Of a batch with more images it is not told at every wait where each of them stands, but so many of them a second.
_TOLD_AT_EVERY_WAIT, _TOLD_PER_SECOND = 2_000, 200.0


class Batch:
    """One batch of one task instance.

    :param sources: opens source images.
    :param watcher: how records name the task instance.
    :param stop: set to end early.
    :param witness: is told what happens.
    """

    def __init__(
        self,
        spec: BatchSpec,
        hook: WanHook,
        client: storage.Client,
        sources: ImageSources,
        log: Logger,
        *,
        watcher: str,
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        listener: BatchListener | None = None,
    ) -> None:
        self._spec = spec
        self._hook = hook
        self._client = client
        self._log = log
        self._watcher = watcher
        self._stop = stop or threading.Event()
        self._on_progress = on_progress
        self._listener = listener
        self._journal = BucketJournal(client, spec.journal)
        self._files = BatchFiles(client, spec.journal, watcher)
        self._sources = sources
        self._planner = Planner(spec, hook, client, self._journal, sources, log)
        self._price_usd: float | None = None
        self._memory = Checkpoint(time.time())
        self._shown_at = 0.0

    @property
    def standing_uri(self) -> str | None:
        """Where it is told how far each image is; None before the first wait or line of progress."""
        return self._files.standing_uri if self._shown_at else None

    # -- beginning and going on ----------------------------------------------------------------------------

    def begin(self) -> BatchEngine:
        """Plan, and sort out what is there already.

        :raises WanBudgetError: there is a limit in money and no price; nothing was bought.
        :raises WanInputError: what is wanted can't be read.
        """
        Budget(self._spec.limits, self._planner.find_price())  # before anything takes long
        before = self._files.read_plan(self._log)
        plan = self._planner.plan(before.fingerprints() if before else ())
        self._price_usd = self._planner.price_of(plan)
        self._files.write_plan(lines_of(plan, self._watcher))
        done = sum(plan.is_done(one) for one in plan.items)
        self._log.info(
            "%d images: %d have landed before, %d are to do, %d rows can't be used. Images are looked at one by one.",
            plan.total,
            done,
            len(plan.items) - done,
            len(plan.refused),
        )
        return self._engine(plan, RequestPoller(policy_of(self._hook.settings)))

    def go_on(self, event: Mapping[str, Any]) -> BatchEngine:
        """Go on after a wait in the triggerer.

        :param event: what the trigger has found.
        """
        noted = self._files.read_note(self._log)
        if noted is not None:
            self._memory, note = noted
            self._price_usd, self._shown_at = note.get("price_usd"), float(note.get("shown_at") or 0.0)
        watch = RequestPoller.resume(
            policy_of(self._hook.settings), event.get("learned"), (), event.get("started") or {}, time.time()
        )
        planned = self._files.read_plan(self._log)
        plan = self._planner.plan_again(planned) if planned else self._planner.plan()
        if noted is None:
            self._planner.find_price()
            self._price_usd = self._planner.price_of(plan)
        engine = self._engine(plan, watch, started=event.get("started") or {})
        engine.standing.mark_finished(event.get("ready") or ())
        engine.standing.mark_missing(event.get("gone") or ())
        return engine

    def note(self, engine: BatchEngine) -> None:
        """Note, before a wait, what the journal does not tell."""
        # The journal tells what has landed; and what a limit has left is offered again, so that the end says why.
        untold = (Outcome.LANDED, Outcome.REUSED, Outcome.LEFT)
        self._memory.endings = {
            one: ending for one, ending in engine.endings.items() if ending.outcome not in untold
        }
        self._show(engine.standing)
        self._files.write_note(self._memory, {"price_usd": self._price_usd, "shown_at": self._shown_at})

    def _show(self, standing: BatchState) -> None:
        """Write for people where each image stands; it is not worth a failure."""
        total, now = standing.plan.total, time.time()
        if total > _TOLD_AT_EVERY_WAIT and now - self._shown_at < total / _TOLD_PER_SECOND:
            return
        try:
            self._files.write_standing(standing.lines())
            self._shown_at = now
        except WanError as error:
            self._log.info("Where each image stands could not be written: %s", error)

    def dry_run(self) -> Report:
        """Plan only: what would be bought, and for how much."""
        Budget(self._spec.limits, self._planner.find_price())
        plan = self._planner.plan()
        price = self._planner.price_of(plan)
        check = self._planner.check
        to_do = plan.to_do()
        refused = [item for item in to_do if check.problem(item) is not None]
        for item in refused[:SHOWN_ERRORS]:
            self._log.warning("%s would be refused: %s", item.source.shown, check.problem(item))
        remembered = sum(plan.is_taken_over(item.fingerprint) for item in to_do)
        to_buy = len(to_do) - len(refused) - remembered
        summary = {
            "dry_run": True,
            "total": plan.total,
            "reused": len(plan.items) - len(to_do),
            "in_journal": remembered,
            "refused": len(plan.refused) + len(refused),
            "to_buy": to_buy,
            "price_usd": price,
            "cost_usd": None if price is None else round(price * to_buy, 6),
            "journal": self._spec.journal,
        }
        self._log.info("Dry run, nothing is bought: %s", summary)
        return Report(summary)

    def _engine(
        self, plan: Plan, watch: RequestPoller, *, started: Mapping[str, float] | None = None
    ) -> BatchEngine:
        spec = self._spec
        standing = BatchState(
            plan,
            Budget(spec.limits, self._price_usd),
            watch,
            self._log,
            memory=self._memory,
            watcher=self._watcher,
            started=started or {},
            listener=self._listener,
        )

        def tell(progress: Progress) -> None:
            self._show(standing)
            if self._on_progress is not None:
                self._on_progress(progress)
            else:
                self._log.info("%s", progress.line())

        return BatchEngine(
            standing,
            self._work(),
            spec.pace,
            self._log,
            check=self._planner.check,
            stop=self._stop,
            on_progress=tell,
        )

    def _work(self) -> BatchWork:
        spec, hook = self._spec, self._hook
        submission = Submission(
            hook,
            self._journal,
            self._log,
            on_unknown_submission=spec.on_unknown_submission,
            resolve=spec.resolve,
            retry=RetryPolicy(tries=1),  # the engine slows all submits down together
        )
        policy = DownloadPolicy(
            hook.settings.download_hosts,
            max_size_bytes=spec.max_size_bytes,
            stall_s=min(30.0, hook.settings.timeout_s),
        )
        landing = Landing(hook, self._client, Downloader(policy, self._log), self._log)
        return BatchWork(
            hook=hook,
            journal=self._journal,
            submission=submission,
            landing=landing,
            log=self._log,
            model_id=spec.model_id,
            image_field=self._sources.input_name,
            bucket_name=spec.bucket_name,
            watcher=self._watcher,
            if_exists=spec.if_exists,
        )

    # -- the end -------------------------------------------------------------------------------------------

    def report(self, engine: BatchEngine) -> Report:
        """Write the manifest, and say how it ended."""
        standing = engine.standing
        standing.leave_the_rest()
        progress = standing.progress()
        manifest = self._files.write_manifest(all_endings(standing))
        self._log.info("%s. Manifest: %s", progress.line(), manifest)
        where = {"manifest": manifest, "journal": self._spec.journal}
        summary = summary_of(standing, progress) | where
        return Report(summary, error_of(standing, self._spec.max_failures, manifest))


def finish(batch: Batch, engine: BatchEngine) -> Report:
    """Carry a batch out in this process, to its end."""
    pause = engine.run(may_pause=False)
    assert not isinstance(pause, Pause)
    return batch.report(engine)
