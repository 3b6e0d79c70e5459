# SPDX-License-Identifier: Apache-2.0
"""Translate the ``input_schema`` of a model's page (RunComfy's dialect of JSON Schema) into the form of this package.

A schema is text from outside. Only the keywords listed here are kept: nothing refers to another document, nothing is
a regular expression that could hang, and size and depth are limited. The dialect differs from JSON Schema in its media
formats (``image_uri``), its ``validations`` (rules for the file behind a URL) and its type ``float``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api.bodies import clean_text, number_of, text_of
from airflow_provider_wan.model_api.schema import Model, ModelInfo, ModelSchema, load_schema

_MAX_DEPTH = 16
_MAX_NODES = 20_000
_MAX_TEXT_CHARS = 2_000
_LARGEST_NUMBER = 10**30
_TYPES = {
    **{name: name for name in ("string", "integer", "number", "boolean", "array", "object", "null")},
    **{"float": "number", "double": "number", "int": "integer", "bool": "boolean"},
}
_MEDIA = {f"{kind}_uri{s}": kind for kind in ("image", "video", "audio") for s in ("", "s")}
#: Keywords that do not limit the valid values; they are dropped without a note.
_SILENT = frozenset((
    "$schema", "$id", "$comment", "$defs", "definitions", "id", "examples", "example", "deprecated", "nullable",
    "readOnly", "writeOnly", "format", "order", "validations", "required_inputs", "ui", "discriminator",
))  # fmt: skip
#: Keywords that add properties to those listed.
_OPENING = frozenset(("$ref", "$dynamicRef", "patternProperties"))
_RULE = re.compile(r"(file_size_mb|width_pixels|height_pixels|width/height)\s*([<>])=?", re.ASCII)
_BYTES_PER_MB = 1_000_000
_IMAGE_NAME = re.compile(r"(^|_)(image|img|frame)(_|$)", re.ASCII)
#: Rules on the value itself: where a page states one of them, it replaces all of the bundled schema.
_VALUE_RULES = frozenset((
    "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "oneOf",
    "allOf",
))  # fmt: skip
_LENGTH_RULES = frozenset(("minLength", "maxLength", "minItems", "maxItems", "uniqueItems"))


class SchemaTranslation:
    """The schema of one page, translated.

    :param given: the page's ``input_schema``, any JSON value.
    :param required_inputs: the page's list of required inputs, used where the schema has none.
    :ivar schema: validates inputs; None: the page has no usable schema.
    :ivar notes: sentences for the log about rules that are left out.
    """

    def __init__(self, model_id: str, given: Any, required_inputs: Any = None) -> None:
        self.notes: list[str] = []
        self._nodes = 0
        self._dropped: set[str] = set()
        self.schema = self._schema(model_id, given, required_inputs)
        if self._dropped:
            names = ", ".join(sorted(self._dropped)[:20])
            self.notes.append(f"The schema of model {model_id} has rules that are not applied here: {names}.")

    def _schema(self, model_id: str, given: Any, required_inputs: Any) -> ModelSchema | None:
        if not isinstance(given, Mapping) or not isinstance(given.get("properties"), Mapping):
            return None
        try:
            document = self._node(given, 0)
        except _TooLarge as error:
            self.notes.append(f"The schema of model {model_id} is not used: {error}.")
            return None
        if not document["properties"]:
            return None
        required = document.get("required") or _names(required_inputs)
        document["required"] = [name for name in required if name in document["properties"]]
        document["type"] = "object"
        others = document.get("additionalProperties")
        document["additionalProperties"] = others is True or isinstance(others, Mapping)
        for name, rules in given["properties"].items():
            if name in document["properties"]:
                self._mark_media(str(name), rules, document["properties"][name])
        return ModelSchema(model_id, document)

    def _node(self, given: Any, depth: int) -> dict[str, Any]:
        """Return the known keywords of a schema, with valid values."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise _TooLarge
        if not isinstance(given, Mapping):  # true and false are schemas too
            return {}
        node: dict[str, Any] = {}
        for key, value in given.items():
            found = None
            if key in _PLAIN_KEYWORDS:
                found = _PLAIN_KEYWORDS[key](value)
            elif key in _NESTED_KEYWORDS:
                found = _NESTED_KEYWORDS[key](self, value, depth)
            if found is not None:
                node[key] = found
            elif value is not None and key not in _SILENT and not str(key).startswith("x-"):
                self._dropped.add(clean_text(str(key), 40))
        if one_of := node.pop("oneOf", None):  # without rules that were left out, more than one can be valid
            node.setdefault("anyOf", one_of)
        if _OPENING & given.keys():  # properties that are defined elsewhere must not count as unknown
            node["additionalProperties"] = True
        return node

    def _properties(self, given: Any, depth: int) -> dict[str, Any] | None:
        if not isinstance(given, Mapping):
            return None
        is_name = re.compile(r"[\w .:/$@-]{1,200}").fullmatch  # fit for messages
        names = [name for name in given if isinstance(name, str) and name.isprintable() and is_name(name)]
        return {name: self._node(given[name], depth + 1) for name in names}

    def _subschema(self, given: Any, depth: int) -> Any:
        if isinstance(given, bool):
            return given
        return self._node(given, depth + 1) if isinstance(given, Mapping) else None

    def _subschemas(self, given: Any, depth: int) -> list[Any] | None:
        if not isinstance(given, list | tuple) or not given:
            return None
        return [self._node(item, depth + 1) for item in given]

    def _values(self, given: Any, depth: int) -> list[Any] | None:
        return self._value(given, depth) if isinstance(given, list | tuple) and given else None

    def _value(self, given: Any, depth: int) -> Any:
        """Return a JSON value; it is counted like the schema itself."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise _TooLarge
        if isinstance(given, Mapping):
            return {str(name): self._value(item, depth + 1) for name, item in given.items()}
        if isinstance(given, list | tuple):
            return [self._value(item, depth + 1) for item in given]
        if given is None or isinstance(given, bool | str) or _number(given) is not None:
            return given
        return None

    # -- media ---------------------------------------------------------------------------------------------

    def _mark_media(self, name: str, given: Any, node: dict[str, Any]) -> None:
        """Mark a field that takes the URL of an image, a video or audio, with the rules for an image."""
        if not isinstance(given, Mapping):
            return
        items = given.get("items")
        formats = [given.get("format"), items.get("format") if isinstance(items, Mapping) else None]
        kind = next((_MEDIA[text] for text in formats if isinstance(text, str) and text in _MEDIA), None)
        rules = self._image_rules(name, given) | (self._image_rules(name, items) if isinstance(items, Mapping) else {})
        if kind is None and rules:  # older pages mark images only by the rules for them
            has_pixels = rules.keys() - {"max_size_bytes_exclusive"}
            kind = "image" if has_pixels or _IMAGE_NAME.search(name) else None
        if kind == "image":
            if "array" in _names([node.get("type")]) + _names(node.get("type")):
                rules["is_array"] = True
            node["x-image"] = rules
        elif kind is not None:
            node["x-media"] = kind

    def _image_rules(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        rules: dict[str, Any] = {}
        validations = given.get("validations")
        for validation in validations if isinstance(validations, list | tuple) else ():
            if not isinstance(validation, Mapping):
                continue
            text = clean_text(text_of(validation.get("validation_rule")), 40)
            value = _number(validation.get("validation_value"))
            found = _RULE.fullmatch(text.strip().lower())
            if found is None or value is None or value <= 0 or (found[1], found[2]) == ("file_size_mb", ">"):
                self._dropped.add(f"{clean_text(name, 40)}: {text}")
                continue
            rule, limit = _rule_of(found[1], found[2], value)
            rules[rule] = (max if found[2] == ">" else min)(limit, rules.get(rule, limit))
        return rules


class _TooLarge(Exception):
    """The schema is deeper or larger than any that is useful."""

    def __str__(self) -> str:
        return f"it has more than {_MAX_DEPTH} levels or {_MAX_NODES:,} rules"


def _rule_of(subject: str, sign: str, value: float) -> tuple[str, float]:
    """Return the name of a rule in ``x-image``, and its limit.

    Width and height have one limit here, the stricter one. The pages write limits of pixels as exclusive and mean them
    as inclusive (their messages say so); the file size is exclusive.
    """
    if subject == "file_size_mb":
        return "max_size_bytes_exclusive", math.ceil(min(value, 1e9) * _BYTES_PER_MB)
    if subject == "width/height":
        return ("max_aspect" if sign == "<" else "min_aspect"), value
    if sign == "<":
        return "max_side_px", math.floor(min(value, 1e9))
    return "min_side_px", math.ceil(min(value, 1e9))


# -- keywords ----------------------------------------------------------------------------------------------


def _number(value: Any) -> int | float | None:
    number = number_of(value)
    return number if number is not None and abs(number) <= _LARGEST_NUMBER else None


def _step(value: Any) -> int | float | None:
    step = _number(value)
    return step if step is not None and step > 1e-9 else None


def _count(value: Any) -> int | None:
    count = _number(value)
    return int(count) if count is not None and count >= 0 and count == int(count) else None


def _types(value: Any) -> str | list[str] | None:
    if isinstance(value, str):
        return _TYPES.get(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    names = [_TYPES.get(name) if isinstance(name, str) else None for name in value]
    return None if None in names else list(dict.fromkeys(name for name in names if name is not None))


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else []


def _text(value: Any) -> str | None:
    return clean_text(value, _MAX_TEXT_CHARS) if isinstance(value, str) else None


#: Keywords whose value is read as it is, or dropped if it is not valid.
_PLAIN_KEYWORDS: Mapping[Any, Callable[[Any], Any]] = {
    "type": _types,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    "multipleOf": _step,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _count),
    "uniqueItems": lambda value: value if isinstance(value, bool) else None,
    "required": lambda value: _names(value) or None,
    **dict.fromkeys(("title", "description"), _text),
}
#: Keywords whose value holds schemas or any JSON, which are counted.
_NESTED_KEYWORDS: Mapping[Any, Callable[[SchemaTranslation, Any, int], Any]] = {
    "properties": SchemaTranslation._properties,
    **dict.fromkeys(("items", "additionalProperties"), SchemaTranslation._subschema),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), SchemaTranslation._subschemas),
    **dict.fromkeys(("const", "default"), SchemaTranslation._value),
    "enum": SchemaTranslation._values,
}


# -- which schema validates --------------------------------------------------------------------------------


def model_of_page(page: ModelInfo, image_field: str | None = None) -> tuple[Model, list[str]]:
    """Return a model by its page, and remarks for the log: rules not applied, differences to the bundled schema.

    :param image_field: the field that takes the source image, if the user names one.
    """
    model_id = page.model_id
    translation = SchemaTranslation(model_id, page.input_schema, page.raw.get("required_inputs"))
    schema, notes, bundled = translation.schema, list(translation.notes), load_schema(model_id)
    if bundled is not None:
        schema, differences = merge_with_bundled(bundled, schema) if schema else (bundled, [])
        if differences:
            notes.append(
                f"The page of model {model_id} differs from the rules of this package, and decides: "
                f"{'; '.join(differences)}."
            )
    return Model(model_id, schema, page, image_field), notes


def merge_with_bundled(bundled: ModelSchema, page: ModelSchema) -> tuple[ModelSchema, list[str]]:
    """Return the schema that validates a model which has both, and how the page differs from the bundled one.

    The page decides on the fields and on every rule that it states. What it is silent about (such as the formats of
    an image, which no page states as a rule) stays as bundled.
    """
    fields: dict[str, dict[str, Any]] = {}
    differences = []
    for name, stated in page.fields.items():
        known = bundled.fields.get(name)
        if known is None:
            differences.append(f"{name} is new")
            fields[name] = dict(stated)
            continue
        fields[name] = {**_without_replaced(known, stated), **stated}
        if "x-image" in known:
            fields[name]["x-image"] = {**known["x-image"], **stated.get("x-image", {})}
        rules = sorted((_VALUE_RULES | _LENGTH_RULES | {"type", "default", "x-image"}) & (known.keys() | stated.keys()))
        differences += [
            f"{name}: {_words(rule, known)} is now {_words(rule, fields[name])}"
            for rule in rules
            if known.get(rule) != fields[name].get(rule)
        ]
    differences += [f"{name} is gone" for name in bundled.fields if name not in page.fields]
    required = sorted(page.required or bundled.required & fields.keys())
    if set(required) != bundled.required:
        differences.append(f"required are now {', '.join(required)}")
    document = {**bundled.document, **page.document, "properties": fields, "required": required}
    return ModelSchema(bundled.model_id, document), differences


def _without_replaced(known: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bundled rules of a field without those that the page's rules replace."""
    replaced = (
        _VALUE_RULES
        if _VALUE_RULES & stated.keys() or stated.get("type", known.get("type")) != known.get("type")
        else frozenset()
    )
    return {rule: value for rule, value in known.items() if rule not in replaced}


def _words(rule: str, rules: Mapping[str, Any]) -> str:
    value = rules.get(rule)
    return f"no {rule}" if value is None else f"{rule} {clean_text(json.dumps(value, default=str), 120)}"


def read_schema(given: Mapping[str, Any] | str, model_id: str) -> SchemaTranslation:
    """Read ``schema=``: a JSON schema, also in RunComfy's dialect, as a mapping or as JSON text.

    :raises WanInputError: it is neither, or has no properties.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise WanInputError("schema= is not JSON. Nothing was bought.") from None
    if isinstance(given, Mapping) and isinstance(given.get("input_schema"), Mapping):  # a whole page
        given = given["input_schema"]
    translation = SchemaTranslation(model_id, given)
    if translation.schema is None:
        why = f" {' '.join(translation.notes)}" if translation.notes else ""
        raise WanInputError(
            f'schema= must be a JSON schema with "properties", as the input_schema of a model\'s page is.{why} '
            "Nothing was bought."
        )
    return translation
