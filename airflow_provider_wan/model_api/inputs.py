# SPDX-License-Identifier: Apache-2.0
"""Refuse before paying: inputs that the API would reject are rejected here, naming field, value and rule.

The schema of a :class:`~airflow_provider_wan.model_api.schema.Model` decides. The inputs of a model without one only
have to be a JSON object that is not empty.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError, WanRefusedError
from airflow_provider_wan.model_api.bodies import clean_text, number_of
from airflow_provider_wan.model_api.coercion import coerce_fields, plain_number
from airflow_provider_wan.model_api.fingerprints import invisible_character
from airflow_provider_wan.model_api.outputs import is_http_url
from airflow_provider_wan.model_api.schema import LazyModel, Model, ModelSchema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_SHOWN_CHARS = 80
_SHOWN_VALUES = 20
#: The largest request that may be sent (as in RunComfy's own nodes).
_REQUEST_MAX_BYTES = 64 * 1024 * 1024
#: Takes the place of an address that does not exist yet while the other inputs are validated.
PLACEHOLDER = "https://storage.googleapis.com/image"


def coerce_inputs(model: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Coerce inputs to the types of the model's schema without loss, and drop what means "left out".

    What cannot be coerced stays as it is; :func:`validate_inputs` then names it. Without a schema only ``None`` is
    dropped.
    """
    if model.schema is None:
        return {name: value for name, value in inputs.items() if value is not None}
    return coerce_fields(model.schema, inputs)


def validate_inputs(model: Model, inputs: Mapping[str, Any], *, is_partial: bool = False) -> dict[str, Any]:
    """Return the inputs to send: coerced, without fields that were left out, and within every rule of the model.

    :param is_partial: whether required inputs may be missing, because another task supplies them; default False.
    :raises WanInputError: rules are broken; the message names all of them, with field and value.
    """
    if not isinstance(inputs, Mapping):
        raise WanInputError(
            f"The inputs of model {model.model_id} must be a dict, not {type(inputs).__name__}. Nothing was bought."
        )
    schema = model.schema
    coerced = coerce_inputs(model, inputs)
    broken = _broken_form(coerced)
    if not broken and schema is not None:
        broken = [*_unknown_fields(schema, inputs), *_broken_rules(schema, coerced, is_partial=is_partial)]
        broken += _broken_urls(schema, coerced)
    elif not broken and not coerced and not is_partial:
        broken = ["there are no inputs; give at least one"]
    if broken:
        raise _refusal(model.model_id, broken)
    return coerced


