# SPDX-License-Identifier: Apache-2.0
"""One task for a whole set of images."""

from __future__ import annotations

import dataclasses
import posixpath
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowException, BaseOperator

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.landing.checks import OnBadVideo, UserCheck, VideoChecks
from airflow_provider_wan.links.wan import WanBucketLink, WanGenerationsLink
from airflow_provider_wan.model_api import INPUT_PARAMETERS
from airflow_provider_wan.triggers.wan import WanBatchTrigger, deadline_in, is_over_for_good
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.images import image_sources
from airflow_provider_wan.utils.params import (
    DEFAULT_MODEL_ID,
    flag_of,
    given_inputs,
    given_or_none,
    mapping_of,
    mask_signatures,
    model_of,
    seconds_of,
    timeout_of,
)
from airflow_provider_wan.utils.price import number_of, prices_of
from airflow_provider_wan.utils.task import LinkState, TaskRequest

if TYPE_CHECKING:
    from airflow_provider_wan.batch.batch import Batch
    from airflow_provider_wan.batch.engine import BatchEngine, Pause
    from airflow_provider_wan.batch.report import Report
    from airflow_provider_wan.batch.results import Progress
    from airflow_provider_wan.batch.spec import BatchSpec
    from airflow_provider_wan.lineage.assets import BatchEnd

#: Signed links of images work for this long by default.
DEFAULT_BATCH_TIMEOUT = timedelta(hours=12)
#: XCom keys: the present figures, and the summary, which a failed task has too.
PROGRESS_KEY, SUMMARY_KEY = "progress", "summary"


