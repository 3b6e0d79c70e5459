# SPDX-License-Identifier: Apache-2.0
"""The record beside a video: what it was made from and with, when and at what cost, for people and for tables."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from logging import Logger
from typing import TYPE_CHECKING

from airflow_provider_wan.durable.api import Api
from airflow_provider_wan.durable.reconcile import with_result
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, storage_errors
from airflow_provider_wan.landing.objects import META_REQUEST, Destination, id_of, is_of

if TYPE_CHECKING:
    from google.cloud import storage


class RecordBeside:
    """Writes ``{object_name}.json`` beside the first video of a request.

    :param hook: the API, for the cost where an earlier try did not come to write it.
    :param client: a Cloud Storage client.
    """

    def __init__(self, hook: Api, client: storage.Client, log: Logger) -> None:
        self._hook = hook
        self._client = client
        self._log = log

    def write(self, record: Record, destination: Destination, *, is_first: bool = False) -> None:
        """Write it, unless it is there; a video that is there never fails on it.

        Something else under that name is only replaced where it is the record of a video that was replaced too.

        :param is_first: whether the video has just landed, so that nothing is there most likely: then the name is
            looked at only where the write finds that something is, which saves a round trip.
        """
        request_id = id_of(record)
        name = f"{destination.name_of(0, request_id)}.json"
        try:
            if is_first and self._put_record(self._complete(record), destination.bucket_name, name, None):
                return
            there = self._get_blob(destination.bucket_name, name)
            owner = (there.metadata or {}).get(META_REQUEST) if there is not None else None
            if owner == request_id:
                return
            if there is not None and (owner is None or not self._is_ours(record)):
                self._log.warning(
                    "gs://%s/%s is not the record of request %s and was left as it is.",
                    destination.bucket_name,
                    name,
                    request_id,
                )
                return
            self._put_record(self._complete(record), destination.bucket_name, name, there)
        except WanError as error:
            self._log.warning("The record beside the video could not be written: %s", error)

    def _put_record(self, record: Record, bucket: str, name: str, there: storage.Blob | None) -> bool:
        """Write it in place of what was seen there; False: something else is there, as another try's record."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._client.bucket(bucket).blob(name)
        blob.metadata = {META_REQUEST: id_of(record)}
        with storage_errors(f"Writing gs://{bucket}/{name}"):
            try:
                blob.upload_from_string(
                    (replace(record, claim="", watchers=(), earlier_buyers=()).to_json() + "\n").encode(),
                    content_type="application/json",
                    if_generation_match=int(there.generation) if there is not None else 0,
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            except PreconditionFailed:
                return False
        return True

    def _is_ours(self, record: Record) -> bool:
        """Whether the first video itself says that it is this request's, and does not just have its bytes."""
        first = record.videos[0]
        blob = self._get_blob(first.bucket, first.object_name)
        return blob is not None and is_of(blob, id_of(record), 0)

    def _complete(self, record: Record) -> Record:
        """Ask for the cost where an earlier try landed the video and ended before it wrote the record."""
        if record.cost_usd is not None or record.finished_at is not None:
            return record
        with contextlib.suppress(WanError):
            result = self._hook.get_result(id_of(record), retry=False)
            known = with_result(replace(record, stage=Stage.SUBMITTED), result)
            return replace(known, stage=record.stage, succeeded_once=True)
        return record

    def _get_blob(self, bucket: str, name: str) -> storage.Blob | None:
        with storage_errors(f"Looking for gs://{bucket}/{name}"):
            return self._client.bucket(bucket).get_blob(name, timeout=TIMEOUT_S, retry=retry_policy())
