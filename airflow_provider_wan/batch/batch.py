# SPDX-License-Identifier: Apache-2.0
"""One batch, images to videos in a bucket: puts plan, budget, engine and files together.

Everything that a killed run needs is in the journal. A batch that starts over plans again, lists the journal instead
of reading every record, counts its earlier purchases against its limits, takes over what is in flight, and continues.

One row goes from :mod:`~airflow_provider_wan.batch.plan` to :mod:`~airflow_provider_wan.batch.submits`, the poller,
:mod:`~airflow_provider_wan.batch.landings` and :mod:`~airflow_provider_wan.batch.report`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.checkpoint import BatchFiles, Checkpoint
from airflow_provider_wan.batch.engine import BatchEngine, Pause
from airflow_provider_wan.batch.metrics import BatchMetrics
from airflow_provider_wan.batch.plan import Item, Plan
from airflow_provider_wan.batch.planner import Planner
from airflow_provider_wan.batch.pool import BatchWork
from airflow_provider_wan.batch.prices import PriceBook
from airflow_provider_wan.batch.report import SHOWN_ERRORS, Report, all_results, error_of, summary_of
from airflow_provider_wan.batch.results import Outcome, Progress
from airflow_provider_wan.batch.spec import BatchSpec
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.durable.journal import TrackedJournal, VersionedRecord
from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.durable.submission import Submission
from airflow_provider_wan.exceptions import WanError, WanStorageError
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.landing.download import Downloader, video_rules
from airflow_provider_wan.landing.landing import Landing
from airflow_provider_wan.landing.table import leave_records
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.polling.poller import RequestPoller
from airflow_provider_wan.polling.schedule import policy_of

if TYPE_CHECKING:
    from google.cloud import storage

#: The status file of a larger batch is not written at every wait, but at most this many lines a second.
_STATUS_ALWAYS_UP_TO, _STATUS_LINES_PER_SECOND = 2_000, 200.0
#: The checkpoint of a larger batch leaves out what a listing shows: of 100,000 images it would have 80 MB.
_ALL_SAVED_UP_TO = 20_000


class Batch:
    """One batch of one task instance.

    :param sources: opens source images.
    :param owner: the name of the task instance in records.
    :param stop: set to end early.
    :param on_progress: called at intervals with the progress figures.
    :param tags: the tags of its metrics.
    """

    def __init__(
        self,
        spec: BatchSpec,
        hook: WanHook,
        client: storage.Client,
        sources: ImageSources,
        log: Logger,
        *,
        owner: str,
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._spec = spec
        self._hook = hook
        self._client = client
        self._log = log
        self._owner = owner
        self._stop = stop or threading.Event()
        self._on_progress = on_progress
        self._tags = tags or {}
        self._journal = TrackedJournal(client, spec.journal)
        self._files = BatchFiles(self._journal, owner)
        self._sources = sources
        self._planner = Planner(spec, client, self._journal, sources, log)
        self._prices = PriceBook(
            hook,
            self._journal,
            sources.model,
            log,
            given=spec.price_usd,
            limits=spec.budget,
            owner=owner,
        )
        self._checkpoint = Checkpoint(time.time())

    @property
    def status_uri(self) -> str | None:
        """The address of the status file; None before it was first written."""
        return self._files.status_uri if self._checkpoint.shown_at else None

    # -- start and resume ----------------------------------------------------------------------------------

    def begin(self) -> BatchEngine:
        """Plan the batch, and subtract what the journal and the destination already hold.

        :raises WanBudgetError: there is a limit in USD and no price; nothing was bought.
        :raises WanInputError: the dataset can't be read.
        """
        self._prices.load_page()  # before any slow step
        before = self._files.read_plan(self._log)
        plan = self._planner.plan(before.fingerprints() if before else ())
        self._prices.load(plan, self._usable(plan))
        self._files.write_plan(plan, self._owner, self._sources.model.known)
        done = len(plan.items.keys() & plan.there)
        self._log.info(
            "%d videos of model %s: %d to generate, %d already done, %d rejected.",
            plan.total,
            self._spec.model_id,
            len(plan.items) - done,
            done,
            len(plan.refused),
        )
        return self._engine(plan, RequestPoller(policy_of(self._hook.settings)))

    def resume(self, event: Mapping[str, Any]) -> BatchEngine:
        """Continue after a wait in the triggerer.

        :param event: the payload of the trigger's event.
        """
        self._checkpoint = self._files.take_checkpoint(self._log) or self._checkpoint
        started = event.get("started") or {}
        poller = RequestPoller.resume(policy_of(self._hook.settings), event.get("learned"), (), started, time.time())
        saved = self._files.read_plan(self._log)
        model = self._sources.model
        if saved and (known := saved.model(model.model_id, model.chosen_field)):
            model.use(known)
        plan = self._planner.plan_again(saved, self._checkpoint.known) if saved else self._planner.plan()
        plan.there |= {name for name, result in self._checkpoint.results.items() if result.outcome.is_there}
        self._prices.load_page()
        self._prices.load(plan, self._usable(plan))
        engine = self._engine(plan, poller, started=started)
        engine.state.mark_finished(event.get("ready") or ())
        engine.state.mark_missing(event.get("gone") or ())
        return engine

    def run(self, engine: BatchEngine, *, may_pause: bool) -> Pause | None:
        """Run up to a wait, which is saved, or to the end.

        While the ids of purchases can't be saved anywhere, this process is all that knows them: it goes on itself.

        :raises WanStorageError: a wait can't be saved; every purchase is in the journal.
        """
        pause = engine.run(may_pause=may_pause)
        if pause is None or self._stop.is_set():
            return None
        try:
            self.save(engine)
        except WanStorageError as error:
            if not engine.state.unwritten:
                raise
            self._log.warning("The batch waits in this worker, because its state can't be saved: %s", error)
            return engine.run(may_pause=False)
        return pause

    def save(self, engine: BatchEngine) -> None:
        """Save the state before a wait. Images that a limit left are submitted again, so that the error names it."""
        plan = engine.state.plan
        known = {**plan.known, **plan.former, **self._journal.latest}
        names = {take.fingerprint for item in plan.items.values() for take in item.takes} | plan.former.keys()
        summaries = {name: summary for name in names if (summary := known.get(name))}
        is_small = plan.total <= _ALL_SAVED_UP_TO
        self._checkpoint.known = summaries if is_small else None
        self._checkpoint.results = {
            name: result
            for name, result in engine.results.items()
            if result.outcome is not Outcome.LEFT and (is_small or not result.outcome.is_there)
        }
        self._write_status(engine.state)
        self._files.write_checkpoint(self._checkpoint)

    def _write_status(self, state: BatchState) -> None:
        """Write the status file. Best effort: a failure here must not fail the batch."""
        total, now = state.plan.total, time.time()
        shown_at = self._checkpoint.shown_at
        if total > _STATUS_ALWAYS_UP_TO and now - shown_at < total / _STATUS_LINES_PER_SECOND:
            return
        try:
            self._files.write_status(state.lines())
            self._checkpoint.shown_at = now
        except WanError as error:
            self._log.info("The status file could not be written: %s", error)

    def dry_run(self) -> Report:
        """Plan only, and report how many videos would be bought and at what cost."""
        self._prices.load_page()
        plan = self._planner.plan()
        self._prices.load(plan, self._usable(plan))
        to_do, usable = plan.to_do(), self._usable(plan, shows=SHOWN_ERRORS)
        to_buy = [item for item in usable if not plan.is_in_journal(item.fingerprint)]
        summary = {
            "dry_run": True,
            "model_id": self._spec.model_id,
            "total": plan.total,
            "reused": len(plan.items) - len(to_do),
            "in_journal": len(usable) - len(to_buy),
            "refused": len(plan.refused) + len(to_do) - len(usable),
            "to_buy": len(to_buy),
            "journal": self._spec.journal,
            **self._prices.summary(Counter(self._prices.key_of(item.inputs) for item in to_buy)),
        }
        if self._spec.rebuy_rejected:
            summary |= self._at_most(to_buy, usable)
        self._log.info("Dry run, nothing is bought: %s", summary)
        return Report(summary)

    def _at_most(self, to_buy: Collection[Item], usable: Iterable[Item]) -> dict[str, Any]:
        """Return how many requests are bought, and at what cost, if every video is rejected on every take."""
        counts = Counter(self._prices.key_of(item.inputs) for item in to_buy)
        for item in usable:
            further = self._spec.rebuy_rejected + 1 - len(item.takes)
            counts[self._prices.key_of(item.inputs)] += max(0, further)
        cost_usd = self._prices.summary(counts)["cost_usd"]
        return {"to_buy_at_most": counts.total(), "cost_at_most_usd": cost_usd}

    def _usable(self, plan: Plan, *, shows: int = 0) -> list[Item]:
        """Return the items that are not done, and whose inputs are valid.

        :param shows: of how many others the problem is logged.
        """
        usable = []
        for item in plan.to_do():
            problem = self._planner.check.problem(item.inputs, item.source.fields)
            if problem is None:
                usable.append(item)
            elif shows > 0:
                shows -= 1
                self._log.warning("%s would be refused: %s", item.source.shown, problem)
        return usable

    def _engine(self, plan: Plan, poller: RequestPoller, *, started: Mapping[str, float] | None = None) -> BatchEngine:
        spec = self._spec
        state = BatchState(
            plan,
            Budget(spec.budget),
            poller,
            self._log,
            checkpoint=self._checkpoint,
            owner=self._owner,
            started=started or {},
            prices=self._prices,
            rebuy_rejected=spec.rebuy_rejected,
            metrics=BatchMetrics(self._tags),
        )

        def on_progress(progress: Progress) -> None:
            self._write_status(state)
            if self._on_progress is not None:
                self._on_progress(progress)
            else:
                self._log.info("%s", progress.line())

        return BatchEngine(
            state,
            self._work(),
            check=self._planner.check,
            stop=self._stop,
            on_progress=on_progress,
        )

    def _work(self) -> BatchWork:
        spec, hook = self._spec, self._hook
        submission = Submission(
            hook,
            self._journal,
            self._log,
            on_unknown_submission=spec.on_unknown_submission,
            resolve=spec.resolve,
            retry=RetryPolicy(tries=1),  # the engine pauses all submits together instead
            is_retry=True,  # one free call before the first claim: an API that is down puts no image in doubt
        )
        rules = video_rules(
            hook.settings.download_hosts,
            max_size_bytes=spec.max_size_bytes,
            stall_s=min(30.0, hook.settings.timeout_s),
        )
        return BatchWork(
            spec,
            hook=hook,
            journal=self._journal,
            submission=submission,
            landing=Landing(hook, self._client, Downloader(rules, self._log), self._log, checks=spec.checks),
            log=self._log,
            owner=self._owner,
            prices=self._prices,
        )

    # -- the end -------------------------------------------------------------------------------------------

    def report(self, engine: BatchEngine) -> Report:
        """Write the manifest, and return how the batch ended."""
        state = engine.state
        state.leave_the_rest()
        progress = state.progress()
        try:
            manifest = self._files.write_manifest(all_results(state))
        except WanStorageError as error:
            if not state.unwritten:
                raise
            # Only the error of this task still names the purchased requests: raise it.
            self._log.error("The manifest could not be written: %s", error)
            manifest = ""
        self._log.info("%s. Manifest: %s", progress.line(), manifest)
        if self._spec.records:
            records = self._purchased_records(state)
            leave_records(self._client, self._spec.records, self._owner, records, self._log)
        summary = summary_of(state, progress) | {
            "manifest": manifest,
            "journal": self._spec.journal,
            "model_id": self._spec.model_id,
        }
        failure = error_of(
            state,
            self._spec.max_failures,
            manifest,
            resubmits=self._spec.on_unknown_submission == "resubmit",
            rejected_fails=self._spec.checks.on_bad_video == "fail",
        )
        return Report(summary, failure)

    def _purchased_records(self, state: BatchState) -> Iterator[Record]:
        """Read the records of the requests that this task instance has bought."""
        plan = state.plan
        names = [name for name, summary in plan.former.items() if summary.bought_by(self._owner)]
        for item in plan.items.values():
            names += [take.fingerprint for take in item.takes[:-1]]
            result = state.results[item.fingerprint]
            if result.outcome is Outcome.UNKNOWN or (result.request_id and result.outcome is not Outcome.REUSED):
                names.append(item.fingerprint)
        for _, found in self._journal.read_each(dict.fromkeys(names)):
            if isinstance(found, VersionedRecord) and found.record.buyer == self._owner:
                yield found.record
