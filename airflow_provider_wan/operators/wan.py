# SPDX-License-Identifier: Apache-2.0
"""Submit a request, and cancel one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowException, AirflowSkipException, BaseOperator

from airflow_provider_wan import metrics
from airflow_provider_wan.exceptions import WanInputError, WanTransientError
from airflow_provider_wan.links.wan import WanGenerationsLink, WanVideoLink
from airflow_provider_wan.operators.wan_cancel import WanCancelOperator
from airflow_provider_wan.triggers.wan import WanRequestTrigger, deadline_in, event_of, is_over_for_good
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.images import given_image, image_sources, shown_image
from airflow_provider_wan.utils.link_state import LinkState, is_waiting, on_obtained, on_result
from airflow_provider_wan.utils.params import (
    DEFAULT_MODEL_ID,
    DEFAULT_TIMEOUT,
    RequestRef,
    given_or_none,
    mapping_of,
    request_of,
    seconds_of,
    timeout_of,
)
from airflow_provider_wan.utils.spec import (
    INPUT_PARAMETERS,
    given_inputs,
    mask_signatures,
    shown_url,
    video_spec_of,
)
from airflow_provider_wan.utils.task import (
    bucket_journal,
    is_watched_by_others,
    journal_of,
    warn_that_nothing_remembers,
    watcher_of,
    watchers_of,
)
from airflow_provider_wan.utils.waits import (
    cancel_what_is_queued,
    finished,
    paid_and_gone,
    result_if_over,
    timed_out,
)

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.durable.submission import SubmitResult
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.images.source import ImageSources
    from airflow_provider_wan.model_api.video_spec import VideoSpec

__all__ = ["WanCancelOperator", "WanSubmitOperator"]


class WanSubmitOperator(BaseOperator):
    """Submit one request, and buy each wanted video once.

    What is wanted is its fingerprint: model, inputs, source image and ``variation``. A retry, a clear, a rerun
    or another run that wants the same takes over what was bought before, as far as the record of it reaches:
    with ``journal`` it reaches everywhere, without it to this run's task (Airflow 3.3 and later).

    Returns ``{"request_id", "model_id", "fingerprint", "submitted_at"}``, and with ``wait_for_completion`` the
    result: ``state``, ``videos`` (links, public and short-lived), ``cost_usd``, ``created_at`` and
    ``finished_at`` besides.

    Inputs are checked before anything is sent: field by field against the model's rules, and ``img_url`` by a
    look at the image's header. Values from Jinja or CSV are converted without loss (``"123"`` to 123);
    ``None`` means left out.

    :param prompt: what should happen in the video, at most 800 characters. (templated)
    :param image: the source image: ``gs://bucket/object`` of a private bucket too, which RunComfy gets to see by a
        signed link; ``https://...``; or a row that ``WanPrepareImagesOperator`` wrote, with its own inputs. In a
        bucket it counts as its content, wherever it lies. Instead of ``img_url``. (templated)
    :param img_url: a public address of the source image: JPEG, PNG without alpha, BMP or WEBP, 360 to 2000 px
        a side, under 10 MB. (templated)
    :param negative_prompt: what should not be there, at most 500 characters. (templated)
    :param template: name of an effect, such as ``squish``. (templated)
    :param resolution: ``480P`` (the API's default) or ``1080P``. (templated)
    :param duration: seconds; only 5, the API's default. (templated)
    :param prompt_extend: whether the API may embellish the prompt; its default is true. (templated)
    :param seed: a whole number; the same seed gives the same video. (templated)
    :param model_id: any model of the API; default ``wan-ai/wan-2-2/image-to-video``. (templated)
    :param inputs: more inputs, or all of them, by name; for models with other inputs. (templated)
    :param variation: part of the fingerprint and never sent: a new value buys one new video of the same inputs.
        (templated)
    :param wait_for_completion: whether to wait for the result, default False.
    :param deferrable: whether that wait is in the triggerer, where it holds no worker; default True.
    :param poll_interval: seconds between looks, less those that can tell nothing yet; None (default) adapts to the
        time waited and the queue.
    :param timeout: the most that one try waits, default 6 hours. A request that is still queued then is
        cancelled; one that runs is taken over by the next try.
    :param cancel_on_kill: whether a queued request is cancelled when the task is marked failed or successful while
        it waits, default True. A running request can't be cancelled and is charged.
    :param durable: whether the request is remembered across tries, default True.
    :param journal: ``gs://bucket/prefix`` where the record lives; it protects on every Airflow, across runs, deleted
        runs and two runs at once. None (default): Airflow's task state store. (templated)
    :param on_unknown_submission: what to do where a submit went out and nobody got the answer: ``fail``
        (default, without retry) or ``resubmit`` (may buy twice).
    :param resolve: how a person settled exactly that: ``{image or fingerprint: request_id or "resubmit"}``, for
        instance from ``dag_run.conf``. Should what is sent again get lost too, its error asks for ``resubmit-2``: a
        word counts once, however often a run that has it in its configuration is tried again. (templated)
    :param request: take over this request instead of submitting: an id, or what another task returned. (templated)
    :param check_image: whether to look at the image before buying, default True: at its header, and at all of it
        where it lies in a bucket.
    :param staging: ``gs://bucket/prefix`` for copies of images that the model would refuse, or that are stored
        turned or with private metadata: what can be fixed is fixed, and the copy is sent. Each is made once. None
        (default): nothing is fixed. For ``image`` only. (templated)
    :param background: what transparent parts are put on, a colour name or ``#rrggbb``; default white. (templated)
    :param too_small: ``upscale`` (default) enlarges a small image up to 8 times, ``reject`` refuses it.
    :param link_lifetime: how long the signed link works; None (default): 12 hours, or ``timeout`` where that is
        longer. At most 7 days, and 12 hours where IAM signs: a longer one is refused.
    :param on_invalid: what to do about an input or image that the model would refuse: ``fail`` (default, without
        retry) or ``skip`` the task, so that one bad image stops nobody else; the XCom ``refused`` then says why.
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    :param gcp_conn_id: for journal and images; None (default): Application Default Credentials. (templated)
    :param impersonation_chain: a service account to act as, for journal and images. (templated)

    Raises :class:`WanInputError` and the other :class:`WanRefusedError` without retry,
    :class:`WanUnknownSubmissionError` without retry, and :class:`WanTransientError`,
    :class:`WanGenerationFailedError`, :class:`WanCancelledError` and :class:`WanTimeoutError` for Airflow to retry.
    """

    template_fields: Sequence[str] = (
        *INPUT_PARAMETERS,
        "image",
        "staging",
        "background",
        "model_id",
        "inputs",
        "variation",
        "journal",
        "resolve",
        "request",
        "wan_conn_id",
        "gcp_conn_id",
        "impersonation_chain",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"inputs": "json", "resolve": "json"}
    operator_extra_links = (WanVideoLink(), WanGenerationsLink())
    ui_color = "#efe4fb"

    def __init__(
        self,
        *,
        prompt: str | None = None,
        image: str | Mapping[str, Any] | None = None,
        img_url: str | None = None,
        negative_prompt: str | None = None,
        template: str | None = None,
        resolution: str | None = None,
        duration: int | str | None = None,
        prompt_extend: bool | str | None = None,
        seed: int | str | None = None,
        model_id: str = DEFAULT_MODEL_ID,
        inputs: Mapping[str, Any] | str | None = None,
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
            raise ValueError("durable=False remembers nothing, and so needs no journal")
        self.prompt = prompt
        self.image = image
        self.img_url = img_url
        self.negative_prompt = negative_prompt
        self.template = template
        self.resolution = resolution
        self.duration = duration
        self.prompt_extend = prompt_extend
        self.seed = seed
        self.model_id = model_id
        self.inputs = inputs
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
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.seen = LinkState()
        self._killed: threading.Event | None = None  # Airflow copies tasks, and this can't be copied

    def __setattr__(self, key: str, value: Any) -> None:
        """Set an attribute; of what is rendered, Airflow keeps a copy in its database before it executes the task."""
        if key in ("img_url", "inputs", "image"):
            mask_signatures(value)
        super().__setattr__(key, value)

    def execute(self, context: Any) -> dict[str, Any]:
        """Obtain the request, and wait for it where that was asked for."""
        from airflow_provider_wan.hooks.wan import WanHook

        self._killed = threading.Event()
        with as_airflow_errors(context):
            hook = WanHook(self.wan_conn_id)
            given = given_inputs(self)
            if self._is_unseen(given):
                return self._take_over_unseen(context, hook)
            wanted = self._wanted(context, hook, given)
            journal = self._journal(context)
            obtained = self._obtain(context, hook, journal, wanted)
            ref = self._ref(context, obtained.record)
            on_obtained(self, context, obtained)
            if not self.wait_for_completion:
                return ref.as_xcom()
            if obtained.how == "reused":
                result = finished(hook, journal, ref, self.log, has_succeeded=True)
                return on_result(self, context, result, is_new=False)
            return self._wait(context, hook, journal, ref, is_new=obtained.how == "submitted")

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        from airflow_provider_wan.hooks.wan import WanHook

        self.seen = LinkState(event["request_id"])
        with as_airflow_errors(context):
            hook = WanHook(self.wan_conn_id)
            journal = self._journal(context)
            ref = self._ref_of_event(context, journal, event)
            return self._after_wait(context, hook, journal, ref, event)

    def on_kill(self) -> None:
        """End a wait in this worker; what follows (looking, cancelling) happens where it waits."""
        if self._killed is not None:
            self._killed.set()

    # -- obtaining it --------------------------------------------------------------------------------------

    def _wanted(self, context: Any, hook: WanHook, given: Mapping[str, Any]) -> VideoSpec:
        image = given_image(self.image)
        with self._skips_what_is_invalid(context):
            if image is not None:
                source = self._image_sources(hook).open(image)
                variation = given_or_none(self.variation)
                return source.wanted(self.model_id, given, variation=variation, owner=watcher_of(context))
            return video_spec_of(
                given,
                model_id=self.model_id,
                variation=given_or_none(self.variation),
                check_image=self.check_image,
                hook=hook,
                owner=watcher_of(context),
            )

    def _image_sources(self, hook: WanHook) -> ImageSources:
        return image_sources(
            self.model_id,
            log=self.log,
            allow_private=hook.settings.allow_private_images,
            gcp_conn_id=self.gcp_conn_id,
            impersonation_chain=self.impersonation_chain,
            staging=self.staging,
            background=self.background,
            too_small=self.too_small,
            check_image=self.check_image,
            link_lifetime=self.link_lifetime,
            waits_for_s=seconds_of(self.timeout) if self.wait_for_completion else 0.0,
        )

    def _obtain(
        self, context: Any, hook: WanHook, journal: Journal | None, wanted: VideoSpec
    ) -> SubmitResult:
        from airflow_provider_wan.durable.submission import Submission

        submission = Submission(
            hook,
            journal,
            self.log,
            on_unknown_submission=self.on_unknown_submission,
            resolve=mapping_of(self.resolve, name="resolve"),
            follows_task=True,
            is_retry=(getattr(context["ti"], "try_number", 1) or 1) > 1,
        )
        request = given_or_none(self.request)
        request_id = None if request is None else request_of(request).request_id
        if journal is None and self.durable:  # not before all that can be wrong with the Dag was found
            warn_that_nothing_remembers(self.log)
        if request_id is not None:
            return submission.take_over(wanted, request_id)
        with self._skips_what_is_invalid(context):
            return submission.obtain(wanted)

    def _is_unseen(self, given: Mapping[str, Any]) -> bool:
        """Tell whether a request is to be taken over without saying what it was made of."""
        return given_or_none(self.request) is not None and not given and given_image(self.image) is None

    def _take_over_unseen(self, context: Any, hook: WanHook) -> dict[str, Any]:
        """Go on with such a request: there is nothing to remember it by."""
        from airflow_provider_wan.durable.reconcile import check_it_exists

        ref = request_of(self.request)
        if ref.fingerprint is None:
            check_it_exists(hook, ref.request_id, named_in="request=")
        self.seen = LinkState(ref.request_id)
        if not self.wait_for_completion:
            return ref.as_xcom()
        return self._wait(context, hook, self._journal_of(ref), ref)

    def _journal(self, context: Any) -> Journal | None:
        if not self.durable:
            return None
        return journal_of(
            context,
            given_or_none(self.journal),
            gcp_conn_id=self.gcp_conn_id,
            impersonation_chain=self.impersonation_chain,
        )

    def _journal_of(self, ref: RequestRef) -> Journal | None:
        if not ref.journal:
            return None
        return bucket_journal(
            ref.journal, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain
        )

    def _ref(self, context: Any, record: Record) -> RequestRef:
        assert record.request_id is not None
        journal = given_or_none(self.journal)
        return RequestRef(
            request_id=record.request_id,
            model_id=record.model_id,
            fingerprint=record.fingerprint,
            submitted_at=record.submitted_at,
            journal=journal,
            watcher=watcher_of(context) if journal else None,
            image=record.image,
            variation=record.variation,
            inputs=record.inputs,
        )

    def _ref_of_event(self, context: Any, journal: Journal | None, event: Mapping[str, Any]) -> RequestRef:
        if self._is_unseen(given_inputs(self)):
            return request_of(self.request)
        fingerprint = event.get("fingerprint")
        held = journal.read(fingerprint) if journal is not None and fingerprint else None
        if held is not None and held.record.request_id == event["request_id"]:
            return self._ref(context, held.record)
        return RequestRef(event["request_id"], model_id=self.model_id, fingerprint=fingerprint)

    @contextmanager
    def _skips_what_is_invalid(self, context: Any) -> Iterator[None]:
        """Skip this task instead of failing it, where that is wished; the XCom ``refused`` says what was wrong."""
        try:
            yield
        except WanInputError as error:
            if self.on_invalid != "skip":
                raise
            metrics.count(metrics.REFUSED, tags=metrics.tags_of(context, self.model_id))
            url = shown_url(given_inputs(self).get("img_url"))
            what = {"img_url": url} if url else {"image": shown_image(self.image)}
            context["ti"].xcom_push(key="refused", value=[{**what, "rule": str(error)}])
            raise AirflowSkipException(str(error)) from error

    # -- waiting for it ------------------------------------------------------------------------------------

    def _wait(
        self, context: Any, hook: WanHook, journal: Journal | None, ref: RequestRef, *, is_new: bool = False
    ) -> dict[str, Any]:
        is_waiting(context, ref)
        if self.deferrable:
            if not is_new and (result := result_if_over(hook, ref)) is not None:
                xcom = finished(hook, journal, ref, self.log, result=result)
                return on_result(self, context, xcom)
            self._defer(context, ref)
        return self._wait_here(context, hook, journal, ref)

    def _defer(self, context: Any, ref: RequestRef) -> None:
        self.defer(
            trigger=WanRequestTrigger(
                wan_conn_id=self.wan_conn_id,
                request_id=ref.request_id,
                deadline=deadline_in(seconds_of(self.timeout)),
                poll_interval=self.poll_interval,
                cancel_on_kill=self.cancel_on_kill,
                fingerprint=ref.fingerprint,
                journal=ref.journal,
                watchers=watchers_of(context, ref),
                gcp_conn_id=self.gcp_conn_id,
                impersonation_chain=self.impersonation_chain,
            ),
            method_name="execute_complete",
        )

    def _wait_here(
        self, context: Any, hook: WanHook, journal: Journal | None, ref: RequestRef
    ) -> dict[str, Any]:
        from airflow_provider_wan.polling.waiting import start_wait, wait_in_worker

        wait = start_wait(
            ref.request_id,
            deadline=deadline_in(seconds_of(self.timeout)),
            poll_interval_s=self.poll_interval,
        )
        over = wait_in_worker(hook, wait, self.log, stop=self._killed or threading.Event())
        if over is None:
            raise self._was_killed(context, hook, journal, ref)
        return self._after_wait(context, hook, journal, ref, event_of(over, wait))

    def _after_wait(
        self,
        context: Any,
        hook: WanHook,
        journal: Journal | None,
        ref: RequestRef,
        event: Mapping[str, Any],
    ) -> dict[str, Any]:
        journal = self._journal_of(ref) or journal
        message = str(event.get("message", ""))
        match event["outcome"]:
            case "timeout":
                watchers = watchers_of(context, ref)
                raise timed_out(hook, journal, ref, message, watchers=watchers, cancel=True, log=self.log)
            case "gone" if event.get("may_be_paid"):
                raise paid_and_gone(journal, ref, message, self.log)
            case "gone":  # the next try decides what to do about it
                raise WanTransientError(message, request_id=ref.request_id)
        has_succeeded = event["outcome"] == "succeeded"
        result = finished(hook, journal, ref, self.log, has_succeeded=has_succeeded)
        return on_result(self, context, result, running_since=event.get("running_since"))

    def _was_killed(self, context: Any, hook: WanHook, journal: Journal | None, ref: RequestRef) -> Exception:
        """Decide, after a SIGTERM, whether anybody still owns the request; the next try or nobody does."""
        truth = "It is left alone: a later try takes it over."
        if self.cancel_on_kill and is_over_for_good(context["ti"]):
            others = is_watched_by_others(journal, ref.fingerprint, watchers_of(context, ref))
            truth = cancel_what_is_queued(hook, ref.request_id, watched_by_others=others, log=self.log)
        self.log.warning("Killed while waiting for request %s. %s", ref.request_id, truth)
        killed: Exception = AirflowException(f"Killed while waiting for request {ref.request_id}. {truth}")
        return killed
