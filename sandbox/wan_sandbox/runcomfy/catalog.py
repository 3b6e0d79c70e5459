# SPDX-License-Identifier: Apache-2.0
"""The models that the sandbox offers: those with a schema file, and some that take any input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from wan_sandbox.runcomfy.prices import BASE_SECONDS

_SCHEMAS = "wan_sandbox"
#: Taken with any input, as the provider takes models that it has no schema of.
_FREE_FORM = ("wan-ai/wan-2-5/image-to-video", "wan-ai/wan-2-2/text-to-video", "sandbox/free-form/any")
_EXAMPLE_INPUTS = {"type": "object", "properties": {"prompt": {"type": "string"}}}


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue.

    :param input_schema: what its inputs are checked by; None takes any.
    """

    model_id: str
    display_name: str
    category: str
    input_schema: Mapping[str, Any] | None = None

    @property
    def image_rules(self) -> Mapping[str, Any]:
        """Rules for the image in ``img_url``; empty where there are none."""
        properties = (self.input_schema or {}).get("properties", {})
        rules: Mapping[str, Any] = properties.get("img_url", {}).get("x-image", {})
        return rules

    def to_json(self, *, price_usd: float, price_unit: str, is_base: bool = False) -> dict[str, Any]:
        """Return the model's page.

        :param price_usd: base price of one clip of five seconds.
        :param price_unit: ``output`` or ``second``.
        :param is_base: the inputs decide what is charged, and the page says so.
        """
        per_unit = price_usd / BASE_SECONDS if price_unit == "second" else price_usd
        note = f"Sandbox money: {per_unit:g} USD per {price_unit}. Nothing is really charged."
        if is_base:
            note += " This is a base: resolution, duration and audio change what is charged."
        return {
            "model_id": self.model_id,
            "display_name": self.display_name,
            "category": self.category,
            "base_price_usd": round(per_unit, 6),
            "price_unit": price_unit,
            "pricing_note": note,
            "input_schema": self.input_schema or _EXAMPLE_INPUTS,
        }


class Catalog:
    """All models by id.

    :param more: ids of further models that take any input.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        models = [*_models_with_schema(), *(_free_form(model_id) for model_id in (*_FREE_FORM, *more))]
        self._models: dict[str, Model] = {}
        for model in models:
            self._models.setdefault(model.model_id, model)

    def find(self, model_id: str) -> Model | None:
        """Return a model, or None if the API would not know the id."""
        return self._models.get(model_id)

    def search(self, *, text: str, category: str) -> list[Model]:
        """Return the models whose id or name contains a text, of one category or of all."""
        return [
            model
            for model in self._models.values()
            if text.lower() in f"{model.model_id} {model.display_name}".lower()
            and category in {"", model.category}
        ]


def _models_with_schema() -> list[Model]:
    """Read each schema file."""
    models = []
    for file in sorted((resources.files(_SCHEMAS) / "schemas").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            schema = json.loads(file.read_text(encoding="utf-8"))
            model_id = str(schema["x-model-id"])
            name = str(schema.get("title", model_id))
            models.append(Model(model_id, name, model_id.rpartition("/")[2], schema))
    return models


def _free_form(model_id: str) -> Model:
    return Model(model_id, f"{model_id} (any input)", model_id.rpartition("/")[2])
