# SPDX-License-Identifier: Apache-2.0
"""What every operator, sensor and transfer shares: Airflow's errors, ``request=``, the journal, killing.

Light to import: DAG files import it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_wan.exceptions import WanError, WanInputError, WanStorageError, WanTransientError

if TYPE_CHECKING:
    from airflow_provider_wan.generation.journal import Journal
    from airflow_provider_wan.generation.records import Record
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.calls import RequestResult

#: A wait of an account that runs two requests at a time can be long; for ever it is never.
DEFAULT_TIMEOUT = timedelta(hours=6)
DEFAULT_MODEL_ID = "wan-ai/wan-2-2/image-to-video"


@contextmanager
def as_airflow_errors() -> Iterator[None]:
    """Turn this provider's errors into Airflow's: the one place that decides about retries.

    What a retry can't help is raised as an ``AirflowFailException``, the rest as an ``AirflowException``; both
    stay the error that they were, so that ``except WanTimeoutError`` works and the log shows its name.
    """
    try:
        yield
    except WanError as error:
        if isinstance(error, AirflowException):
            raise
        raise _as_airflow(error) from error


def _as_airflow(error: WanError) -> Exception:
    family = _family(type(error), AirflowException if error.retry_helps else AirflowFailException)
    both: Exception = family.__new__(family, *error.args)
    both.args = error.args
    both.__dict__.update(error.__dict__)
    return both


_families: dict[tuple[type, type], type[Exception]] = {}


def _family(own: type[WanError], airflow: type[Exception]) -> type[Exception]:
    """Make, once, the exception class that is both."""
    if (own, airflow) not in _families:
        body = {"__module__": own.__module__, "__doc__": own.__doc__}
        _families[own, airflow] = type(own.__name__, (own, airflow), body)
    return _families[own, airflow]


@dataclass(frozen=True, slots=True)
class RequestRef:
    """A request as a task was given it: an id, or what another task returned.

    :param journal: where its record lives, if it has one.
    """

    request_id: str
    model_id: str | None = None
    fingerprint: str | None = None
    submitted_at: str | None = None
    journal: str | None = None
    image: str | None = None


def request_of(given: Any) -> RequestRef:
    """Read ``request=``: a request id, what a task of this provider returned, or that as JSON text.

    :raises WanInputError: it is neither.
    """
    from airflow_provider_wan.model_api.calls import check_request_id

    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = _from_json(given, name="request")
    if isinstance(given, str):
        return RequestRef(check_request_id(given.strip()))
    if isinstance(given, Mapping) and given.get("request_id"):
        names = [name for name in RequestRef.__dataclass_fields__ if name != "request_id"]
        return RequestRef(
            check_request_id(str(given["request_id"])), **{name: given.get(name) for name in names}
        )
    raise WanInputError(
        f"request={str(given)[:80]!r} is neither a request id nor what a WanSubmitOperator returned."
    )


def _from_json(text: str, *, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:  # Jinja renders a dict with Python's quotes unless render_template_as_native_obj is set
        import ast

        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise WanInputError(f"{name}={text[:80]!r} is not JSON.") from None


def mapping_of(given: Any, *, name: str) -> dict[str, Any]:
    """Read a parameter that is a mapping, or JSON text of one, or nothing."""
    if isinstance(given, str):
        given = _from_json(given, name=name) if given.strip() not in ("", "None") else None
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise WanInputError(f"{name} must be a mapping, not {type(given).__name__}.")
    return dict(given)


def seconds_of(given: timedelta | float) -> float:
    """Read a duration that is a timedelta or a number of seconds."""
    return given.total_seconds() if isinstance(given, timedelta) else float(given)


def watcher_of(context: Mapping[str, Any]) -> str:
    """Name a task instance as records do."""
    ti = context["ti"]
    return "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index if ti.map_index is not None else -1)))


def journal_of(
    context: Mapping[str, Any],
    uri: str | None,
    *,
    gcp_conn_id: str | None,
    impersonation_chain: str | Sequence[str] | None,
    log: Logger,
) -> Journal | None:
    """Find where the record of a task's request lives.

    :param uri: ``gs://bucket/prefix``, or None for Airflow's task state store.
    :return: None where neither is there; the log then says what protection is missing.
    """
    from airflow_provider_wan.generation.journal import TaskStateJournal

    if uri:
        return bucket_journal(uri, gcp_conn_id=gcp_conn_id, impersonation_chain=impersonation_chain)
    store = context.get("task_state_store")
    if store is not None:
        return TaskStateJournal(store)
    log.warning(
        "Nothing remembers this request across tries: this Airflow has no task state store (3.3 and newer have "
        'one) and no journal is given. A retry or a clear buys the video again. journal="gs://bucket/prefix" '
        "protects on every Airflow."
    )
    return None


def bucket_journal(
    uri: str, *, gcp_conn_id: str | None, impersonation_chain: str | Sequence[str] | None
) -> Journal:
    """Open the journal in a bucket."""
    from airflow_provider_wan.generation.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client

    return BucketJournal(storage_client(gcp_conn_id, impersonation_chain), uri)


def result_as_xcom(result: RequestResult, ref: RequestRef) -> dict[str, Any]:
    """Give a result as the waiting tasks return it.

    Its links are public and short-lived; they are for people. The landing asks for its own.
    """
    xcom = {
        "request_id": result.request_id,
        "model_id": ref.model_id,
        "fingerprint": ref.fingerprint,
        "submitted_at": ref.submitted_at,
        "state": str(result.state),
        "videos": list(result.video_urls),
        "urls": list(result.urls),
        "cost_usd": result.cost_usd,
        "created_at": result.created_at,
        "finished_at": result.finished_at,
    }
    if ref.journal:
        xcom["journal"] = ref.journal
    return xcom


def result_of_landed(record: Record, ref: RequestRef) -> dict[str, Any]:
    """Give the same for a request that has landed and whose links are gone."""
    xcom = {
        "request_id": ref.request_id,
        "model_id": ref.model_id,
        "fingerprint": ref.fingerprint,
        "submitted_at": record.submitted_at,
        "state": "succeeded",
        "videos": [video.uri for video in record.videos],
        "urls": [],
        "cost_usd": record.cost_usd,
        "created_at": record.created_at,
        "finished_at": record.finished_at,
    }
    if ref.journal:
        xcom["journal"] = ref.journal
    return xcom


def cancel_what_is_queued(hook: WanHook, request_id: str, *, watched_by_others: bool, log: Logger) -> str:
    """Cancel a request that nobody waits for any more; gives a sentence with the truth about it."""
    if watched_by_others:
        return "Other tasks count on it too, so it was not cancelled."
    try:
        outcome = hook.cancel(request_id)
    except WanError as error:
        log.warning("Cancelling request %s failed: %s", request_id, error)
        return "It could not be told whether it is cancelled; it may run on and be charged."
    if outcome.cancelled:
        return "It was still queued: it is cancelled and not charged."
    return (
        f"It can't be cancelled any more ({outcome.word}): it runs on and is charged. Its id takes it over later, "
        f"as request={request_id!r}."
    )


def is_watched_by_others(
    journal: Journal | None, fingerprint: str | None, watcher: str, *, within_run: bool = True
) -> bool:
    """Tell whether the record of a request names anybody else; when in doubt, yes.

    :param within_run: whether other tasks of the same run count; for a sensor, the task that submitted is one.
    """
    if journal is None or fingerprint is None:
        return False
    try:
        held = journal.read(fingerprint)
    except WanStorageError:
        return True
    if held is None:
        return False
    own_run = "/".join(watcher.split("/")[:-2]) + "/"
    others = [one for one in held.record.watchers if one != watcher]
    return any(within_run or not one.startswith(own_run) for one in others)


def gone_in_wait(error: WanError, request_id: str) -> WanError:
    """A request that the API no longer knows: a submit operator's next try decides what to do about it."""
    return WanTransientError(str(error), request_id=request_id)