class WanBatchOperator(BaseOperator):
    """Turn a set of images into videos in a bucket: submit, wait and land until all are done.

    Every image is bought once, despite retries, clears, kills and parallel runs: requests are recorded in a journal
    next to the videos. While nothing is ready, the task holds no worker slot, and one trigger polls all requests. A
    rerun of a finished batch buys nothing. Mapped over chunk manifests, ``expand(images=prepare.output)``, it spreads
    over all workers.

    A bad image does not stop the others. When all that can be done is done, the task fails if more than
    ``max_failures`` images have no video, or if a limit came first. The manifest has the result of each image, one
    line of JSON each.

    An outlet gets one event, whose extra has the summary's figures, and ``videos`` where there are at most 20.

    Returns the summary: ``total``, a count for each outcome (``landed``, ``reused``, ``failed``, ``cancelled``,
    ``refused``, ``unknown``, ``not_landed``, ``no_output``, ``rejected``, ``left``), ``bad`` and ``usable`` (of the
    videos that are there), ``further_takes`` (of rejected videos), ``bought``, ``cost_usd``, ``cost_per_usable_usd``
    (the cost of all takes divided by the good videos that this task bought), ``size_bytes``, ``duration_s``,
    ``manifest`` and ``journal``. The XCom ``summary`` is the same, also for a failed task; ``progress`` has the
    present figures.

    :param images: ``gs://bucket/prefix/`` (all images under it), the address of a manifest (``.csv``, ``.jsonl``;
        also a chunk that ``WanPrepareImagesOperator`` wrote), or a list of addresses and rows. The columns of a row
        override the inputs below; one that is named after another image field of the model takes an image like
        ``image``. Rows of a text-to-video model have no image. (templated)
    :param bucket_name: the bucket of the videos. (templated)
    :param object_name: a prefix that ends with ``/`` (default: none), below which videos are named
        ``{name}-{fingerprint}.mp4`` after their images; or a pattern with ``{name}``, ``{fingerprint}``,
        ``{variation}`` and the columns of ``passthrough``. (templated)
    :param journal: ``gs://bucket/prefix`` of the records; None (default): ``_journal`` below the prefix. (templated)
    :param prompt: for rows without their own; as in ``WanSubmitOperator``, like the inputs that follow. (templated)
    :param negative_prompt: (templated)
    :param template: (templated)
    :param resolution: (templated)
    :param duration: (templated)
    :param prompt_extend: (templated)
    :param seed: (templated)
    :param model_id: any model of the API; default ``wan-ai/wan-2-2/image-to-video``. (templated)
    :param image_field: the input that takes the images of the column ``image``; None (default): found from the model's
        schema. (templated)
    :param inputs: more inputs by name. (templated)
    :param schema: as in ``WanSubmitOperator``, where the model's page is wrong. (templated)
    :param require_schema: as there, default False. (templated)
    :param variation: for rows without their own: a new value buys another take of every image. (templated)
    :param passthrough: columns of the manifest that are not inputs.
    :param max_in_flight: requests submitted and not finished, at most; default 100.
    :param deferrable: whether to wait in the triggerer, default True; otherwise in the worker.
    :param resume_when_ready: return to a worker when this many requests have finished; None (default): a quarter of
        ``max_in_flight``, 50 at most.
    :param resume_after: or when the oldest of them has waited this long, default 60 s.
    :param timeout: the longest time of one try, default 12 hours. Requests that are still queued then are cancelled,
        and a rerun adopts those that run.
    :param cancel_on_kill: whether queued requests without another owner are cancelled when the task is marked failed
        or successful, default True.
    :param max_cost_usd: stop buying before this is exceeded. It counts all that this task instance has ever bought,
        across retries and clears. (templated)
    :param max_requests: stop buying after this many requests, including failed ones. (templated)
    :param share_of: of a mapped task: the number of chunks that share the two limits. (templated)
    :param price_usd: of one request, in USD, or a price for each combination of inputs, such as
        ``{"resolution=1080P": 0.5, "": 0.1}``, of which the entry that names most inputs counts. None (default): with
        ``max_cost_usd`` one clip of each combination is bought first and its real cost is learned; without it, what
        was learned before, or the base price of the model's page. (templated)
    :param dry_run: plan only: the summary says how many videos would be bought and at what cost. From a template also
        a word such as ``"true"`` or ``"on"``; any other word is refused before anything is bought. (templated)
    :param max_failures: how many images may have no video: a count, or a share such as ``0.05`` or ``"5%"``; default 0.
        (templated)
    :param retries_per_image: how many further requests may follow a failed one in the same try, default 0.
    :param on_unknown_submission: as in ``WanSubmitOperator``.
    :param resolve: as there, for any number of images. (templated)
    :param if_exists: what to do if another object has a video's name: ``skip`` (default) and ``fail`` refuse to buy
        for that name, ``overwrite`` replaces it; see also ``WanToGCSOperator``.
    :param max_size_bytes: a larger file is refused, default 2 GiB.
    :param checks: as in ``WanToGCSOperator``.
    :param on_bad_video: ``report`` (default): a bad video lands as others do, and the manifest says why it is bad;
        ``reject``: it lands in the folder ``_rejected/`` beside the others, with the outcome ``rejected``; ``fail``:
        the same, and it counts against ``max_failures``.
    :param rebuy_rejected: how many times a rejected video is bought again, at most, default 0; needs
        ``on_bad_video="reject"``. Each further take has a seed of its own, if the model has one, and a record that
        retries and reruns find. It counts against ``max_requests`` and ``max_cost_usd``; if these allow no more, the
        image stays ``rejected``.
    :param records: ``gs://bucket/prefix`` of a table of all clips, to which the task adds the records of its requests
        as newline-delimited JSON by day, ``runs/dt=2026-01-31/....jsonl``; None (default): to none. (templated)
    :param parallel_submits: submits at the same time, default 8.
    :param parallel_landings: landings at the same time, default 4; each takes up to 60 MB of memory.
    :param progress_interval: seconds between two lines of progress in the log, default 30.
    :param check_image: as in ``WanSubmitOperator``, like the image parameters that follow.
    :param staging: (templated)
    :param background: (templated)
    :param too_small: ``upscale`` or ``reject``.
    :param link_lifetime: how long a signed link works.
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    :param gcp_conn_id: for bucket, journal and images; None (default): Application Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)
    :raises WanBatchError: more images than ``max_failures`` have no video.
    :raises WanBudgetError: a limit came before the end; so do :class:`WanBalanceError` and :class:`WanTimeoutError`.
    :raises WanInputError: the dataset or a parameter can't be read.
    """

    template_fields: Sequence[str] = (
        "images", "bucket_name", "object_name", "journal", *(name for name in INPUT_PARAMETERS if name != "img_url"),
        "model_id", "image_field", "inputs", "schema", "require_schema", "variation", "max_cost_usd", "max_requests",
        "share_of", "price_usd", "dry_run", "max_failures", "resolve", "records", "staging", "background",
        "wan_conn_id", "gcp_conn_id", "impersonation_chain",
    )  # fmt: skip
    template_fields_renderers: ClassVar[dict[str, str]] = dict.fromkeys(("inputs", "schema", "resolve"), "json")
    operator_extra_links = (WanBucketLink(), WanGenerationsLink())
    ui_color = "#e2f3e4"

    def __init__(
        self,
        *,
        images: Any,
        bucket_name: str,
        object_name: str = "",
        journal: str | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        template: str | None = None,
        resolution: str | None = None,
        duration: int | str | None = None,
        prompt_extend: bool | str | None = None,
        seed: int | str | None = None,
        model_id: str = DEFAULT_MODEL_ID,
        image_field: str | None = None,
        inputs: Mapping[str, Any] | str | None = None,
        schema: Mapping[str, Any] | str | None = None,
        require_schema: bool | str = False,
        variation: str | None = None,
        passthrough: Sequence[str] = (),
        max_in_flight: int = 100,
        deferrable: bool = True,
        resume_when_ready: int | None = None,
        resume_after: timedelta | float = 60.0,
        timeout: timedelta | float = DEFAULT_BATCH_TIMEOUT,
        cancel_on_kill: bool = True,
        max_cost_usd: float | str | None = None,
        max_requests: int | str | None = None,
        share_of: int | str | None = None,
        price_usd: float | str | Mapping[str, float] | None = None,
        dry_run: bool | str = False,
        max_failures: int | float | str = 0,
        retries_per_image: int = 0,
        on_unknown_submission: Literal["fail", "resubmit"] = "fail",
        resolve: Mapping[str, str] | str | None = None,
        if_exists: Literal["skip", "overwrite", "fail"] = "skip",
        max_size_bytes: int = 2 * 1024**3,
        checks: Sequence[str | UserCheck] | None = None,
        on_bad_video: OnBadVideo = "report",
        rebuy_rejected: int = 0,
        records: str | None = None,
        parallel_submits: int = 8,
        parallel_landings: int = 4,
        progress_interval: float = 30.0,
        check_image: bool = True,
        staging: str | None = None,
        background: str = "white",
        too_small: Literal["upscale", "reject"] = "upscale",
        link_lifetime: timedelta | float | None = None,
        wan_conn_id: str = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_unknown_submission not in ("fail", "resubmit"):
            raise ValueError('on_unknown_submission must be "fail" or "resubmit"')
        if if_exists not in ("skip", "overwrite", "fail"):
            raise ValueError('if_exists must be "skip", "overwrite" or "fail"')
        if min(max_in_flight, parallel_submits, parallel_landings) < 1 or retries_per_image < 0:
            raise ValueError(
                "max_in_flight, parallel_submits and parallel_landings must be 1 or more, retries_per_image 0 or more"
            )
        VideoChecks.of(checks, on_bad_video)
        if rebuy_rejected < 0 or (rebuy_rejected and on_bad_video != "reject"):
            raise ValueError('rebuy_rejected must be 0 or more, and needs on_bad_video="reject"')
        self.images = images
        self.bucket_name = bucket_name
        self.object_name = object_name
        self.journal = journal
        self.prompt = prompt
        self.img_url = None
        self.negative_prompt = negative_prompt
        self.template = template
        self.resolution = resolution
        self.duration = duration
        self.prompt_extend = prompt_extend
        self.seed = seed
        self.model_id = model_id
        self.image_field = image_field
        self.inputs = inputs
        self.schema = schema
        self.require_schema = require_schema
        self.variation = variation
        self.passthrough = passthrough
        self.max_in_flight = max_in_flight
        self.deferrable = deferrable
        self.resume_when_ready = resume_when_ready
        self.resume_after = resume_after
        self.timeout = timeout_of(timeout)
        self.cancel_on_kill = cancel_on_kill
        self.max_cost_usd = max_cost_usd
        self.max_requests = max_requests
        self.share_of = share_of
        self.price_usd = price_usd
        self.dry_run = dry_run
        self.max_failures = max_failures
        self.retries_per_image = retries_per_image
        self.on_unknown_submission = on_unknown_submission
        self.resolve = resolve
        self.if_exists = if_exists
        self.max_size_bytes = max_size_bytes
        self.checks = checks
        self.on_bad_video = on_bad_video
        self.rebuy_rejected = rebuy_rejected
        self.records = records
        self.parallel_submits = parallel_submits
        self.parallel_landings = parallel_landings
        self.progress_interval = progress_interval
        self.check_image = check_image
        self.staging = staging
        self.background = background
        self.too_small = too_small
        self.link_lifetime = link_lifetime
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.link_state = LinkState()
        self._end: BatchEnd | None = None
        self._stop: threading.Event | None = None  # set in execute: an event can't be copied

    def __setattr__(self, key: str, value: Any) -> None:
        """Mask signatures in a rendered template before Airflow stores it."""
        if key in ("images", "inputs"):
            mask_signatures(value)
        super().__setattr__(key, value)

    def execute(self, context: Any) -> dict[str, Any]:
        """Run the batch up to its first wait, or its end. Earlier purchases are found in the journal."""
        self._stop = threading.Event()
        with as_airflow_errors(context):
            is_dry_run = flag_of(self.dry_run, name="dry_run")
            deadline = deadline_in(seconds_of(self.timeout))
            task = TaskRequest.of(self, context)
            batch = self._batch(task, deadline)
            if is_dry_run:
                return batch.dry_run().summary
            engine = batch.begin()
            self._push(task, batch, engine.progress())
            return self._run(task, batch, engine, deadline)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after a wait in the triggerer."""
        self._stop = threading.Event()
        with as_airflow_errors(context):
            deadline = float(event["deadline"])
            task = TaskRequest.of(self, context)
            batch = self._batch(task, deadline)
            return self._run(task, batch, batch.resume(event), deadline)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return images, videos, cost and time for OpenLineage, which calls this where it is installed."""
        if self._end is None:
            return None
        from airflow_provider_wan.lineage.openlineage import lineage_of_batch

        return lineage_of_batch(self._end)

    def on_kill(self) -> None:
        """Start nothing more; work in progress is finished and recorded."""
        if self._stop is not None:
            self._stop.set()

    def _run(self, task: TaskRequest, batch: Batch, engine: BatchEngine, deadline: float) -> dict[str, Any]:
        pause = batch.run(engine, may_pause=self.deferrable)
        if self._stop is not None and self._stop.is_set():
            raise self._was_killed(task, engine)
        if pause is not None:
            self._set_links(engine, next(iter(pause.request_ids), None))
            self._show(task, batch, engine.progress())
            self._wait_in_triggerer(task, pause, deadline)
        report = batch.report(engine)
        self._emit_end(task, batch, engine, report)
        if report.error is not None:
            raise report.error
        return report.summary

    def _wait_in_triggerer(self, task: TaskRequest, pause: Pause, deadline: float) -> None:
        self.log.info("%d requests are in flight. Waiting for them in the triggerer.", len(pause.request_ids))
        ready = self.resume_when_ready or min(50, self.max_in_flight // 4)
        self.defer(
            trigger=WanBatchTrigger(
                wan_conn_id=self.wan_conn_id,
                request_ids=pause.request_ids,
                deadline=deadline,
                resume_when_ready=max(1, min(ready, len(pause.request_ids))),
                resume_after=seconds_of(self.resume_after),
                not_later_than=pause.not_later_than,
                started=pause.started,
                learned=pause.learned,
                look_at=pause.poll_at,
                cancel_on_kill=self.cancel_on_kill,
                journal=self._journal_uri(),
                watcher=task.owner,
                gcp_conn_id=self.gcp_conn_id,
                impersonation_chain=self.impersonation_chain,
            ),
            method_name="execute_complete",
        )

    def _was_killed(self, task: TaskRequest, engine: BatchEngine) -> Exception:
        """Cancel queued requests after a SIGTERM, unless another try follows and adopts them."""
        done = "Requests in flight are left alone: a later try takes them over."
        if self.cancel_on_kill and is_over_for_good(task.ti):
            done = engine.cancel_queued()
        self.log.warning("Killed. %s", done)
        killed: Exception = AirflowException(f"The batch was killed. {done}")
        return killed

    # -- the parameters ------------------------------------------------------------------------------------

    def _batch(self, task: TaskRequest, deadline: float) -> Batch:
        from airflow_provider_wan.batch.batch import Batch
        from airflow_provider_wan.hooks.gcs import storage_client

        threads = self.parallel_submits + self.parallel_landings + 16
        batch = Batch(
            self._spec(task, deadline),
            task.hook,
            storage_client(self.gcp_conn_id, self.impersonation_chain, pool_size=threads),
            image_sources(
                self,
                task.hook,
                model_of(self, task.hook),
                check_image=self.check_image,
                link_lifetime=self.link_lifetime,
                waits_for_s=seconds_of(self.timeout),
                workers=threads,
            ),
            self.log,
            owner=task.owner,
            stop=self._stop,
            on_progress=lambda progress: self._show(task, batch, progress),
            tags=task.tags(self.model_id),
        )
        return batch

    def _spec(self, task: TaskRequest, deadline: float) -> BatchSpec:
        from airflow_provider_wan.batch.results import MaxFailures
        from airflow_provider_wan.batch.spec import BatchLimits, BatchSpec
        from airflow_provider_wan.hooks.gcs import split_gs_uri

        bucket_name, _ = split_gs_uri(f"gs://{self.bucket_name.removeprefix('gs://')}", name="bucket_name")
        try:
            max_failures = MaxFailures.of(self.max_failures)
        except ValueError:
            raise WanInputError(
                f"max_failures={self.max_failures!r} must be a count, or a share between 0 and 1."
            ) from None
        return BatchSpec(
            images=self.images,
            bucket_name=bucket_name,
            object_name=self.object_name,
            journal=self._journal_uri(),
            model_id=self.model_id,
            limits=BatchLimits(
                deadline,
                max_in_flight=self.max_in_flight,
                retries_per_image=self.retries_per_image,
                submit_threads=self.parallel_submits,
                landing_threads=self.parallel_landings,
                progress_every_s=self.progress_interval,
            ),
            inputs=given_inputs(self),
            variation=given_or_none(self.variation),
            passthrough=tuple(self.passthrough),
            budget=self._budget(task),
            price_usd=prices_of(self.price_usd),
            max_failures=max_failures,
            on_unknown_submission=self.on_unknown_submission,
            resolve=mapping_of(self.resolve, name="resolve"),
            if_exists=self.if_exists,
            max_size_bytes=self.max_size_bytes,
            checks=VideoChecks.of(self.checks, self.on_bad_video),
            rebuy_rejected=self.rebuy_rejected,
            records=given_or_none(self.records),
        )

    def _budget(self, task: TaskRequest) -> Any:
        from airflow_provider_wan.batch.budget import BudgetLimits

        count, of = (
            number_of(self.max_requests, name="max_requests"),
            number_of(self.share_of, name="share_of"),
        )
        limits = BudgetLimits(number_of(self.max_cost_usd, name="max_cost_usd"), None if count is None else int(count))
        if of is None:
            return limits
        return dataclasses.replace(limits, index=max(0, task.ti.map_index or 0), of=int(of))

    def _journal_uri(self) -> str:
        given: str | None = given_or_none(self.journal)
        if given:
            return given.rstrip("/")
        return f"gs://{self.bucket_name.removeprefix('gs://').rstrip('/')}/{self._prefix()}_journal"

    def _bucket(self) -> str:
        return self.bucket_name.removeprefix("gs://").partition("/")[0]

    def _prefix(self) -> str:
        """Return the folder of all videos, with its slash."""
        folder = posixpath.dirname(self.object_name.partition("{")[0])
        return f"{folder}/" if folder else ""

    # -- progress and end ----------------------------------------------------------------------------------

    def _show(self, task: TaskRequest, batch: Batch, progress: Progress) -> None:
        self.log.info("%s", progress.line())
        self._push(task, batch, progress)

    def _push(self, task: TaskRequest, batch: Batch, progress: Progress) -> None:
        """Push the figures, and the address of the status file for the gallery."""
        more = {"standing": batch.status_uri, "journal": self._journal_uri()}
        task.ti.xcom_push(key=PROGRESS_KEY, value=progress.as_dict() | more)

    def _set_links(self, engine: BatchEngine, request_id: str | None = None) -> None:
        """Set the targets of the links on the task's page."""
        results = engine.results.values()
        request_id = request_id or next((result.request_id for result in results if result.request_id), None)
        is_there = any(result.outcome.is_there for result in results)
        self.link_state = LinkState(request_id, landed=(self._bucket(), self._prefix()) if is_there else None)

    def _emit_end(self, task: TaskRequest, batch: Batch, engine: BatchEngine, report: Report) -> None:
        """Pass the end of the batch to links, assets and lineage."""
        from airflow_provider_wan.lineage.assets import BatchEnd, emit_batch_hook_lineage, emit_batch_outlets

        self._set_links(engine)
        self._push(task, batch, engine.progress())
        task.ti.xcom_push(key=SUMMARY_KEY, value=report.summary)
        results = tuple(engine.results[fingerprint] for fingerprint in engine.state.plan.items)
        self._end = end = BatchEnd(self.model_id, self._bucket(), self._prefix(), report.summary, results)
        emit_batch_hook_lineage(task.hook, end, self.log)
        if report.error is None:
            emit_batch_outlets(task.outlet_events, self.outlets, end)
