# SPDX-License-Identifier: Apache-2.0
"""Parameters as users give them: ``request=``, mappings that may be JSON text, durations; and results as XComs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError

if TYPE_CHECKING:
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.model_api.calls import RequestResult

DEFAULT_MODEL_ID = "wan-ai/wan-2-2/image-to-video"
#: A wait for an account that runs two requests at a time can be long; for ever it is never.
DEFAULT_TIMEOUT = timedelta(hours=6)


_ALWAYS = ("request_id", "model_id", "fingerprint", "submitted_at")
_WHERE_KNOWN = ("journal", "watcher", "image", "variation", "inputs")


@dataclass(frozen=True, slots=True)
class RequestRef:
    """A request as a task was given it: an id, or what another task returned.

    :param inputs: what was asked for, without signatures.
    :param image: address of the source image, without signature.
    :param journal: where its record lives, if it has one.
    :param watcher: how that record names the task that submitted it.
    """

    request_id: str
    model_id: str | None = None
    fingerprint: str | None = None
    submitted_at: str | None = None
    journal: str | None = None
    watcher: str | None = None
    image: str | None = None
    variation: str | None = None
    inputs: Mapping[str, Any] | None = None

    def as_xcom(self) -> dict[str, Any]:
        """Give it as tasks return it."""
        own = {name: getattr(self, name) for name in _ALWAYS}
        more = {name: getattr(self, name) for name in _WHERE_KNOWN if getattr(self, name)}
        return own | more


def request_of(given: Any) -> RequestRef:
    """Read ``request=``: a request id, what a task of this provider returned, or that as JSON text.

    :raises WanInputError: it is neither.
    """
    from airflow_provider_wan.model_api.calls import check_request_id

    if given_or_none(given) is None:
        raise WanInputError("request= is empty: the task that should have submitted returned nothing.")
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = _from_json(given, name="request")
    if isinstance(given, str):
        return RequestRef(check_request_id(given.strip()))
    if isinstance(given, Mapping) and given.get("request_id"):
        known = {name: given.get(name) for name in (*_ALWAYS, *_WHERE_KNOWN) if name != "request_id"}
        return RequestRef(check_request_id(str(given["request_id"])), **known)
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
        given = given_or_none(given)
    if isinstance(given, str):
        given = _from_json(given, name=name)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise WanInputError(f"{name} must be a mapping, not {type(given).__name__}.")
    return dict(given)


def given_or_none(value: Any) -> Any:
    """Give a parameter, or None where a template made nothing of it (Jinja writes ``None`` as a text)."""
    return None if isinstance(value, str) and value.strip() in ("", "None") else value


def flag_of(given: Any, *, name: str) -> bool:
    """Read a parameter that is true or false, also as the word that a template makes of it; nothing is false.

    :raises WanInputError: it is another word.
    """
    from airflow_provider_wan.model_api.coercion import coerce_value

    flag = coerce_value(given_or_none(given), ("boolean",))
    if flag is not None and not isinstance(flag, bool):
        raise WanInputError(f"{name}={str(given)[:80]!r} is neither true nor false.")
    return bool(flag)


def seconds_of(given: timedelta | float) -> float:
    """Read a duration that is a timedelta or a number of seconds."""
    return given.total_seconds() if isinstance(given, timedelta) else float(given)


def timeout_of(given: timedelta | float) -> timedelta | float:
    """Check how long a task may wait, before it buys anything.

    :raises ValueError: it is not more than 0.
    """
    if seconds_of(given) <= 0:
        raise ValueError(f"timeout={given!r} must be more than 0: what is bought takes minutes.")
    return given


def result_as_xcom(result: RequestResult, ref: RequestRef) -> dict[str, Any]:
    """Give a result as the waiting tasks return it.

    Its links are public and short-lived; they are for people. The landing asks for its own.
    """
    return ref.as_xcom() | {
        "state": str(result.state),
        "videos": list(result.video_urls),
        "urls": list(result.urls),
        "cost_usd": result.cost_usd,
        "created_at": result.created_at,
        "finished_at": result.finished_at,
    }


def result_of_landed(record: Record, ref: RequestRef) -> dict[str, Any]:
    """Give the same for a request that has landed and whose links are gone."""
    return ref.as_xcom() | {
        "state": "succeeded",
        "videos": [video.uri for video in record.videos],
        "urls": [],
        "cost_usd": record.cost_usd,
        "created_at": record.created_at,
        "finished_at": record.finished_at,
    }
