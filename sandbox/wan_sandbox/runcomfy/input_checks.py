# SPDX-License-Identifier: Apache-2.0
"""Checks inputs by the model's schema, and reports violations in the form of the API's ``detail`` list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "float": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def detail(field: str, message: str, kind: str) -> dict[str, Any]:
    """Build one entry of a ``detail`` list."""
    return {"loc": ["body", field], "msg": message, "type": kind}


def check_inputs(inputs: Mapping[str, Any], schema: Mapping[str, Any], *, inside: str = "") -> list[dict[str, Any]]:
    """Return the violations of the schema, one entry each; an empty list is a pass.

    :param inside: name of the field that the inputs are part of, with a dot.
    """
    properties: Mapping[str, Any] = schema.get("properties", {})
    found = [
        detail(inside + name, "Field required", "missing")
        for name in schema.get("required", ())
        if inputs.get(name) is None
    ]
    for name, value in inputs.items():
        if name not in properties:
            found.append(detail(inside + name, "Extra inputs are not permitted", "extra_forbidden"))
        elif value is not None:
            rules = properties[name]
            found += [detail(inside + name, message, kind) for message, kind in _problems(value, rules)]
            if isinstance(value, dict):
                found += check_inputs(value, rules, inside=f"{inside}{name}.")
    return found


def _problems(value: Any, rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wanted = rules.get("type")
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if names and not any(_is_a(value, name) for name in names):
        yield f"Input should be a valid {' or '.join(names)}", f"{names[0]}_type"
        return
    if "enum" in rules and value not in rules["enum"]:
        yield f"Input should be one of {', '.join(map(repr, rules['enum']))}", "enum"
    if "const" in rules and value != rules["const"]:
        yield f"Input should be {rules['const']!r}", "literal_error"
    if isinstance(value, str):
        yield from _text_problems(value, rules)
    elif isinstance(value, list):
        yield from _list_problems(value, rules)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_problems(value, rules)


def _is_a(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, _TYPES.get(name, (object,)))


def _text_problems(text: str, rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    said: Mapping[str, str] = rules.get("x-messages", {})
    if len(text) > rules.get("maxLength", len(text)):
        yield f"String should have at most {rules['maxLength']} characters", "string_too_long"
    if len(text) < rules.get("minLength", 0):
        least = f"String should have at least {rules['minLength']} characters"
        yield said.get("minLength", least), "string_too_short"
    if "pattern" in rules and not re.search(rules["pattern"], text):
        yield said.get("pattern", f"String should match {rules['pattern']!r}"), "string_pattern_mismatch"


def _list_problems(values: list[Any], rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if len(values) > rules.get("maxItems", len(values)):
        yield f"List should have at most {rules['maxItems']} items", "too_long"
    if len(values) < rules.get("minItems", 0):
        yield f"List should have at least {rules['minItems']} items", "too_short"
    if str(rules.get("format")).endswith("_uris") and not all(isinstance(value, str) for value in values):
        yield "Each item should be a valid string", "string_type"


def _number_problems(number: float, rules: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if number < rules.get("minimum", number):
        yield f"Input should be greater than or equal to {rules['minimum']}", "greater_than_equal"
    if number > rules.get("maximum", number):
        yield f"Input should be less than or equal to {rules['maximum']}", "less_than_equal"
