# SPDX-License-Identifier: Apache-2.0
"""The rules of a model, from its JSON file in ``schemas/``; each file there is a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from airflow_provider_wan.model_api.calls import check_model_id


@dataclass(frozen=True, slots=True)
class ImageRules:
    """The requirements of a model for the image of one of its fields.

    :param field: the input field that takes the image's URL.
    :param formats: format names as Pillow has them; empty for any.
    :param alpha: whether an alpha channel is accepted.
    :param min_side_px: the least width and height, inclusive; ``None`` for no limit.
    :param max_side_px: the greatest width and height, inclusive; ``None`` for no limit.
    :param max_size_bytes_exclusive: the file must be smaller than this; ``None`` for no limit.
    :param messages: the rule in words, by the name of the rule.
    """

    field: str
    formats: tuple[str, ...]
    alpha: bool
    min_side_px: int | None
    max_side_px: int | None
    max_size_bytes_exclusive: int | None
    messages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """The input schema of one model.

    :param model_id: the model.
    :param document: the JSON schema (Draft 2020-12) with this package's ``x-`` keywords.
    """

    model_id: str
    document: Mapping[str, Any]

    @property
    def fields(self) -> Mapping[str, Mapping[str, Any]]:
        """The schema of each input field, by its name."""
        fields: Mapping[str, Mapping[str, Any]] = self.document["properties"]
        return fields

    @property
    def required(self) -> frozenset[str]:
        """The names of the fields that must be given."""
        return frozenset(self.document.get("required", ()))

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The names of the fields that take the URL of an image."""
        return tuple(name for name, rules in self.fields.items() if "x-image" in rules)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The values that the model uses for fields that are left out."""
        return {name: rules["default"] for name, rules in self.fields.items() if "default" in rules}


@cache
def load_schema(model_id: str) -> ModelSchema | None:
    """Return the schema of a model, or None if this package has none.

    :param model_id: the model, such as ``wan-ai/wan-2-2/image-to-video``.
    :raises WanInputError: the model id is not valid.
    """
    name = check_model_id(model_id).replace("/", "--") + ".json"
    file = resources.files("airflow_provider_wan.model_api.schemas").joinpath(name)
    if not file.is_file():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    return ModelSchema(model_id, document) if document["x-model-id"] == model_id else None


def image_rules(model_id: str) -> ImageRules | None:
    """Return the requirements of a model for its (first) image, or None if they are not known.

    :raises WanInputError: the model id is not valid.
    """
    schema = load_schema(model_id)
    if schema is None or not schema.image_fields:
        return None
    field = schema.image_fields[0]
    rules = schema.fields[field]["x-image"]
    return ImageRules(
        field=field,
        formats=tuple(rules.get("formats", ())),
        alpha=rules.get("alpha", True),
        min_side_px=rules.get("min_side_px"),
        max_side_px=rules.get("max_side_px"),
        max_size_bytes_exclusive=rules.get("max_size_bytes_exclusive"),
        messages=rules.get("messages", {}),
    )
