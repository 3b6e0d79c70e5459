# SPDX-License-Identifier: Apache-2.0
"""Submit a request, and cancel one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowException, AirflowSkipException, BaseOperator

from airflow_provider_wan import metrics
from airflow_provider_wan.exceptions import WanInputError, WanTransientError
from airflow_provider_wan.faces.ending import cancel_what_is_queued, finished, timed_out
from airflow_provider_wan.faces.errors import as_airflow_errors
from airflow_provider_wan.faces.journals import is_watched_by_others, journal_of, watcher_of
from airflow_provider_wan.faces.references import (
    DEFAULT_MODEL_ID,
    DEFAULT_TIMEOUT,
    RequestRef,
    mapping_of,
    request_of,
    seconds_of,
)
from airflow_provider_wan.faces.seen import Seen, is_waiting, saw_obtained, saw_result
from airflow_provider_wan.links.wan import WanGenerationsLink, WanVideoLink
from airflow_provider_wan.triggers.wan import WanRequestTrigger, deadline_in, is_over_for_good

if TYPE_CHECKING:
    from airflow_provider_wan.generation.journal import Journal
    from airflow_provider_wan.generation.records import Record
    from airflow_provider_wan.generation.submission import Obtained, Wanted
    from airflow_provider_wan.hooks.wan import WanHook

#: The inputs that have a parameter of their own: those of the default model.
_INPUT_PARAMETERS = (
    "prompt",
    "img_url",
    "negative_prompt",
    "template",
    "resolution",
    "duration",
    "prompt_extend",
    "seed",
)


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
    :param poll_interval: seconds between looks; None (default) adapts to the time waited and the queue.
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
        instance from ``dag_run.conf``. (templated)
    :param request: take over this request instead of submitting: an id, or what another task returned. (templated)
    :param check_image: whether to look at the image's header before buying, default True.
    :param on_invalid: what to do about an input or image that the model would refuse: ``fail`` (default, without
        retry) or ``skip`` the task, so that one bad image stops nobody else; the XCom ``refused`` then says why.
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    :param gcp_conn_id: for the journal; None (default): Application Default Credentials. (templated)
    :param impersonation_chain: a service account to act as, for the journal. (templated)

    Raises :class:`WanInputError` and the other :class:`WanRefusedError` without retry,
    :class:`WanUnknownSubmissionError` without retry, and :class:`WanTransientError`,
    :class:`WanGenerationFailedError`, :class:`WanCancelledError` and :class:`WanTimeoutError` for Airflow to retry.
    """

    template_fields: Sequence[str] = (
        *_INPUT_PARAMETERS,
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
        self.timeout = timeout
        self.cancel_on_kill = cancel_on_kill
        self.durable = durable
        self.journal = journal
        self.on_unknown_submission = on_unknown_submission
        self.resolve = resolve
        self.request = request
        self.check_image = check_image
        self.on_invalid = on_invalid
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.seen = Seen()
        self._killed = threading.Event()

    def execute(self, context: Any) -> dict[str, Any]:
        """Obtain the request, and wait for it where that was asked for."""
        from airflow_provider_wan.hooks.wan import WanHook

        with as_airflow_errors(context):
            hook = WanHook(self.wan_conn_id)
            journal = self._journal(context)
            try:
                wanted = self._wanted(context, hook)
                obtained = self._obtain(hook, journal, wanted)
            except WanInputError as error:
                self._skip_if_wished(context, error)
                raise
            ref = self._ref(obtained.record)
            saw_obtained(self, context, obtained)
            if not self.wait_for_completion:
                return ref.as_xcom()
            if obtained.how == "reused":
                return saw_result(self, context, finished(hook, journal, ref, self.log), is_new=False)
            is_waiting(context, ref)
            if self.deferrable:
                self._defer(context, ref)
            return self._wait_here(context, hook, journal, ref)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        from airflow_provider_wan.hooks.wan import WanHook

        self.seen = Seen(event["request_id"])
        with as_airflow_errors(context):
            hook = WanHook(self.wan_conn_id)
            journal = self._journal(context)
            ref = self._ref_of_event(context, hook, journal, event)
            return self._after_wait(
                context,
                hook,
                journal,
                ref,
                event["outcome"],
                str(event.get("message", "")),
                running_since=event.get("running_since"),
            )

    def on_kill(self) -> None:
        """End a wait in this worker; what follows (looking, cancelling) happens where it waits."""
        self._killed.set()

    # -- what is wanted ------------------------------------------------------------------------------------

    def _given_inputs(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in _INPUT_PARAMETERS}
        given = {name: value for name, value in given.items() if value is not None}
        more = mapping_of(self.inputs, name="inputs")
        twice = sorted(given.keys() & more.keys())
        if twice:
            raise WanInputError(
                f"{', '.join(twice)}: given as a parameter and in inputs; one of them is enough."
            )
        return {**given, **more}

    def _wanted(self, context: Any, hook: WanHook) -> Wanted:
        from airflow_provider_wan.generation.submission import Wanted
        from airflow_provider_wan.model_api.calls import check_model_id
        from airflow_provider_wan.model_api.inputs import (
            canonical_url,
            fingerprint,
            load_schema,
            validate_inputs,
            without_signatures,
        )

        model_id = check_model_id(self.model_id)
        if self.request and not self._given_inputs():
            inputs: dict[str, Any] = {}  # taking over needs no inputs
        else:
            inputs = validate_inputs(model_id, self._given_inputs())
        schema = load_schema(model_id)
        images = [str(inputs[name]) for name in (schema.image_fields if schema else ()) if name in inputs]

        def make_inputs() -> dict[str, Any]:
            if self.check_image:
                for url in images:
                    _check_image(url, model_id, allow_private=hook.settings.allow_private_images)
            return inputs

        return Wanted(
            model_id=model_id,
            make_inputs=make_inputs,
            recorded_inputs=without_signatures(inputs),
            fingerprint=fingerprint(model_id, inputs, variation=self.variation),
            image=canonical_url(images[0]) if images else None,
            variation=self.variation or None,
            watcher=watcher_of(context),
        )

    # -- obtaining it --------------------------------------------------------------------------------------

    def _journal(self, context: Any) -> Journal | None:
        if not self.durable:
            return None
        return journal_of(
            context,
            self.journal,
            gcp_conn_id=self.gcp_conn_id,
            impersonation_chain=self.impersonation_chain,
            log=self.log,
        )

    def _obtain(self, hook: WanHook, journal: Journal | None, wanted: Wanted) -> Obtained:
        from airflow_provider_wan.generation.submission import Submission

        submission = Submission(
            hook,
            journal,
            self.log,
            on_unknown_submission=self.on_unknown_submission,
            resolution=self._resolution(wanted),
        )
        if self.request:
            return submission.take_over(wanted, request_of(self.request).request_id)
        return submission.obtain(wanted)

    def _resolution(self, wanted: Wanted) -> str | None:
        from airflow_provider_wan.generation.decide import RESUBMIT
        from airflow_provider_wan.model_api.calls import check_request_id
        from airflow_provider_wan.model_api.inputs import canonical_url

        settled = {
            canonical_url(key): value for key, value in mapping_of(self.resolve, name="resolve").items()
        }
        answer = settled.get(wanted.fingerprint) or settled.get(wanted.image or "")
        if answer is None:
            return None
        return RESUBMIT if answer == RESUBMIT else check_request_id(str(answer))

    def _ref(self, record: Record) -> RequestRef:
        assert record.request_id is not None
        return RequestRef(
            request_id=record.request_id,
            model_id=record.model_id,
            fingerprint=record.fingerprint,
            submitted_at=record.submitted_at,
            journal=self.journal or None,
            image=record.image,
            variation=record.variation,
            inputs=record.inputs,
        )

    def _ref_of_event(
        self, context: Any, hook: WanHook, journal: Journal | None, event: Mapping[str, Any]
    ) -> RequestRef:
        fingerprint = event.get("fingerprint")
        held = journal.read(fingerprint) if journal is not None and fingerprint else None
        if held is not None and held.record.request_id == event["request_id"]:
            return self._ref(held.record)
        return RequestRef(event["request_id"], model_id=self.model_id, fingerprint=fingerprint)

    def _skip_if_wished(self, context: Any, error: WanInputError) -> None:
        """Skip this task instead of failing it; the XCom ``refused`` says what was wrong with what."""
        if self.on_invalid != "skip":
            return
        given = self._given_inputs()
        metrics.count(metrics.REFUSED, tags=metrics.tags_of(context, self.model_id))
        context["ti"].xcom_push(
            key="refused", value=[{"img_url": _shown(given.get("img_url")), "rule": str(error)}]
        )
        raise AirflowSkipException(str(error)) from error

    # -- waiting for it ------------------------------------------------------------------------------------

    def _defer(self, context: Any, ref: RequestRef) -> None:
        self.defer(
            trigger=WanRequestTrigger(
                wan_conn_id=self.wan_conn_id,
                request_id=ref.request_id,
                deadline=deadline_in(seconds_of(self.timeout)),
                poll_interval=self.poll_interval,
                cancel_on_kill=self.cancel_on_kill,
                fingerprint=ref.fingerprint,
                journal=self.journal or None,
                watcher=watcher_of(context),
                gcp_conn_id=self.gcp_conn_id,
                impersonation_chain=self.impersonation_chain,
            ),
            method_name="execute_complete",
        )

    def _wait_here(
        self, context: Any, hook: WanHook, journal: Journal | None, ref: RequestRef
    ) -> dict[str, Any]:
        from airflow_provider_wan.generation.waiting import start_wait, wait_in_worker

        wait = start_wait(
            ref.request_id,
            deadline=deadline_in(seconds_of(self.timeout)),
            poll_interval_s=self.poll_interval,
        )
        over = wait_in_worker(hook, wait, self.log, stop=self._killed)
        if over is None:
            raise self._was_killed(context, hook, journal, ref)
        return self._after_wait(
            context,
            hook,
            journal,
            ref,
            over.outcome,
            str(over.error or ""),
            running_since=wait.running_since,
        )

    def _after_wait(
        self,
        context: Any,
        hook: WanHook,
        journal: Journal | None,
        ref: RequestRef,
        outcome: str,
        message: str,
        *,
        running_since: float | None,
    ) -> dict[str, Any]:
        match outcome:
            case "timeout":
                raise timed_out(
                    hook,
                    journal,
                    ref,
                    message,
                    watcher=watcher_of(context),
                    within_run=True,
                    cancel=True,
                    log=self.log,
                )
            case "gone":  # the next try decides what to do about it
                raise WanTransientError(message, request_id=ref.request_id)
        result = finished(hook, journal, ref, self.log)
        return saw_result(self, context, result, running_since=running_since)

    def _was_killed(self, context: Any, hook: WanHook, journal: Journal | None, ref: RequestRef) -> Exception:
        """Decide, after a SIGTERM, whether anybody still owns the request; the next try or nobody does."""
        truth = "It is left alone: a later try takes it over."
        if self.cancel_on_kill and is_over_for_good(context["ti"]):
            others = is_watched_by_others(journal, ref.fingerprint, watcher_of(context))
            truth = cancel_what_is_queued(hook, ref.request_id, watched_by_others=others, log=self.log)
        self.log.warning("Killed while waiting for request %s. %s", ref.request_id, truth)
        killed: Exception = AirflowException(f"Killed while waiting for request {ref.request_id}. {truth}")
        return killed


def _shown(url: Any) -> str | None:
    from airflow_provider_wan.model_api.inputs import canonical_url

    return canonical_url(str(url)) if url else None


def _check_image(url: str, model_id: str, *, allow_private: bool) -> None:
    """Look at an image's header as RunComfy will see it.

    :raises WanInputError: the model would refuse it.
    """
    from airflow_provider_wan.images.check import check, explain
    from airflow_provider_wan.images.inspect import inspect
    from airflow_provider_wan.images.remote import UrlReader
    from airflow_provider_wan.model_api.inputs import image_rules

    rules = image_rules(model_id)
    if rules is None or not url.startswith(("http://", "https://")):
        return
    reader = UrlReader(url, allow_private=allow_private)
    try:
        facts = inspect(reader, name=reader.name)
    finally:
        reader.close()
    broken = check(facts, rules)
    if broken:
        raise WanInputError(explain(facts, broken))


class WanCancelOperator(BaseOperator):
    """Cancel a request that is still queued; usable as a teardown.

    Returns ``{"request_id", "cancelled", "outcome"}`` and tells the truth: a request that runs can't be cancelled,
    goes on and is charged. Where there is no request (nothing was submitted), there is nothing to do.

    :param request: a request id, or what a :class:`WanSubmitOperator` returned. (templated)
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    """

    template_fields: Sequence[str] = ("request", "wan_conn_id")
    ui_color = "#efe4fb"

    def __init__(
        self, *, request: str | Mapping[str, Any] | None, wan_conn_id: str = "wan_default", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.request = request
        self.wan_conn_id = wan_conn_id

    def execute(self, context: Any) -> dict[str, Any] | None:
        """Cancel it, if that is still possible."""
        from airflow_provider_wan.hooks.wan import WanHook

        if self.request in (None, "", "None"):
            self.log.info("There is no request to cancel: nothing was submitted.")
            return None
        with as_airflow_errors(context):
            request_id = request_of(self.request).request_id
            outcome = WanHook(self.wan_conn_id).cancel(request_id)
            if outcome.cancelled:
                self.log.info("Request %s was still queued: it is cancelled and not charged.", request_id)
            else:
                self.log.warning(
                    "Request %s can't be cancelled any more (%s): it has ended, or runs on and is charged.",
                    request_id,
                    outcome.word,
                )
            return {"request_id": request_id, "cancelled": outcome.cancelled, "outcome": outcome.word}
