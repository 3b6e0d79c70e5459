# SPDX-License-Identifier: Apache-2.0
"""What a batch's threads do: one submit, one landing, one look, one cancel. By the same code as the single tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from logging import Logger
from typing import Any

from airflow_provider_wan.batch.listener import Landed
from airflow_provider_wan.batch.plan import Item
from airflow_provider_wan.durable.journal import Journal, RecordConflict, VersionedRecord
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.durable.submission import (
    Submission,
    SubmitResult,
    amend,
    raise_unless_succeeded,
    with_result,
)
from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanDownloadError,
    WanError,
    WanGenerationFailedError,
    WanStorageError,
)
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.landing.landing import Destination, IfExists, Landing, as_landed
from airflow_provider_wan.model_api.calls import RequestStatus
from airflow_provider_wan.model_api.video_spec import SourceImage, VideoSpec, make_video_spec

_CANCEL_THREADS = 8


@dataclass(slots=True)
class BatchWork:
    """Does what takes time; every method is called from threads.

    :param image_field: the input that takes the image's address.
    :param watcher: how records name this task instance.
    """

    hook: WanHook
    journal: Journal
    submission: Submission
    landing: Landing
    log: Logger
    model_id: str
    image_field: str
    bucket_name: str
    watcher: str
    if_exists: IfExists = "skip"
    #: What requests were charged that no video can be landed of, where it is known.
    costs: dict[str, float] = field(default_factory=dict)

    def obtain(
        self, item: Item, make_inputs: Callable[[], Mapping[str, Any]], *, is_new: bool
    ) -> SubmitResult:
        """Obtain the request for an image, buying at most one."""
        return self.submission.obtain(self._wanted(item, make_inputs), is_new=is_new)

    def _wanted(self, item: Item, make_inputs: Callable[[], Mapping[str, Any]]) -> VideoSpec:
        spec = make_video_spec(
            self.model_id,
            item.inputs,
            image=SourceImage(self.image_field, item.source.shown, item.source.identity),
            variation=item.variation,
            owner=self.watcher,
            validate=False,
        )
        return replace(spec, make_inputs=make_inputs)

    def status(self, request_id: str) -> RequestStatus:
        """Look where a request stands, once."""
        return self.hook.get_status(request_id, retry=False)

    def land(self, item: Item, request_id: str) -> Landed:
        """Land what a request has made.

        :raises WanGenerationFailedError: it made nothing; its record then says so.
        :raises WanTransientError: it is not over yet, or nobody answers.
        """
        started = time.monotonic()
        held = self._held(item, request_id)
        destination = Destination(self.bucket_name, item.object_name, self.if_exists)
        try:
            landed = self.landing.land(held.record, destination)
        except (WanGenerationFailedError, WanCancelledError, WanDownloadError) as error:
            if not (isinstance(error, WanDownloadError) and error.retry_helps):
                self._remember_end(item, request_id)
            raise
        took_s = time.monotonic() - started
        self._write_landed(held, landed)
        return Landed(landed, took_s, is_first_seen=not held.record.succeeded_once)

    def _held(self, item: Item, request_id: str) -> VersionedRecord:
        held = self.journal.read(item.fingerprint)
        if held is not None and held.record.request_id == request_id:
            return held
        # The bucket was out when its id was to be written: it is written now, or this landing fails.
        wanted = self._wanted(item, dict)
        return VersionedRecord(self.submission.take_over(wanted, request_id).record, -1)

    def _write_landed(self, held: VersionedRecord, landed: Record) -> None:
        change = as_landed(landed)
        try:
            if held.version > 0:
                self.journal.write(change(held.record), replaces=held)
                return
        except (RecordConflict, WanStorageError):
            pass
        assert landed.request_id is not None
        amend(self.journal, landed.fingerprint, landed.request_id, change, self.log)

    def _remember_end(self, item: Item, request_id: str) -> None:
        """Write down how a request ended that no video can be landed of."""
        result = self.hook.get_result(request_id)
        if result.cost_usd is not None:
            self.costs[request_id] = result.cost_usd
        amend(
            self.journal, item.fingerprint, request_id, lambda record: with_result(record, result), self.log
        )
        raise_unless_succeeded(result)

    @property
    def settings(self) -> WanSettings:
        """The connection as it is known now."""
        return self.hook.settings

    def refresh(self, refused: WanSettings) -> bool:
        """Read the connection again, as after a rotated token; tells whether the token is another one.

        :param refused: the settings whose token was not taken.
        """
        try:
            return self.hook.refresh(refused)
        except Exception as error:
            self.log.warning("The connection could not be read again: %s", type(error).__name__)
            return False

    def cancel(self, requests: Sequence[tuple[str, str]]) -> int:
        """Cancel queued requests that no other task counts on; tells how many were cancelled.

        :param requests: request ids, each with its fingerprint.
        """

        def cancel_one(request: tuple[str, str]) -> bool:
            request_id, fingerprint = request
            try:
                held = self.journal.read(fingerprint)
                if held is None or held.record.request_id != request_id:
                    return False
                if held.record.stage is Stage.LANDED or set(held.record.watchers) - {self.watcher}:
                    return False
                return self.hook.cancel(request_id).cancelled
            except WanError as error:
                self.log.warning("Request %s was not cancelled: %s", request_id, error)
                return False

        with ThreadPoolExecutor(_CANCEL_THREADS) as pool:
            return sum(pool.map(cancel_one, reversed(requests)))
