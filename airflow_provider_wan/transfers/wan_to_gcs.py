# SPDX-License-Identifier: Apache-2.0
"""Land the videos of a request in Google Cloud Storage."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_wan import metrics
from airflow_provider_wan.landing.checks import OnBadVideo, UserCheck, VideoChecks, bad_video_error
from airflow_provider_wan.links.wan import WanBucketLink, WanGenerationsLink, WanVideoLink
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.params import RequestRef, given_or_none, request_of
from airflow_provider_wan.utils.task import LinkState, TaskRequest

if TYPE_CHECKING:
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.hooks.wan import WanHook


class WanToGCSOperator(BaseOperator):
    """Land every video of a request in a bucket: whole and verified, or not at all.

    Any number of retries, clears and parallel runs gives one object. A request whose journal says that it has landed
    under another name is copied from there inside Cloud Storage, even after RunComfy has deleted its result. The record
    ``{object_name}.json`` next to the first video has inputs, times and cost; it is one JSON object on one line, ready
    to be loaded into a table.

    Returns a list of ``{"uri", "bucket", "object_name", "size_bytes", "crc32c", "generation", "content_type",
    "request_id", "facts", "verdict"}``, one a video.

    :param request: a request id, or the return value of a ``WanSubmitOperator`` or ``WanRequestSensor``;
        ``expand(request=sensor.output)`` works. (templated)
    :param bucket_name: the bucket, without ``gs://``. (templated)
    :param object_name: name of the first video; one that ends with ``/`` (the default is an empty prefix) gets
        ``{request_id}.mp4``. More videos get ``-2``, ``-3`` before the suffix. (templated)
    :param if_exists: if another object has that name: ``skip`` (default) succeeds only if it is this
        request's video or has the same bytes, and raises otherwise; ``overwrite`` replaces it; ``fail`` raises unless
        it is this request's.
    :param max_size_bytes: a larger file is refused, default 2 GiB.
    :param checks: names of built-in checks (``short``, ``size``, ``black``, ``frozen``, ``first_frame``, ``audio``,
        ``damaged``) and functions ``(path, facts, record)`` that return None for a good video and the reason for a bad
        one; None (default): all built-in checks; ``[]``: videos are neither decoded nor checked. Most of them need the
        extra ``[video]``.
    :param on_bad_video: ``report`` (default): a bad video lands as others do, and its verdict says why it is bad;
        ``reject``: it lands in the folder ``_rejected/`` beside the others; ``fail``: the same, and the task fails.
    :param records: ``gs://bucket/prefix`` of a table of all clips, to which the task adds the records of the request
        as newline-delimited JSON by day, ``runs/dt=2026-01-31/....jsonl``; None (default): to none. (templated)
    :param wan_conn_id: the connection, default ``wan_default``; its ``download_hosts`` say where videos may
        come from. (templated)
    :param gcp_conn_id: a Google Cloud connection, which needs the extra ``[google]``; None (default): Application
        Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)

    :raises WanDownloadError: a file could not be downloaded whole, or may not be.
    :raises WanNoOutputError: the result has no video.
    :raises WanBadVideoError: a check found something wrong, with ``on_bad_video="fail"``.
    :raises WanConflictError: another video has the name.
    :raises WanStorageError: the bucket refused, or did not answer.
    :raises WanGenerationFailedError: the request failed.
    :raises WanCancelledError: the request was cancelled.
    """

    template_fields: Sequence[str] = (
        "request", "bucket_name", "object_name", "records", "wan_conn_id", "gcp_conn_id", "impersonation_chain",
    )  # fmt: skip
    operator_extra_links = (WanVideoLink(), WanBucketLink(), WanGenerationsLink())
    ui_color = "#d9ecff"

    def __init__(
        self,
        *,
        request: str | Mapping[str, Any],
        bucket_name: str,
        object_name: str = "",
        if_exists: Literal["skip", "overwrite", "fail"] = "skip",
        max_size_bytes: int = 2 * 1024**3,
        checks: Sequence[str | UserCheck] | None = None,
        on_bad_video: OnBadVideo = "report",
        records: str | None = None,
        wan_conn_id: str = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if if_exists not in ("skip", "overwrite", "fail"):
            raise ValueError('if_exists must be "skip", "overwrite" or "fail"')
        VideoChecks.of(checks, on_bad_video)
        self.request = request
        self.bucket_name = bucket_name
        self.object_name = object_name
        self.if_exists = if_exists
        self.max_size_bytes = max_size_bytes
        self.checks = checks
        self.on_bad_video = on_bad_video
        self.records = records
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.link_state = LinkState()
        self._landed: Record | None = None

    def execute(self, context: Any) -> list[dict[str, Any]]:
        """Land the videos."""
        started = time.monotonic()
        with as_airflow_errors(context):
            ref = request_of(self.request)
            self.link_state = LinkState(ref.request_id)
            task = TaskRequest.of(self, context)
            landed = self._land(task.hook, ref)
            self._emit(task, landed, time.monotonic() - started)
            if self.on_bad_video == "fail" and landed.is_bad:
                raise bad_video_error(landed)
        return [video.as_dict() for video in landed.videos]

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return image, videos, cost and processing time for OpenLineage, which calls this if it is installed."""
        if self._landed is None:
            return None
        from airflow_provider_wan.lineage.openlineage import lineage_of

        return lineage_of(self._landed)

    def _emit(self, task: TaskRequest, landed: Record, took_s: float) -> None:
        """Emit links, assets, lineage and metrics for the landed videos."""
        from airflow_provider_wan.lineage.assets import emit_outlets

        self._landed = landed
        first = landed.videos[0]
        self.link_state = LinkState(first.request_id, landed=(first.bucket, first.object_name))
        emit_outlets(task.outlet_events, self.outlets, landed)
        metrics.emit_landing(landed, took_s, tags=task.tags(landed.model_id or None))

    def _land(self, hook: WanHook, ref: RequestRef) -> Record:
        from airflow_provider_wan.durable.journal import BucketJournal
        from airflow_provider_wan.durable.reconcile import amend
        from airflow_provider_wan.exceptions import WanInputError
        from airflow_provider_wan.hooks.gcs import split_gs_uri, storage_client
        from airflow_provider_wan.landing.download import Downloader, video_rules
        from airflow_provider_wan.landing.landing import Destination, Landing, as_landed
        from airflow_provider_wan.landing.table import leave_records
        from airflow_provider_wan.lineage.assets import emit_hook_lineage

        bucket_name, path = split_gs_uri(f"gs://{self.bucket_name.removeprefix('gs://')}", name="bucket_name")
        if path:
            raise WanInputError(f"bucket_name={self.bucket_name!r}: the path {path!r} belongs into object_name.")
        destination = Destination(bucket_name, self.object_name, self.if_exists)
        rules = video_rules(
            hook.settings.download_hosts,
            max_size_bytes=self.max_size_bytes,
            stall_s=min(30.0, hook.settings.timeout_s),
        )
        client = storage_client(self.gcp_conn_id, self.impersonation_chain)
        journal = BucketJournal(client, ref.journal) if ref.journal else None
        found = journal.read(ref.fingerprint) if journal is not None and ref.fingerprint else None
        known = found.record if found is not None and found.record.request_id == ref.request_id else None
        checks = VideoChecks.of(self.checks, self.on_bad_video)
        landing = Landing(hook, client, Downloader(rules, self.log), self.log, checks=checks)
        landed = landing.land(known or _record_of(ref), destination)
        emit_hook_lineage(hook, landed, self.log)
        if journal is not None and ref.fingerprint:
            amend(journal, ref.fingerprint, ref.request_id, as_landed(landed), self.log)
        if records := given_or_none(self.records):
            leave_records(client, records, ref.request_id, [landed], self.log)
        return landed


def _record_of(ref: RequestRef) -> Record:
    """Return a record of a request that comes without one."""
    from airflow_provider_wan.durable.record import Record, Stage

    return Record(
        fingerprint=ref.fingerprint or "",
        model_id=ref.model_id or "",
        stage=Stage.SUBMITTED,
        inputs=dict(ref.inputs or {}),
        image=ref.image,
        variation=ref.variation,
        request_id=ref.request_id,
        submitted_at=ref.submitted_at,
    )
