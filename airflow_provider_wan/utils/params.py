# SPDX-License-Identifier: Apache-2.0
"""Parameters as users give them: ``request=``, mappings that may be JSON text, durations, and the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api import INPUT_PARAMETERS

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.schema import LazyModel

DEFAULT_MODEL_ID = "wan-ai/wan-2-2/image-to-video"
#: An account that runs two requests at a time can have a long queue.
DEFAULT_TIMEOUT = timedelta(hours=6)
_ALWAYS = ("request_id", "model_id", "fingerprint", "submitted_at")
#: XCom keys that are left out if empty, and the attribute of each.
_IF_KNOWN = {
    "journal": "journal",
    "watcher": "owner",
    "image": "image",
    "variation": "variation",
    "inputs": "inputs",
}


@dataclass(frozen=True, slots=True)
class RequestRef:
    """A request as given to a task: an id, or the return value of another task.

    :param journal: the journal of its record, if it has one.
    :param owner: how that record names the task that submitted it.
    :param image: address of the source image, without signature.
    :param inputs: the inputs, without signatures.
    """

    request_id: str
    model_id: str | None = None
    fingerprint: str | None = None
    submitted_at: str | None = None
    journal: str | None = None
    owner: str | None = None
    image: str | None = None
    variation: str | None = None
    inputs: Mapping[str, Any] | None = None

    def as_xcom(self) -> dict[str, Any]:
        """Return it in the form that tasks return."""
        always = {name: getattr(self, name) for name in _ALWAYS}
        known = {key: getattr(self, name) for key, name in _IF_KNOWN.items() if getattr(self, name)}
        return always | known


def request_of(given: Any) -> RequestRef:
    """Read ``request=``: a request id, the return value of a task of this provider, or that as JSON text.

    :raises WanInputError: it has another form.
    """
    from airflow_provider_wan.model_api.values import check_request_id

    if given_or_none(given) is None:
        raise WanInputError("request= is empty: the submitting task returned nothing.")
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = _from_json(given, name="request")
    if isinstance(given, str):
        return RequestRef(check_request_id(given.strip()))
    if isinstance(given, Mapping) and given.get("request_id"):
        known = {name: given.get(name) for name in _ALWAYS[1:]}
        known |= {name: given.get(key) for key, name in _IF_KNOWN.items()}
        return RequestRef(check_request_id(str(given["request_id"])), **known)
    raise WanInputError(f"request={str(given)[:80]!r} is neither a request id nor what a WanSubmitOperator returned.")


def _from_json(text: str, *, name: str) -> Any:
    from airflow_provider_wan.model_api.coercion import literal_of

    try:
        return literal_of(text)
    except ValueError:
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
    """Return a parameter, or None if a template rendered to nothing (Jinja renders None as the text ``None``)."""
    return None if isinstance(value, str) and value.strip() in ("", "None") else value


def flag_of(given: Any, *, name: str) -> bool:
    """Read a parameter that is true or false, also as text that a template rendered; nothing is false.

    :raises WanInputError: it is another text.
    """
    from airflow_provider_wan.model_api import coercion

    if given_or_none(given) is None:
        return False
    flag = coercion.flag_of(given)
    if flag is None:
        raise WanInputError(f"{name}={str(given)[:80]!r} is neither true nor false.")
    return flag


def seconds_of(given: timedelta | float) -> float:
    """Read a duration that is a timedelta or a number of seconds."""
    return given.total_seconds() if isinstance(given, timedelta) else float(given)


def timeout_of(given: timedelta | float) -> timedelta | float:
    """Check how long a task may wait.

    :raises ValueError: it is not more than 0.
    """
    if seconds_of(given) <= 0:
        raise ValueError(f"timeout={given!r} must be more than 0: a generation takes minutes.")
    return given


# -- inputs -----------------------------------------------------------------------------------------------


def mask_signatures(value: Any) -> None:
    """Have Airflow hide the signatures of signed addresses wherever it shows or keeps a task's parameters."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            mask_signatures(item)
    elif isinstance(value, str) and "://" in value and "=" in value:
        from airflow.providers.common.compat.sdk import mask_secret

        from airflow_provider_wan.model_api.fingerprints import signatures_in

        for signature in signatures_in(value):
            mask_secret(signature)


def given_inputs(task: Any) -> dict[str, Any]:
    """Return the inputs of a task: the parameters of :data:`INPUT_PARAMETERS`, and ``inputs``.

    :raises WanInputError: an input is given in both ways.
    """
    given = {name: given_or_none(getattr(task, name)) for name in INPUT_PARAMETERS}
    given = {name: value for name, value in given.items() if value is not None}
    more = mapping_of(task.inputs, name="inputs")
    twice = sorted(given.keys() & more.keys())
    if twice:
        raise WanInputError(f"{', '.join(twice)}: given as a parameter and in inputs; one of them is enough.")
    return {**given, **more}


class ModelTask(Protocol):
    """An operator that names a model, with the parameters that decide about its schema."""

    model_id: str
    image_field: str | None
    schema: Mapping[str, Any] | str | None
    require_schema: bool | str

    @property
    def log(self) -> Logger:
        """The task's log."""


def model_of(task: ModelTask, hook: WanHook | None) -> LazyModel:
    """Return the model that a task names; its page is read when its rules are first needed.

    :param hook: reads the page; None: only the task's or the bundled schema is used.
    :raises WanInputError: the model id is not valid, or a parameter has another form.
    """
    from airflow_provider_wan.model_api.dialect import read_schema
    from airflow_provider_wan.model_api.schema import LazyModel, Model

    field = given_or_none(task.image_field)
    schema = mapping_of(task.schema, name="schema") or None
    require_schema = flag_of(task.require_schema, name="require_schema")

    def read() -> Model:
        if hook is not None:
            options = {"image_field": field, "require_schema": require_schema, "log": task.log}
            return hook.model(task.model_id, schema=schema, **options)
        if schema is None:
            return Model.bundled(task.model_id, field)
        return Model(task.model_id, read_schema(schema, task.model_id).schema, chosen_field=field)

    return LazyModel(task.model_id, read, chosen_field=field)
