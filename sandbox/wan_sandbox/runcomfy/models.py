# SPDX-License-Identifier: Apache-2.0
"""The models that the sandbox offers: their inputs as JSON Schema, with image rules in ``x-image``.

Names, ranges and defaults are facts of RunComfy's catalogue of 2026-09-23; the descriptions are ours. Where a fact
is not known, models of the Wan family have the values of Wan 2.2, and the others invented ones that are plausible.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

from wan_sandbox.runcomfy.catalog import Catalog, Model

Fields = dict[str, dict[str, Any]]


#: Models that accept any input; their pages have no schema.
_FREE_FORM = ("wan-ai/wan-2-2/text-to-video", "sandbox/free-form/any")
_WAN_22 = "wan-ai--wan-2-2--image-to-video.json"


def _field(kind: str, description: str, **rules: Any) -> dict[str, Any]:
    return {"type": kind, "description": description, **rules}


def _prompt(**rules: Any) -> dict[str, Any]:
    return _field("string", "What happens in the clip: motion, camera and mood.", pattern=r"\S", **rules)


def _choice(description: str, *values: Any, default: Any = None) -> dict[str, Any]:
    kind = "string" if isinstance(values[0], str) else "integer"
    return _field(kind, description, enum=list(values), **({} if default is None else {"default": default}))


def _range(description: str, least: int, most: int, default: int | None = None) -> dict[str, Any]:
    more = {} if default is None else {"default": default}
    return _field("integer", description, minimum=least, maximum=most, **more)


def _switch(description: str, default: bool) -> dict[str, Any]:
    return _field("boolean", description, default=default)


def _image(description: str, rules: Mapping[str, Any]) -> dict[str, Any]:
    return _field("string", description, format="image_uri", **{"x-image": rules})


def _rules(
    below_mb: int | None,
    side_px: tuple[int | None, int | None] = (None, None),
    aspect: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """Return the keyword ``x-image`` of a field."""
    rules = {
        "max_size_bytes_exclusive": below_mb and below_mb * 1_000_000,
        "min_side_px": side_px[0],
        "max_side_px": side_px[1],
        "min_aspect": aspect[0],
        "max_aspect": aspect[1],
    }
    return {name: value for name, value in rules.items() if value is not None}


def _media(kind: str, description: str, most: int, **rules: Any) -> dict[str, Any]:
    return _field("array", description, format=kind, maxItems=most, **rules)


def _resolution(*values: str, default: str | None = None) -> dict[str, Any]:
    return _choice("Size class of the clip.", *values, default=default)


_SEED = _range("Fixes the randomness.", 0, 2_147_483_647)
_NEGATIVE = _field("string", "What should not be seen.", maxLength=500)
_AUDIO = _switch("Whether the clip gets a sound track.", True)
_EXTEND = _switch("Whether a language model may elaborate the prompt.", True)

_WAN_22_IMAGE = _rules(10, (360, 2000))
_WAN_IMAGE = _rules(20, (240, 8000), (0.125, 8))
_SEEDANCE_IMAGE = _rules(30, (300, 6000), (0.4, 2.5))
_KLING_IMAGE = _rules(10, (300, None), (0.4, 2.5))
#: The page of this model states its limits only in the description.
_MINIMAX_IMAGE = {**_rules(None, (256, 5760), (0.4, 2.5)), "in_text_only": True}
_LTX_IMAGE = _rules(7)

_WAN_2_INPUTS: Fields = {
    "prompt": _prompt(maxLength=800),
    "img_url": _image("Image that the clip starts from.", _WAN_22_IMAGE),
    "negative_prompt": _NEGATIVE,
    "resolution": _resolution("480P", "1080P", default="480P"),
    "duration": _choice("Length of the clip in seconds.", 5, default=5),
    "prompt_extend": _EXTEND,
    "seed": _field("integer", "Fixes the randomness."),
}
_WAN_27_INPUTS: Fields = {
    "prompt": _prompt(maxLength=5000),
    "image_url": _image("Image that the clip starts from.", _WAN_IMAGE),
    "end_image_url": _image("Image that the clip ends with.", _WAN_IMAGE),
    "audio_url": _field("string", "Sound that drives the clip.", format="audio_uri"),
    "negative_prompt": _NEGATIVE,
    "resolution": _resolution("720p", "1080p", default="720p"),
    "duration": _choice("Length of the clip in seconds.", *range(2, 16), default=5),
    "prompt_extend": _EXTEND,
    "seed": _SEED,
}
_WAN_30_TEXT_INPUTS: Fields = {
    "prompt": _prompt(default=""),
    "aspect_ratio": _choice("Shape of the clip.", "adaptive", "16:9", "9:16", "1:1", "4:3", "3:4", default="adaptive"),
    "resolution": _resolution("480p", "720p", "1080p", default="720p"),
    "duration": _range("Length of the clip in seconds.", 2, 30, 5),
    "enable_audio": _AUDIO,
    "prompt_extend": _EXTEND,
    "seed": {**_SEED, "default": 0},
}
_WAN_30_INPUTS: Fields = {
    **_WAN_30_TEXT_INPUTS,
    "image_url": _image("Image that the clip starts from.", _WAN_IMAGE),
    "end_image_url": _image("Image that the clip ends with.", _WAN_IMAGE),
}
_SEEDANCE_INPUTS: Fields = {
    "prompt": _prompt(default=""),
    "duration": _range("Length of the clip in seconds.", 4, 30, 5),
    "generate_audio": _AUDIO,
}
_KLING_INPUTS: Fields = {
    "prompt": _prompt(maxLength=2500),
    "start_image_url": _image("First frame.", _KLING_IMAGE),
    "end_image_url": _image("Last frame.", _KLING_IMAGE),
    "duration": _range("Length of the clip in seconds.", 3, 15, 10),
    "negative_prompt": _NEGATIVE,
    "cfg_scale": _field("float", "How closely the clip follows the prompt.", minimum=0, maximum=1, default=0.5),
}


def catalog(more: Iterable[str] = ()) -> Catalog:
    """Return the catalogue.

    :param more: ids of further models that accept any input.
    """
    free_form = (Model(model_id, f"{model_id} (any input)") for model_id in (*_FREE_FORM, *more))
    return Catalog((_wan_22(), *_wan(), *_bytedance(), *_kling(), *_others(), *free_form))


def _wan_22() -> Model:
    file = resources.files("wan_sandbox") / "schemas" / _WAN_22
    schema = json.loads(file.read_text(encoding="utf-8"))
    return Model(schema["x-model-id"], schema["title"], schema)


def _model(
    model_id: str,
    name: str,
    fields: Fields,
    required: tuple[str, ...],
    output_shape: str = "video",
    price_factor: float = 1.0,
    price_unit: str = "output",
) -> Model:
    schema = {"type": "object", "properties": fields, "required": list(required)}
    return Model(model_id, name, schema, output_shape, price_factor, price_unit, price_by_inputs=True)


def _wan() -> Iterator[Model]:
    for version in ("2-5", "2-6"):
        model_id, name = (
            f"wan-ai/wan-{version}/image-to-video",
            f"Wan {version.replace('-', '.')} image to video",
        )
        yield _model(model_id, name, _WAN_2_INPUTS, ("prompt", "img_url"))
    yield _model("wan-ai/wan-2.7/image-to-video", "Wan 2.7 image to video", _WAN_27_INPUTS, ("prompt", "image_url"))
    for version, factor in (("3.0", 1.5), ("3.0-prime", 2.0)):
        model_id, name = f"wan-ai/wan-{version}/image-to-video", f"Wan {version} image to video"
        needs = ("prompt", "image_url")
        yield _model(model_id, name, _WAN_30_INPUTS, needs, price_factor=factor, price_unit="second")
    images = _media("image_uris", "Images that the clip refers to.", 5, minItems=1, **{"x-image": _WAN_IMAGE})
    more: dict[str, tuple[Fields, tuple[str, ...]]] = {
        "text-to-video": ({}, ("prompt",)),
        "reference-to-video": ({"image_urls": images}, ("prompt", "image_urls")),
    }
    for kind, (fields, required) in more.items():
        model_id, name = f"wan-ai/wan-3.0/{kind}", f"Wan 3.0 {kind.replace('-', ' ')}"
        inputs = {**_WAN_30_TEXT_INPUTS, **fields}
        yield _model(model_id, name, inputs, required, price_factor=1.5, price_unit="second")


def _bytedance() -> Iterator[Model]:
    image, last = _image("First frame.", _SEEDANCE_IMAGE), _image("Last frame.", _SEEDANCE_IMAGE)
    several: Fields = {
        "images": _media("image_uris", "Images that the clip refers to.", 9, **{"x-image": _SEEDANCE_IMAGE}),
        "videos": _media("video_uris", "Clips that the clip refers to.", 3),
        "audios": _media("audio_uris", "Sounds that the clip refers to.", 3),
    }
    kinds: dict[str, tuple[Fields, tuple[str, ...]]] = {
        "image-to-video": ({"image": image}, ("prompt", "image")),
        "first-last-frame": (
            {"first_frame": image, "last_frame": last},
            ("prompt", "first_frame", "last_frame"),
        ),
        "reference-to-video": (several, ("prompt",)),
    }
    for kind, (fields, required) in kinds.items():
        for resolution in ("480p", "720p", "1080p", "4k")[: 3 if kind == "reference-to-video" else 4]:
            model_id = f"bytedance/seedance-2.5/{kind}/{resolution}"
            name = f"Seedance 2.5 {kind.replace('-', ' ')}, {resolution}"
            yield _model(model_id, name, {**_SEEDANCE_INPUTS, **fields}, required, "video_url", 1.25, "second")


def _kling() -> Iterator[Model]:
    o3: Fields = {
        "prompt": _prompt(maxLength=2500),
        "image": _image("First frame.", _KLING_IMAGE),
        "end_image": _image("Last frame.", _KLING_IMAGE),
        "duration": _choice("Length of the clip in seconds.", *range(3, 16), default=5),
        "sound": _switch("Whether the clip gets a sound track, which raises the price by about a third.", False),
    }
    for tier in ("standard", "pro", "4k"):
        yield _model(
            f"kling/kling-3.0/{tier}/image-to-video",
            f"Kling 3.0 {tier}, image to video",
            _KLING_INPUTS,
            ("prompt", "start_image_url"),
            "videos",
            price_unit="second",
        )
        yield _model(
            f"kling/kling-video-o3/{tier}/image-to-video",
            f"Kling O3 {tier}, image to video",
            o3,
            ("prompt", "image"),
            "videos",
        )


def _others() -> Iterator[Model]:
    happyhorse: Fields = {
        "prompt": _prompt(maxLength=2500),
        "image_url": _image("First frame.", _KLING_IMAGE),
        "resolution": _resolution("720P", "1080P", default="1080P"),
        "duration": _choice("Length of the clip in seconds.", *range(3, 16), default=5),
        "seed": _SEED,
    }
    yield _model(
        "alibaba/happyhorse-1.1/image-to-video",
        "HappyHorse 1.1 image to video",
        happyhorse,
        ("prompt", "image_url"),
        "both",
    )
    limits = " Sides of 256 to 5760 px, width to height between 0.4 and 2.5."
    minimax: Fields = {
        "prompt": _prompt(),
        "image": _image(f"First frame.{limits}", _MINIMAX_IMAGE),
        "last_image": _image(f"Last frame.{limits}", _MINIMAX_IMAGE),
        "duration": _range("Length of the clip in seconds.", 4, 15),
        "resolution": _resolution("768p", "2k"),
    }
    yield _model(
        "minimax/minimax-h3/image-to-video",
        "MiniMax H3 image to video",
        minimax,
        ("prompt", "image", "duration", "resolution"),
        "generated_video",
    )
    for speed, most in (("fast", 20), ("pro", 10)):
        lengths = ("auto", *(str(seconds) for seconds in range(6, most + 1, 2)))
        yield _model(
            f"lightricks/ltx-2.5/image-to-video/{speed}",
            f"LTX 2.5 {speed}, image to video",
            _ltx(lengths),
            ("prompt", "image_url"),
            "download_url",
        )


def _ltx(lengths: tuple[str, ...]) -> Fields:
    lora: Fields = {
        "path": _field("string", "Address of the weights."),
        "scale": _field("float", "Strength.", minimum=0, maximum=4, default=1.0),
    }
    return {
        "prompt": _prompt(maxLength=5000),
        "image_url": _image("First frame.", _LTX_IMAGE),
        "end_image_url": _image("Last frame.", _LTX_IMAGE),
        "duration": _choice("Length of the clip in seconds, as text.", *lengths, default="10"),
        "resolution": _resolution("720p", "1080p", "1440p", "2160p", default="1080p"),
        "fps": _choice("Frames per second.", 24, 25, 48, 50, default=25),
        "generate_audio": _AUDIO,
        "lora": _field("object", "Weights that change the style.", properties=lora, required=["path"]),
    }
