# SPDX-License-Identifier: Apache-2.0
"""The rules of a model: its input schema, its rules for images, and the field that takes the source image.

Two schemas play a part. The bundled one (a JSON file in ``schemas/``, for Wan 2.2 alone) gives the defaults and
conversions that enter a fingerprint, so it must not change. The one that validates comes from the model's page at
RunComfy, or from the user; it can change at any time, and never enters a fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

from airflow_provider_wan.exceptions import WanError, WanInputError, WanTransientError
from airflow_provider_wan.model_api.values import check_model_id

_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ImageRules:
    """The rules of a model for the image of one of its fields.

    :param field: the input field that takes the image's URL.
    :param formats: format names as Pillow has them; empty for any.
    :param alpha: whether an alpha channel is accepted.
    :param min_side_px: the least width and height, inclusive; ``None`` for no limit.
    :param max_side_px: the greatest width and height, inclusive; ``None`` for no limit.
    :param max_size_bytes_exclusive: the file must be smaller than this; ``None`` for no limit.
    :param min_aspect: the least width / height, inclusive; ``None`` for no limit.
    :param max_aspect: the greatest width / height, inclusive; ``None`` for no limit.
    :param is_array: whether the field takes a list of URLs.
    """

    field: str
    formats: tuple[str, ...] = ()
    alpha: bool = True
    min_side_px: int | None = None
    max_side_px: int | None = None
    max_size_bytes_exclusive: int | None = None
    min_aspect: float | None = None
    max_aspect: float | None = None
    is_array: bool = False

    @classmethod
    def of(cls, field: str, rules: Mapping[str, Any]) -> ImageRules:
        """Read the ``x-image`` keyword of a field."""
        return cls(field, **{**rules, "formats": tuple(rules.get("formats", ()))})

    @property
    def has_pixel_rules(self) -> bool:
        """Whether there is a rule about width and height."""
        rules = (self.min_side_px, self.max_side_px, self.min_aspect, self.max_aspect)
        return any(rule is not None for rule in rules)


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """The input schema of one model.

    :param document: the JSON schema (Draft 2020-12) with this package's ``x-`` keywords: ``x-image`` (rules for
        an image), ``x-media`` (``video`` or ``audio``) and ``x-messages`` (rules in words).
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
    def takes_other_fields(self) -> bool:
        """Whether fields that the schema does not list are accepted."""
        return self.document.get("additionalProperties", False) is not False

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The names of the fields that take the URL of an image."""
        return tuple(name for name, rules in self.fields.items() if "x-image" in rules)

    @property
    def media_fields(self) -> tuple[str, ...]:
        """The names of the fields that take the URL of an image, a video or audio."""
        return tuple(name for name, rules in self.fields.items() if "x-image" in rules or "x-media" in rules)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The values that the model uses for fields that are left out."""
        return {name: rules["default"] for name, rules in self.fields.items() if "default" in rules}


@cache
def load_schema(model_id: str) -> ModelSchema | None:
    """Return the bundled schema of a model, or None if this package has none.

    :raises WanInputError: the model id is not valid.
    """
    name = check_model_id(model_id).replace("/", "--") + ".json"
    file = resources.files("airflow_provider_wan.model_api.schemas").joinpath(name)
    if not file.is_file():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    return ModelSchema(model_id, document) if document["x-model-id"] == model_id else None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the catalogue.

    :param base_price_usd: the price of one ``price_unit`` in USD.
    :param price_unit: ``second`` or ``output``.
    :param input_schema: the JSON schema of its inputs as RunComfy gives it.
    :param raw: the whole answer.
    :param schema: the schema of its inputs as it validates them; None: the page has no usable one.
    """

    model_id: str
    display_name: str | None
    base_price_usd: float | None
    price_unit: str | None
    pricing_note: str | None
    input_schema: Mapping[str, Any] | None
    raw: Mapping[str, Any]
    schema: ModelSchema | None = None

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The names of the inputs that take the URL of an image."""
        return self.schema.image_fields if self.schema else ()

    @property
    def is_priced_by_the_second(self) -> bool:
        """Whether a longer clip costs more."""
        return self.price_unit == "second"

    def price_of(self, seconds: float | None) -> float | None:
        """Return the base price of one clip in USD, or None if it is not known.

        :param seconds: its length, or None if it is not known.
        """
        if self.base_price_usd is None or not self.is_priced_by_the_second:
            return self.base_price_usd
        return None if seconds is None else self.base_price_usd * seconds


