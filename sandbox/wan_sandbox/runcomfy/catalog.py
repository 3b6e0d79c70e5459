# SPDX-License-Identifier: Apache-2.0
"""A model of the sandbox with its page in RunComfy's schema dialect, and the catalogue of all models.

Inside, the inputs of a model are a JSON schema with the keyword ``x-image``, like the provider's bundled schema of Wan
2.2. The page is a translation of it. Rules that the dialect cannot express (formats, alpha) are enforced too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wan_sandbox.runcomfy.clip import BASE_SECONDS
from wan_sandbox.runcomfy.pictures import ImageRules

#: Keywords of the schemas here that RunComfy's pages do not use.
_NOT_ON_PAGES = ("pattern", "minLength")


@dataclass(frozen=True)
class Model:
    """One model of the catalogue.

    :param schema: the schema of its inputs; None: any input is accepted.
    :param output_shape: form of the output of its results.
    :param price_factor: its base price, relative to that of Wan 2.2.
    :param price_unit: ``output`` or ``second``; None for the setting of the sandbox.
    :param price_by_inputs: whether the inputs decide what is charged, unless the sandbox is set otherwise.
    """

    model_id: str
    display_name: str
    schema: Mapping[str, Any] | None = None
    output_shape: str = "video"
    price_factor: float = 1.0
    price_unit: str | None = None
    price_by_inputs: bool = False

    @property
    def categories(self) -> tuple[str, ...]:
        """The task that the model's id names, such as ``image-to-video``."""
        return tuple(part for part in self.model_id.split("/") if part.endswith("-to-video")) or ("video",)

    @cached_property
    def image_rules(self) -> Mapping[str, ImageRules]:
        """Rules for the image of each field that takes one."""
        if self.schema is None:
            return {"img_url": ImageRules()}
        properties: Mapping[str, Any] = self.schema["properties"]
        return {
            name: ImageRules.from_json(rules["x-image"]) for name, rules in properties.items() if "x-image" in rules
        }

    def images(self, inputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (field, address) for each image of a request."""
        for name in self.image_rules:
            value = inputs.get(name)
            yield from ((name, url) for url in (value if isinstance(value, list) else [value]) if url)

    def to_json(
        self, *, price_usd: float, price_unit: str, is_base: bool = False, with_schema: bool = True
    ) -> dict[str, Any]:
        """Return the model's page.

        :param price_usd: base price of one clip of five seconds.
        :param price_unit: of a model that has no unit of its own: ``output`` or ``second``.
        :param is_base: the inputs decide what is charged, and the page says so.
        """
        unit = self.price_unit or price_unit
        per_unit = price_usd / BASE_SECONDS if unit == "second" else price_usd
        note = f"Sandbox money: {per_unit:g} USD per {unit}. Nothing is really charged."
        if is_base:
            note += " This is a base: resolution, duration and audio change what is charged."
        page = {
            "model_id": self.model_id,
            "display_name": self.display_name,
            "kind": "video",
            "categories": list(self.categories),
            "required_inputs": list((self.schema or {}).get("required", ())),
            "base_price_usd": round(per_unit, 6),
            "price_unit": unit,
            "pricing_note": note,
            "model_url": f"https://www.runcomfy.com/models/{self.model_id}",
        }
        if with_schema:
            page["input_schema"] = None if self.schema is None else page_schema(self.schema)
        return page


class Catalog:
    """All models by id; of two with the same id, the first counts."""

    def __init__(self, models: Iterable[Model]) -> None:
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
            and (not category or category in model.categories)
        ]

    def categories(self) -> list[str]:
        """Return the categories of all models, sorted."""
        return sorted({category for model in self._models.values() for category in model.categories})


def page_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a schema into RunComfy's dialect.

    Image rules become ``validations``, or text of the description where the dialect has no rule for them.
    """
    fields = {name: _page_field(rules) for name, rules in schema["properties"].items()}
    return {"type": "object", "properties": fields, "required": list(schema["required"])}


def _page_field(rules: Mapping[str, Any]) -> dict[str, Any]:
    field = {name: value for name, value in rules.items() if name not in _NOT_ON_PAGES and not name.startswith("x-")}
    image = rules.get("x-image", {})
    if "formats" in image:
        field["description"] += f" {ImageRules.from_json(image).formats_text}."
    if image and not image.get("in_text_only"):
        field["validations"] = [
            {"validation_rule": rule, "validation_value": value, "validation_error": message}
            for rule, value, message in ImageRules.from_json(image).validations()
        ]
    return field
