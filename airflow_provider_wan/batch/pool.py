# SPDX-License-Identifier: Apache-2.0
"""The threads of a batch, and what they do: one submit, one landing, one poll or one cancel at a time.

Threads never touch the state of the batch. Each result comes back as a :class:`Completion` through one queue.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from logging import Logger
from typing import Any, Literal, NamedTuple, Self

from airflow_provider_wan.batch.plan import Item
from airflow_provider_wan.batch.prices import PriceBook
from airflow_provider_wan.batch.results import Landed
from airflow_provider_wan.batch.spec import BatchLimits, BatchSpec
from airflow_provider_wan.durable.journal import Journal, RecordConflict, VersionedRecord
from airflow_provider_wan.durable.reconcile import amend, with_result
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.durable.submission import Submission, SubmitResult
from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanDownloadError,
    WanGenerationFailedError,
    WanNoOutputError,
    WanRefusedError,
    WanStorageError,
)
from airflow_provider_wan.hooks.common import TEST_REQUEST_ID
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.landing.landing import Destination, Landing, as_landed
from airflow_provider_wan.model_api.faults import error_of_result
from airflow_provider_wan.model_api.video_spec import VideoSpec, make_video_spec

Kind = Literal["submit", "land", "poll", "check", "write", "price"]

_CANCEL_THREADS = 8


class Completion(NamedTuple):
    """The end of one piece of work.

    :param about: the name that was passed to :meth:`WorkerPool.run`.
    :param outcome: what the work returned, or the error that it raised.
    """

    kind: Kind
    about: str
    outcome: Any


class WorkerPool:
    """One thread pool for each kind of work; a context manager that waits for all of them when it ends."""

    def __init__(self, limits: BatchLimits) -> None:
        self._sizes: dict[Kind, int] = {
            "submit": limits.submit_threads,
            "land": limits.landing_threads,
            "poll": limits.poll_threads,
            "check": 1,
            "write": 1,
            "price": 2,
        }
        self._pools: dict[Kind, ThreadPoolExecutor] = {}
        self._completions: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for kind, size in self._sizes.items():
            self._pools[kind] = self._stack.enter_context(ThreadPoolExecutor(size, f"wan-{kind}"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._pools.clear()

    def run(self, kind: Kind, about: str, work: Callable[[], Any]) -> None:
        """Run a piece of work on a thread; its end appears in :meth:`completions`."""

        def run() -> None:
            try:
                self._completions.put(Completion(kind, about, work()))
            except BaseException as error:
                self._completions.put(Completion(kind, about, error))

        self._pools[kind].submit(run)

    def completions(self, timeout_s: float) -> Iterator[Completion]:
        """Wait up to this long for a completion, and return all that are there."""
        try:
            yield self._completions.get(timeout=timeout_s)
            while True:
                yield self._completions.get_nowait()
        except queue.Empty:
            return


@dataclass(slots=True)
class BatchWork:
    """The calls that take time; every method runs on threads.

    :param owner: the name of this task instance in records.
    """

    spec: BatchSpec
    hook: WanHook
    journal: Journal
    submission: Submission
    landing: Landing
    log: Logger
    owner: str
    prices: PriceBook
    #: The known costs of requests whose video can't land, by request id.
    costs: dict[str, float] = field(default_factory=dict)
    #: The records of requests that this process bought and has not landed, as they were written, by request id.
    written: dict[str, VersionedRecord] = field(default_factory=dict)

    # -- submits -------------------------------------------------------------------------------------------

    def obtain(self, item: Item, make_inputs: Callable[[], Mapping[str, Any]], *, is_new: bool) -> SubmitResult:
        """Return the request for an image, buying at most one."""
        obtained = self.submission.obtain(self._video_spec(item, make_inputs), is_new=is_new)
        if obtained.version:
            self.written[obtained.request_id] = VersionedRecord(obtained.record, obtained.version)
        return obtained

    def _video_spec(self, item: Item, make_inputs: Callable[[], Mapping[str, Any]]) -> VideoSpec:
        spec = make_video_spec(
            self.spec.model_id,
            item.inputs,
            images=item.source.to_send,
            variation=item.variation,
            owner=self.owner,
        )
        return replace(spec, make_inputs=make_inputs, fingerprint=item.fingerprint)

    def write_id(self, item: Item, request_id: str) -> None:
        """Write the id of a purchased request to the journal, after the first write failed.

        :raises WanError: it failed again.
        """
        self.submission.record_purchase(self._video_spec(item, dict), request_id)

    def check_api(self) -> None:
        """Make a call that costs nothing: the one of the connection test.

        :raises WanTransientError: the API does not answer.
        """
        with contextlib.suppress(WanRefusedError):  # any definite answer shows that the API works
            self.hook.get_status(TEST_REQUEST_ID, retry=False)

    def refresh(self, refused: WanSettings) -> bool:
        """Read the connection again, as after a rotated token; return whether the token has changed.

        :param refused: the settings whose token was refused.
        """
        try:
            return self.hook.refresh(refused)
        except Exception as error:
            self.log.warning("The connection could not be read again: %s", type(error).__name__)
            return False

    # -- polls and landings --------------------------------------------------------------------------------

    def land(self, item: Item, request_id: str) -> Landed:
        """Land the videos of a request.

        :raises WanGenerationFailedError: the request made none; its record then says so.
        :raises WanTransientError: the request has not finished yet, or there is no answer.
        """
        started = time.monotonic()
        spec = self.spec
        is_first_try = request_id in self.written  # bought after the plan had found its name free
        versioned = self._record_of(item, request_id)
        destination = Destination(spec.bucket_name, item.object_name, spec.if_exists, len(item.takes))
        price_key = self.prices.key_of(item.inputs)
        try:
            # The price is learned before the download: other purchases may wait for it, and a file server can be slow.
            landed = self.landing.land(
                versioned.record,
                destination,
                on_result=lambda result: self.prices.learn(price_key, result.cost_usd, request_id),
                is_first_try=is_first_try,
            )
        except (WanGenerationFailedError, WanCancelledError, WanDownloadError, WanNoOutputError) as error:
            if not (isinstance(error, WanDownloadError) and error.retry_helps):
                self._record_end(item, request_id)
            raise
        took_s = time.monotonic() - started
        self._record_landed(versioned, landed)
        self.prices.learn(price_key, landed.cost_usd, request_id)
        return Landed(landed, took_s, is_first_seen=not versioned.record.succeeded_once)

    def _record_of(self, item: Item, request_id: str) -> VersionedRecord:
        # If another process has changed it since, the write after the landing finds out, and reads it.
        found = self.written.pop(request_id, None) or self.journal.read(item.fingerprint)
        if found is not None and found.record.request_id == request_id:
            return found
        # The id could not be written after the purchase: write it now, or fail this landing.
        return VersionedRecord(self.submission.record_purchase(self._video_spec(item, dict), request_id), -1)

    def _record_landed(self, versioned: VersionedRecord, landed: Record) -> None:
        change = as_landed(landed)
        try:
            if versioned.version > 0:
                self.journal.write(change(versioned.record), replaces=versioned)
                return
        except (RecordConflict, WanStorageError):
            pass
        assert landed.request_id is not None
        amend(self.journal, landed.fingerprint, landed.request_id, change, self.log)

    def _record_end(self, item: Item, request_id: str) -> None:
        """Record the outcome of a request whose video can't land."""
        result = self.hook.get_result(request_id)
        if result.cost_usd is not None:
            self.costs[request_id] = result.cost_usd
        amend(self.journal, item.fingerprint, request_id, lambda record: with_result(record, result), self.log)
        if (failure := error_of_result(result)) is not None:
            raise failure

    # -- cancels -------------------------------------------------------------------------------------------

    def cancel(self, requests: Sequence[tuple[str, str]]) -> int:
        """Cancel queued requests that have no other owner; return how many were cancelled.

        :param requests: request ids, each with its fingerprint.
        """

        def cancel_one(request: tuple[str, str]) -> bool:
            request_id, fingerprint = request
            try:
                found = self.journal.read(fingerprint)
                if found is None or found.record.request_id != request_id:
                    return False
                if found.record.stage is Stage.LANDED or found.record.is_needed_by_others(self.owner):
                    return False
                return self.hook.cancel(request_id).cancelled
            except Exception as error:  # of one request, such as an outage of the secrets backend
                self.log.warning("Request %s was not cancelled: %s", request_id, error)
                return False

        with ThreadPoolExecutor(_CANCEL_THREADS) as pool:
            return sum(pool.map(cancel_one, reversed(requests)))