@dataclass(frozen=True, slots=True)
class ModelPage:
    """A page of the catalogue.

    :param total: how many models there are in all, if the API says so.
    """

    models: tuple[ModelInfo, ...]
    total: int | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model as a task uses it: the schema that validates its inputs and images, and its page with the price.

    :param schema: validates the inputs; None: they are sent unchecked.
    :param page: its page at RunComfy; None: not read.
    :param chosen_field: the field that takes the source image, as the user says; None: found from the schema.
    :param unread: why the page could not be read.
    """

    model_id: str
    schema: ModelSchema | None = None
    page: ModelInfo | None = None
    chosen_field: str | None = None
    unread: WanError | None = None

    @classmethod
    def bundled(cls, model_id: str, image_field: str | None = None) -> Model:
        """Return a model by what this package knows of it, without its page."""
        return cls(model_id, load_schema(model_id), chosen_field=image_field)

    @property
    def images(self) -> tuple[ImageRules, ...]:
        """The rules for the image of each field that takes one, in the order of the schema."""
        fields = self.schema.fields if self.schema else {}
        found = [ImageRules.of(name, rules["x-image"]) for name, rules in fields.items() if "x-image" in rules]
        chosen = self.chosen_field
        if chosen is not None and all(rules.field != chosen for rules in found):
            found.append(ImageRules(chosen, is_array=fields.get(chosen, {}).get("type") == "array"))
        return tuple(found)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The values of fields that are left out; those of the bundled schema, if there is one."""
        schema = load_schema(self.model_id) or self.schema
        return schema.defaults if schema else {}

    def seed_from(self, name: str, inputs: Mapping[str, Any]) -> dict[str, int]:
        """Return a seed that depends on a name alone, as an input; empty if the model has no seed.

        :param name: hexadecimal.
        :param inputs: those of a model without a schema say whether it has one.
        """
        rules = self.schema.fields.get("seed") if self.schema else {} if "seed" in inputs else None
        if rules is None:
            return {}
        least, most = rules.get("minimum", 0), rules.get("maximum", _LARGEST_SEED)
        return {"seed": int(least + int(name[:16], 16) % max(1, int(most - least) + 1))}

    def rules_of(self, field: str) -> ImageRules | None:
        """Return the rules for the image of a field; None if the field is not known to take one."""
        return next((rules for rules in self.images if rules.field == field), None)

    def image_field(self, others: Collection[str] = ()) -> str:
        """Return the field that takes the source image: the chosen one, else the one that the schema shows.

        The schema shows it by the one required image field, else the one with rules about pixels, else the only one.

        :param others: fields whose images are given by name.
        :raises WanInputError: the schema does not show it.
        :raises WanTransientError: the page can't be read now, so nothing shows it.
        """
        if self.chosen_field is not None:
            return self.chosen_field
        images = [rules for rules in self.images if rules.field not in others]
        required = self.schema.required if self.schema else frozenset()
        for found in (
            [rules for rules in images if rules.field in required],
            [rules for rules in images if rules.has_pixel_rules],
            images,
        ):
            if len(found) == 1:
                return found[0].field
        raise self._no_image_field([rules.field for rules in images])

    def _no_image_field(self, found: list[str]) -> WanError:
        if self.schema is None:
            why = f"could not be read: {self.unread}" if self.unread else "has no schema of its inputs."
            message = (
                f"The input of model {self.model_id} that takes the image is not known: the model's page {why} "
                'Nothing was bought. Set image_field=, such as image_field="image_url".'
            )
            return (WanTransientError if isinstance(self.unread, WanTransientError) else WanInputError)(message)
        if not found:
            return WanInputError(
                f"Model {self.model_id} names no input for an image. Nothing was bought. Leave out image=, or set "
                "image_field= if the model's page is wrong."
            )
        return WanInputError(
            f"Model {self.model_id} takes several images: {', '.join(found)}. Nothing was bought. Set image_field= "
            "for the source image, or give each image by name in images={...}."
        )


class LazyModel:
    """A model whose page is read when its rules are first needed: not at all where nothing is bought.

    :param read: returns the model; it may make a call. None (default): only the bundled schema is used.
    :param chosen_field: the field that takes the source image, as the user says.
    """

    def __init__(
        self, model_id: str, read: Callable[[], Model] | None = None, *, chosen_field: str | None = None
    ) -> None:
        self.model_id = check_model_id(model_id)
        self.chosen_field = chosen_field
        self._read = read

    @classmethod
    def of(cls, model: Model) -> LazyModel:
        """Return a model that was read."""
        return cls(model.model_id, lambda: model, chosen_field=model.chosen_field)

    @cached_property
    def known(self) -> Model:
        """The model; the first use may make a call."""
        return self._read() if self._read is not None else Model.bundled(self.model_id, self.chosen_field)

    def use(self, model: Model) -> None:
        """Use a model that was read before a wait: its page is not read again."""
        self.__dict__["known"] = model

    def image_field(self, others: Collection[str] = ()) -> str:
        """Return the field that takes the source image; see :meth:`Model.image_field`.

        No call is made where the user or the bundled schema names it.
        """
        if self.chosen_field is not None:
            return self.chosen_field
        return (Model.bundled(self.model_id) if load_schema(self.model_id) else self.known).image_field(others)