class InputCheck:
    """Validates the inputs of rows, once for each different set of them: most rows differ only in the image.

    :param is_partial: whether required inputs may be missing, because another task supplies them.
    """

    def __init__(self, model: LazyModel, *, is_partial: bool = False) -> None:
        self._model = model
        self._is_partial = is_partial
        self._checked: dict[bytes, WanRefusedError | None] = {}

    def problem(self, inputs: Mapping[str, Any], fields: Mapping[str, bool]) -> WanRefusedError | None:
        """Return the problem with the inputs of a row, apart from its images; None if they are valid.

        :param fields: the inputs that take its images, and whether each takes a list.
        """
        key = hashlib.sha256(json.dumps([inputs, fields], sort_keys=True, default=str).encode()).digest()
        if key not in self._checked:
            _ = self._model.known  # its errors are not about the inputs
            images = {name: [PLACEHOLDER] if is_list else PLACEHOLDER for name, is_list in fields.items()}
            try:
                self.validated(inputs, images)
                self._checked[key] = None
            except WanRefusedError as error:
                self._checked[key] = error
        return self._checked[key]

    def validated(self, inputs: Mapping[str, Any], addresses: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs to send.

        :param addresses: of the images, by input.
        :raises WanInputError: an input breaks a rule.
        """
        return validate_inputs(self._model.known, {**inputs, **addresses}, is_partial=self._is_partial)


def _refusal(model_id: str, broken: list[str]) -> WanInputError:
    lines = broken[0] if len(broken) == 1 else "".join(f"\n- {line}" for line in broken)
    return WanInputError(f"Inputs of model {model_id} refused, nothing was bought: {lines}")


def check_form(model_id: str, inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that cannot be sent as JSON at all, whatever the model.

    :raises WanInputError: they cannot.
    """
    if broken := _broken_form(inputs):
        raise _refusal(model_id, broken)


def clip_seconds(model: Model, inputs: Mapping[str, Any]) -> float | None:
    """Return the length of a clip in seconds, from its inputs or the model's default; None if neither says it."""
    given = coerce_inputs(model, inputs).get("duration", model.defaults.get("duration"))
    seconds = number_of(plain_number(given))
    return float(seconds) if seconds is not None and seconds > 0 else None


def _broken_form(inputs: Mapping[str, Any]) -> list[str]:
    """Return why the inputs cannot be sent as JSON at all."""
    if any(not isinstance(name, str) or not name for name in inputs):
        return ["field names must be non-empty strings"]
    try:
        size_bytes = len(json.dumps(inputs, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return [f"{name!r}: {_shown(value)} is not JSON" for name, value in inputs.items() if not _is_json(value)]
    if size_bytes > _REQUEST_MAX_BYTES:
        return [f"the request has {size_bytes} bytes; at most {_REQUEST_MAX_BYTES} are accepted"]
    return []


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _unknown_fields(schema: ModelSchema, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the unknown fields, those with a value of ``None`` too: a mistyped name is a mistake in any case."""
    if schema.takes_other_fields:
        return
    names = {name.lower(): name for name in schema.fields}
    for name in inputs:
        if name not in schema.fields:
            near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
            hint = f"did you mean {names[near[0]]!r}?" if near else clean_text(f"known: {', '.join(schema.fields)}")
            yield f"{_shown(name)} is not a field of this model; {hint}"


def _broken_rules(schema: ModelSchema, inputs: Mapping[str, Any], *, is_partial: bool) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    try:
        errors = sorted(Draft202012Validator(schema.document).iter_errors(inputs), key=_position)
    except Exception as odd:  # a page's rules and a user's values can meet in ways that jsonschema does not expect
        yield f"the schema of this model can't be applied ({type(odd).__name__}); set schema= to a corrected one"
        return
    for error in errors:
        if is_partial and not error.absolute_path and error.validator in ("required", "anyOf", "oneOf", "allOf"):
            continue
        if error.validator == "required":
            # jsonschema gives one error a missing field, and only its message names it: "'prompt' is a ..."
            name = f"{error.message.rpartition(' is a required')[0]}"
            where = ".".join(str(part) for part in error.absolute_path)
            yield f"{where}: {name} is required" if where else f"{name} is required"
        elif error.validator != "additionalProperties" or error.absolute_path:
            path = ".".join(str(part) for part in error.absolute_path) or "inputs"
            yield f"{path!r}: {_shown(error.instance)} {_rule(error)}"


def _position(error: ValidationError) -> list[str]:
    return [str(part) for part in error.absolute_path]


def _rule(error: ValidationError) -> str:
    """Return a rule in words, as a requirement on the value."""
    limit: Any = error.validator_value
    given: Any = error.instance
    name = str(error.validator)
    own = error.schema.get("x-messages", {}) if isinstance(error.schema, Mapping) else {}
    if name in own:
        return str(own[name])
    match name:
        case "type":
            return f"must be of type {limit if isinstance(limit, str) else ' or '.join(limit)}"
        case "enum":
            words = [clean_text(json.dumps(value), _SHOWN_CHARS) for value in limit[:_SHOWN_VALUES]]
            more = f" or one of {len(limit) - len(words)} more" if len(limit) > len(words) else ""
            return f"must be {' or '.join(words)}{more}"
        case "maxLength":
            return f"is {len(given)} characters long; at most {limit} are allowed"
        case "minLength":
            return f"is {len(given)} characters long; at least {limit} are needed"
        case "minimum":
            return f"must be at least {limit}"
        case "maximum":
            return f"must be at most {limit}"
        case _:
            return f"breaks the rule {name}: {_shown(limit)}"


def _broken_urls(schema: ModelSchema, inputs: Mapping[str, Any]) -> Iterator[str]:
    for name in schema.media_fields:
        given = inputs.get(name)
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, str) or not value or is_http_url(value):
                continue
            if value.startswith(("http://", "https://")) and (odd := invisible_character(value)):
                yield f"{name!r}: {_shown(value)} contains {odd}; remove it or percent-encode it"
            else:
                # Whatever follows data: may be a picture, or a part of one, and is not shown.
                shown = "'data:…'" if value[:5].lower() == "data:" else _shown(value)
                yield f"{name!r}: {shown} must be a public http:// or https:// URL"


def _shown(value: Any) -> str:
    """Return a value fit for a message: on one line, cut, without the signature of a signed URL."""
    text = clean_text(value if isinstance(value, str) else repr(value), _SHOWN_CHARS)
    return f'"{text}"' if isinstance(value, str) else text
