# SPDX-License-Identifier: Apache-2.0
"""Convert values that Jinja and CSV turned into text back to the type of their field, without loss.

``"123"`` becomes 123 and ``"False"`` false; ``"1e3"`` does not become an integer, nor ``True`` a number. A
value that cannot be converted without loss stays as it is, so that validation can name it as it was given.
"""

from __future__ import annotations

import ast
import json
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_wan.model_api.bodies import number_of, text_of
from airflow_provider_wan.model_api.schema import ModelSchema

_INTEGER = re.compile(r"([+-]?\d{1,40})(\.0{1,40})?", re.ASCII)
_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})


def coerce_fields(schema: ModelSchema, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs with each known field coerced, and without those that were left out; idempotent.

    ``None`` means left out. So do, for an optional field, an empty string and NaN (an empty CSV cell), and
    for one that takes no string also blanks and ``"None"``, which is how Jinja renders ``None``.
    """
    coerced = {}
    for name, value in inputs.items():
        rules = schema.fields.get(name, {})
        types = _types(rules)
        if value is None or (name not in schema.required and _means_left_out(value, types)):
            continue
        coerced[name] = coerce_value(value, types)
        if "array" in types and "string" not in types and "x-image" in rules and isinstance(coerced[name], str):
            coerced[name] = [coerced[name]]  # one image for a field that takes several
    return coerced


def coerce_value(value: Any, types: tuple[str, ...]) -> Any:
    """Return a value coerced to the first type that accepts it without loss, else unchanged.

    :param types: JSON schema type names; empty for any.
    """
    value = plain_number(value)
    if any(_IS[name](value) for name in types if name in _IS):
        is_whole = isinstance(value, float) and "integer" in types and "number" not in types
        return int(value) if is_whole else value
    for name in types:
        if name in _COERCE:
            coerced = _COERCE[name](value)
            if coerced is not None:
                return coerced
    return value


def _types(rules: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the types of a field: declared, else those of its alternatives, else those of its possible values."""
    declared = rules.get("type", ())
    if isinstance(declared, str):
        return (declared,)
    alternatives = [name for rule in ("anyOf", "oneOf") for other in rules.get(rule, ()) for name in _types(other)]
    values = [name for value in rules.get("enum", ()) for name in _IS if _IS[name](value) and name != "number"]
    return tuple(declared) or tuple(dict.fromkeys(alternatives)) or tuple(dict.fromkeys(values))


def _means_left_out(value: Any, types: tuple[str, ...]) -> bool:
    if isinstance(value, str):
        return value == "" or (bool(types) and "string" not in types and value.strip() in ("", "None"))
    return isinstance(value, float) and math.isnan(value)


def flag_of(value: Any) -> bool | None:
    """Return a value that is true or false, also as a word or a number; None if it is neither."""
    flag = coerce_value(value, ("boolean",))
    return flag if isinstance(flag, bool) else None


def literal_of(text: str) -> Any:
    """Return the value that a text holds: JSON, or with Python's quotes, as Jinja renders a mapping or a list.

    :raises ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("neither JSON nor a Python literal") from error


def plain_number(value: Any) -> Any:
    """Return the Python number for one of numpy or a similar library, which JSON does not accept."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _to_integer(value: Any) -> int | None:
    found = _INTEGER.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(found[1]) if found else None


def _to_boolean(value: Any) -> bool | None:
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _TRUE else False if word in _FALSE else None


def _to_string(value: Any) -> str | None:
    if not _is_number(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return text_of(value) or None


def _to_json(value: Any, kind: type) -> Any:
    if isinstance(value, tuple) and kind is list:
        return list(value)
    if not isinstance(value, str):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, kind) else None


_COERCE: Mapping[str, Callable[[Any], Any]] = {
    "string": _to_string,
    "integer": _to_integer,
    "number": lambda value: number_of(value) if isinstance(value, str) else None,
    "boolean": _to_boolean,
    "array": lambda value: _to_json(value, list),
    "object": lambda value: _to_json(value, dict),
}
