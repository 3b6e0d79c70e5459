# SPDX-License-Identifier: Apache-2.0
"""Submit a request, and cancel one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowException, AirflowSkipException, BaseOperator

from airflow_provider_wan import metrics
from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.links.wan import WanGenerationsLink, WanVideoLink
from airflow_provider_wan.model_api import INPUT_PARAMETERS
from airflow_provider_wan.operators.wan_cancel import WanCancelOperator
from airflow_provider_wan.triggers.wan import deadline_in, is_over_for_good, trigger_for
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.images import (
    given_image,
    given_images,
    image_sources,
    open_images,
    shown_image,
)
from airflow_provider_wan.utils.params import (
    DEFAULT_MODEL_ID,
    DEFAULT_TIMEOUT,
    RequestRef,
    given_inputs,
    given_or_none,
    mapping_of,
    mask_signatures,
    model_of,
    request_of,
    seconds_of,
    timeout_of,
)
from airflow_provider_wan.utils.price import with_limit
from airflow_provider_wan.utils.results import AwaitedRequest
from airflow_provider_wan.utils.task import LinkState, TaskRequest

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.durable.submission import SubmitResult
    from airflow_provider_wan.model_api.schema import LazyModel
    from airflow_provider_wan.model_api.video_spec import VideoSpec

__all__ = ["WanCancelOperator", "WanSubmitOperator"]


class WanSubmitOperator(BaseOperator):
    """Submit one request, and buy each video once.

    A video is identified by its fingerprint: model, inputs, source image and ``variation``. A retry, a clear, a rerun
    or another run that asks for the same video adopts the request that was bought earlier, if it finds its record:
    with ``journal`` from everywhere, without it only from this task of this run (Airflow 3.3 and later).

    Returns ``{"request_id", "model_id", "fingerprint", "submitted_at"}``, and with ``wait_for_completion`` also the
    result: ``state``, ``videos`` (links, public and short-lived), ``cost_usd``, ``created_at`` and ``finished_at``.

    Before a purchase the inputs are checked against the model's rules, which its page at RunComfy states, and the
    images too. Values from Jinja or CSV are converted without loss (``"123"`` to 123); ``None`` means left out.

    :param prompt: the description of the video; for Wan 2.2 at most 800 characters. (templated)
    :param image: the source image: ``gs://bucket/object``, also of a private bucket (RunComfy gets a signed link);
        ``https://...``; or a row that ``WanPrepareImagesOperator`` wrote, with its own inputs. An image in a bucket is
        identified by its content. (templated)
    :param images: images of other inputs by name, such as ``{"end_image_url": "gs://..."}``; an input that takes
        several has a list. They are treated as ``image`` is. (templated)
    :param image_field: the input that takes ``image``; None (default): found from the model's schema. (templated)
    :param img_url: for Wan 2.2, instead of ``image``: a public address of the source image: JPEG, PNG without alpha,
        BMP or WEBP, 360 to 2000 px a side, under 10 MB. (templated)
    :param negative_prompt: content to keep out of the video, at most 500 characters. (templated)
    :param template: name of an effect, such as ``squish``. (templated)
    :param resolution: ``480P`` (the API's default) or ``1080P``. (templated)
    :param duration: seconds; only 5, the API's default. (templated)
    :param prompt_extend: whether the API may extend the prompt; its default is true. (templated)
    :param seed: a whole number; the same seed gives the same video. (templated)
    :param model_id: any model of the API; default ``wan-ai/wan-2-2/image-to-video``. (templated)
    :param inputs: more inputs, or all of them, by name; for other models. (templated)
    :param schema: the JSON schema of the inputs, as a mapping or JSON text, where the model's page is wrong; None
        (default): the page's. (templated)
    :param require_schema: whether to refuse a model whose page can't be read; default False: its inputs are sent
        unchecked, and the log says so. (templated)
    :param variation: part of the fingerprint and never sent: a new value buys one new video of the same inputs.
        (templated)
    :param wait_for_completion: whether to wait for the result, default False.
    :param deferrable: whether to wait in the triggerer, without a worker; default True.
    :param poll_interval: seconds between polls; None (default) adapts to the time waited and the queue.
    :param timeout: the longest wait of one try, default 6 hours. A request that this task submitted and that is still
        queued then is cancelled; a running one is adopted by the next try.
    :param cancel_on_kill: whether a queued request that this task submitted is cancelled when the task is marked failed
        or successful while it waits, default True. A running request can't be cancelled and is charged.
    :param durable: whether the request is recorded across tries, default True.
    :param journal: ``gs://bucket/prefix`` of the records. It protects on every Airflow, across runs, deleted runs and
        two runs at once. None (default): Airflow's task state store. (templated)
    :param on_unknown_submission: what to do about a submit whose outcome is not known: ``fail`` (default, without
        retry) or ``resubmit`` (another try sends it again, which may buy it twice).
    :param resolve: a person's answers about such submits: ``{fingerprint: request_id or "resubmit"}``, for instance
        from ``dag_run.conf``. An image's address works as the key if the image has one open claim. If the repeated
        submit is lost too, its error asks for ``resubmit-2``: each word counts once. (templated)
    :param request: adopt this request instead of submitting: an id, or the return value of another task. (templated)
    :param check_image: whether to check the image before a purchase, default True: its header, and all of it if it is
        in a bucket.
    :param staging: ``gs://bucket/prefix`` for copies of images that the model would refuse, or that are stored
        rotated or with private metadata: they are fixed if possible, and the copy is sent. Each is made once. None
        (default): nothing is fixed. For ``image`` only. (templated)
    :param background: the background of transparent images, a colour name or ``#rrggbb``; default white. (templated)
    :param too_small: ``upscale`` (default) enlarges a small image up to 8 times, ``reject`` refuses it.
    :param link_lifetime: how long the signed link works; None (default): 12 hours, or ``timeout`` where that is
        longer. At most 7 days, and 12 hours where IAM signs: a longer one is refused.
    :param on_invalid: what to do about an input or image that the model would refuse: ``fail`` (default, without
        retry) or ``skip`` the task; the XCom ``refused`` then says why.
    :param max_cost_usd: the most that the request may cost, in USD; None (default): no limit. It is not submitted if
        its price is higher: the given one, else the one learned next to ``journal``, else the base price of the model's
        page, which the log names as such. (templated)
    :param price_usd: the price of a request in USD, or a mapping of prices by inputs, as for ``WanBatchOperator``.
        (templated)
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    :param gcp_conn_id: for journal and images; None (default): Application Default Credentials. (templated)
    :param impersonation_chain: a service account to act as, for journal and images. (templated)

    Raises :class:`WanInputError` and the other :class:`WanRefusedError` without retry,
    :class:`WanUnknownSubmissionError` without retry, and :class:`WanTransientError`,
    :class:`WanGenerationFailedError`, :class:`WanCancelledError` and :class:`WanTimeoutError` for Airflow to retry.
    """

    template_fields: Sequence[str] = (
        *INPUT_PARAMETERS, "image", "images", "image_field", "staging", "background", "model_id", "inputs", "schema",
        "require_schema", "variation", "journal", "resolve", "request", "max_cost_usd", "price_usd", "wan_conn_id",
        "gcp_conn_id", "impersonation_chain",
    )  # fmt: skip
    template_fields_renderers: ClassVar[dict[str, str]] = dict.fromkeys(
        ("images", "inputs", "schema", "resolve"), "json"
    )
    operator_extra_links = (WanVideoLink(), WanGenerationsLink())
    ui_color = "#efe4fb"

    def __init__(
        self,
        *,
        prompt: str | None = None,
        image: str | Mapping[str, Any] | None = None,
        images: Mapping[str, str | list[str]] | str | None = None,
        image_field: str | None = None,
        img_url: str | None = None,
        negative_prompt: str | None = None,
        template: str | None = None,
        resolution: str | None = None,
        duration: int | str | None = None,
        prompt_extend: bool | str | None = None,
        seed: int | str | None = None,
        model_id: str = DEFAULT_MODEL_ID,
        inputs: Mapping[str, Any] | str | None = None,
        schema: Mapping[str, Any] | str | None = None,
        require_schema: bool | str = False,
        variation: str | None = None,
        wait_for_completion: bool = False,
        deferrable: bool = True,
        poll_interval: float | None = None,
        timeout: timedelta | float = DEFAULT_TIMEOUT,
        cancel_on_kill: bool = True,
        durable: bool = True,
        journal: str | None = None,
        on_unknown_submission: Literal["fail", "resubmit"] = "fail",
        resolve: Mapping[str, str] | str | None = None,
        request: str | Mapping[str, Any] | None = None,
        check_image: bool = True,
        staging: str | None = None,
        background: str = "white",
        too_small: Literal["upscale", "reject"] = "upscale",
        link_lifetime: timedelta | float | None = None,
        on_invalid: Literal["fail", "skip"] = "fail",
        max_cost_usd: float | str | None = None,
        price_usd: float | str | Mapping[str, float] | None = None,
        wan_conn_id: str = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_unknown_submission not in ("fail", "resubmit"):
            raise ValueError('on_unknown_submission must be "fail" or "resubmit"')
        if on_invalid not in ("fail", "skip"):
            raise ValueError('on_invalid must be "fail" or "skip"')
        if journal is not None and not durable:
            raise ValueError("durable=False keeps no record, so it can't have a journal")
        self.prompt = prompt
        self.image = image
        self.images = images
        self.image_field = image_field
        self.img_url = img_url
        self.negative_prompt = negative_prompt
        self.template = template
        self.resolution = resolution
        self.duration = duration
        self.prompt_extend = prompt_extend
        self.seed = seed
        self.model_id = model_id
        self.inputs = inputs
        self.schema = schema
        self.require_schema = require_schema
        self.variation = variation
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout_of(timeout)
        self.cancel_on_kill = cancel_on_kill
        self.durable = durable
        self.journal = journal
        self.on_unknown_submission = on_unknown_submission
        self.resolve = resolve
        self.request = request
        self.check_image = check_image
        self.staging = staging
        self.background = background
        self.too_small = too_small
        self.link_lifetime = link_lifetime
        self.on_invalid = on_invalid
        self.max_cost_usd = max_cost_usd
        self.price_usd = price_usd
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.link_state = LinkState()
        self._killed: threading.Event | None = None  # set in execute: an event can't be copied

    def __setattr__(self, key: str, value: Any) -> None:
        """Set an attribute, and mask signatures: Airflow stores rendered fields before it executes the task."""
        if key in ("img_url", "inputs", "image", "images"):
            mask_signatures(value)
        super().__setattr__(key, value)

    def execute(self, context: Any) -> dict[str, Any]:
        """Obtain the request, and wait for it if requested."""
        self._killed = threading.Event()
        with as_airflow_errors(context):
            task = TaskRequest.of(self, context)
            given = given_inputs(self)
            if self._is_request_alone(given):
                return self._take_over_alone(task)
            model = model_of(self, task.hook)
            spec = self._video_spec(task, model, given)
            journal = self._journal(task)
            obtained = self._obtain(task, model, journal, spec)
            task.on_obtained(obtained)
            wait = self._awaited(task, journal, obtained.record)
            if not self.wait_for_completion:
                return wait.ref.as_xcom()
            if obtained.how == "reused":
                return task.on_result(wait.finished(has_succeeded=True), is_new=False)
            return self._wait(wait, is_new=obtained.how == "submitted")

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after the wait in the triggerer."""
        with as_airflow_errors(context):
            self.link_state = LinkState(event["request_id"])
            task = TaskRequest.of(self, context)
            return self._awaited_of_event(task, event).result_after(event)

    def on_kill(self) -> None:
        """End a wait in this worker; the wait itself decides whether to cancel."""
        if self._killed is not None:
            self._killed.set()

    # -- obtaining the request -----------------------------------------------------------------------------

    def _video_spec(self, task: TaskRequest, model: LazyModel, given: Mapping[str, Any]) -> VideoSpec:
        image, images = given_image(self.image), given_images(self.images)
        with self._skips_invalid(task):
            sources = image_sources(
                self,
                task.hook,
                model,
                check_image=self.check_image,
                link_lifetime=self.link_lifetime,
                waits_for_s=seconds_of(self.timeout) if self.wait_for_completion else 0.0,
            )
            source = open_images(sources, image, images, inputs=given, variation=given_or_none(self.variation))
            return source.spec(owner=task.owner, validates=True)

    def _obtain(self, task: TaskRequest, model: LazyModel, journal: Journal | None, spec: VideoSpec) -> SubmitResult:
        from airflow_provider_wan.durable.submission import Submission

        submission = Submission(
            task.hook,
            journal,
            self.log,
            on_unknown_submission=self.on_unknown_submission,
            resolve=mapping_of(self.resolve, name="resolve"),
            follows_task=True,
            is_retry=task.is_retry,
        )
        request = given_or_none(self.request)
        request_id = None if request is None else request_of(request).request_id
        has_no_journal = self.durable and not given_or_none(self.journal)
        if request_id is not None:
            if has_no_journal:
                task.warn_about_protection()
            return submission.take_over(spec, request_id)
        spec = with_limit(
            spec,
            task,
            model,
            max_cost_usd=self.max_cost_usd,
            price_usd=self.price_usd,
            journal=given_or_none(self.journal) if self.durable else None,
        )

        def make_inputs() -> Mapping[str, Any]:
            inputs = spec.make_inputs()  # the checks that can still fail for free
            if has_no_journal:
                task.warn_about_protection()
            return inputs

        with self._skips_invalid(task):
            return submission.obtain(replace(spec, make_inputs=make_inputs))

    def _is_request_alone(self, given: Mapping[str, Any]) -> bool:
        """Return whether to adopt a request without its inputs."""
        has_images = given_image(self.image) is not None or given_images(self.images)
        return given_or_none(self.request) is not None and not given and not has_images

    def _take_over_alone(self, task: TaskRequest) -> dict[str, Any]:
        """Continue with such a request; without inputs there is no fingerprint, and so no record."""
        from airflow_provider_wan.durable.reconcile import check_it_exists

        wait = AwaitedRequest.of(task, request_of(self.request))
        if wait.ref.fingerprint is None:
            check_it_exists(task.hook, wait.ref.request_id, named_in="request=")
        self.link_state = LinkState(wait.ref.request_id)
        return self._wait(wait) if self.wait_for_completion else wait.ref.as_xcom()

    def _journal(self, task: TaskRequest) -> Journal | None:
        return task.journal(given_or_none(self.journal)) if self.durable else None

    def _awaited(self, task: TaskRequest, journal: Journal | None, record: Record) -> AwaitedRequest:
        assert record.request_id is not None
        uri = given_or_none(self.journal)
        ref = RequestRef(
            request_id=record.request_id,
            model_id=record.model_id,
            fingerprint=record.fingerprint,
            submitted_at=record.submitted_at,
            journal=uri,
            owner=task.owner if uri else None,
            image=record.image,
            variation=record.variation,
            inputs=record.inputs,
        )
        return AwaitedRequest(task, ref, journal, is_own=not record.taken_over)

    def _awaited_of_event(self, task: TaskRequest, event: Mapping[str, Any]) -> AwaitedRequest:
        if self._is_request_alone(given_inputs(self)):
            return AwaitedRequest.of(task, request_of(self.request))
        journal, fingerprint = self._journal(task), event.get("fingerprint")
        held = journal.read(fingerprint) if journal is not None and fingerprint else None
        if held is not None and held.record.request_id == event["request_id"]:
            return self._awaited(task, journal, held.record)
        ref = RequestRef(event["request_id"], model_id=self.model_id, fingerprint=fingerprint)
        return AwaitedRequest(task, ref, journal, is_own=given_or_none(self.request) is None)

    @contextmanager
    def _skips_invalid(self, task: TaskRequest) -> Iterator[None]:
        """With ``on_invalid="skip"``, skip this task instead of failing it; the XCom ``refused`` says why."""
        try:
            yield
        except WanInputError as error:
            if self.on_invalid != "skip":
                raise
            from airflow_provider_wan.model_api.fingerprints import canonical_url

            metrics.count(metrics.REFUSED, tags=task.tags(self.model_id))
            url = given_inputs(self).get("img_url")
            image = {"img_url": canonical_url(str(url))} if url else {"image": shown_image(self.image)}
            task.ti.xcom_push(key="refused", value=[{**image, "rule": str(error)}])
            raise AirflowSkipException(str(error)) from None

    # -- waiting for it ------------------------------------------------------------------------------------

    def _wait(self, wait: AwaitedRequest, *, is_new: bool = False) -> dict[str, Any]:
        wait.task.on_waiting(wait.ref)
        if not self.deferrable:
            return self._wait_here(wait)
        result, not_before = (None, None) if is_new else wait.result_if_over()
        if result is not None:
            return wait.task.on_result(wait.finished(result=result))
        trigger = trigger_for(
            wait,
            timeout_s=seconds_of(self.timeout),
            poll_interval=self.poll_interval,
            cancel_on_kill=self.cancel_on_kill,
            not_before=not_before,
        )
        self.defer(trigger=trigger, method_name="execute_complete")
        raise AssertionError("defer raises")

    def _wait_here(self, wait: AwaitedRequest) -> dict[str, Any]:
        event = wait.wait_here(
            deadline=deadline_in(seconds_of(self.timeout)),
            poll_interval=self.poll_interval,
            stop=self._killed or threading.Event(),
        )
        if event is None:
            raise self._was_killed(wait)
        return wait.result_after(event)

    def _was_killed(self, wait: AwaitedRequest) -> Exception:
        """Decide, after a SIGTERM, whether the request still has an owner."""
        outcome = "It is left alone: a later try takes it over."
        if self.cancel_on_kill and is_over_for_good(wait.task.ti):
            outcome = wait.cancel_if_queued()
        message = f"Killed while waiting for request {wait.ref.request_id}. {outcome}"
        self.log.warning(message)
        killed: Exception = AirflowException(message)
        return killed
