# SPDX-License-Identifier: Apache-2.0
"""A model's page is text from outside: its rules are enforced, and nothing in it can do harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.exceptions import WanError, WanInputError
from airflow_provider_wan.model_api.calls import read_model
from airflow_provider_wan.model_api.dialect import SchemaTranslation, model_of_page, read_schema
from airflow_provider_wan.model_api.inputs import clip_seconds, validate_inputs
from airflow_provider_wan.model_api.schema import Model, ModelInfo, load_schema
from airflow_provider_wan.model_api.video_spec import SourceImage, make_video_spec
from tests.model_api.model_api_replies import MODEL, STEADY, reply

ACME = "acme/video/fast"
IMAGE = {
    "type": "string",
    "format": "image_uri",
    "validations": [
        {"validation_rule": "file_size_mb<", "validation_value": 10, "validation_error": "under 10 MB"},
        {"validation_rule": "width_pixels>", "validation_value": 300},
        {"validation_rule": "height_pixels<", "validation_value": "4000"},
        {"validation_rule": "width/height<", "validation_value": 2.5},
        {"validation_rule": "width/height>", "validation_value": 0.4},
    ],
}
URL = "https://images.example.com/a.jpg"


def page(fields: dict[str, Any], model_id: str = ACME, **more: Any) -> ModelInfo:
    schema = {"type": "object", "properties": fields, **more}
    return read_model(reply(200, {"model_id": model_id, "input_schema": schema}))


def model(fields: dict[str, Any], **more: Any) -> Model:
    return model_of_page(page(fields, **more))[0]


def notes(fields: dict[str, Any], model_id: str = ACME) -> str:
    return " ".join(model_of_page(page(fields, model_id))[1])


def refusal(of: Model, inputs: dict[str, Any]) -> str:
    with pytest.raises(WanInputError) as raised:
        validate_inputs(of, inputs)
    return str(raised.value)


# -- rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "value", "sent"),
    [
        ({"type": "integer", "enum": [5, 10]}, "10", 10),
        ({"enum": [5, 10]}, "10", 10),
        ({"type": "string", "enum": ["auto", "6"]}, 6, "6"),
        ({"type": "float", "minimum": 0, "maximum": 1}, "0.5", 0.5),
        ({"type": ["integer", "null"]}, "7", 7),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7),
        ({"type": "boolean"}, "False", False),
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", [1, 2]),
        ({"type": "array", "format": "image_uris"}, URL, [URL]),
        ({"type": "object", "properties": {"path": {"type": "string"}}}, '{"path": "x"}', {"path": "x"}),
        ({"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}, "anything", "anything"),
        (
            {"type": "object", "additionalProperties": False, "patternProperties": {"^a": {}}},
            {"a": 1},
            {"a": 1},
        ),
        ({}, "anything", "anything"),
        (True, 5, 5),
    ],
)
def test_values_are_converted_to_the_types_of_the_page(rules: Any, value: Any, sent: Any) -> None:
    validated = validate_inputs(model({"x": rules}), {"x": value})
    assert validated == {"x": sent}
    assert type(validated["x"]) is type(sent)


@pytest.mark.parametrize(
    ("rules", "value", "said"),
    [
        ({"type": "integer", "enum": [5, 10]}, 7, "must be 5 or 10"),
        ({"type": "integer"}, "ninety", "must be of type integer"),
        ({"type": "float", "maximum": 1}, 1.5, "must be at most 1"),
        ({"type": "integer", "minimum": 2}, 1, "must be at least 2"),
        ({"type": "string", "maxLength": 3}, "long", "4 characters long; at most 3"),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [1, 2], "maxItems"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": "x"}, "'x.a'"),
        ({"type": "object", "properties": {}, "required": ["path"]}, {}, "x: 'path' is required"),
        (IMAGE, "gs://b/a.jpg", "public http"),
        ({"type": "string", "format": "audio_uri"}, "gs://b/a.mp3", "public http"),
        ({"type": "array", "format": "image_uris"}, [URL, "a.jpg"], "public http"),
        ({"type": "integer", "multipleOf": 8}, 12, "multipleOf"),
    ],
)
def test_rules_of_the_page_are_enforced(rules: Any, value: Any, said: str) -> None:
    assert said in refusal(model({"x": rules}), {"x": value})


def test_required_and_unknown_fields_are_named() -> None:
    found = model({"prompt": {"type": "string"}, "image_url": IMAGE}, required=["prompt", "image_url", "gone"])
    message = refusal(found, {"promt": "x"})
    for part in ("'prompt' is required", "'image_url' is required", "did you mean 'prompt'?"):
        assert part in message
    assert "gone" not in message


def test_page_that_allows_other_fields_accepts_them() -> None:
    found = model({"prompt": {"type": "string"}}, additionalProperties=True)
    assert validate_inputs(found, {"prompt": "x", "other": [1]}) == {"prompt": "x", "other": [1]}


def test_required_inputs_beside_the_schema_count_too() -> None:
    info = read_model(
        reply(
            200,
            {
                "model_id": ACME,
                "required_inputs": ["prompt"],
                "input_schema": {"properties": {"prompt": {}}},
            },
        )
    )
    assert "'prompt' is required" in refusal(model_of_page(info)[0], {})


def test_defaults_of_the_page_give_the_length_of_a_clip() -> None:
    assert clip_seconds(model({"duration": {"type": "integer", "default": 7}}), {}) == 7
    assert clip_seconds(model({"duration": {"type": "string", "default": "10"}}), {}) == 10
    assert clip_seconds(model({"duration": {"type": "string", "default": "auto"}}), {}) is None


# -- images ------------------------------------------------------------------------------------------------


def test_validations_become_rules_for_the_image() -> None:
    (rules,) = model({"image_url": IMAGE, "prompt": {"type": "string"}}).images
    assert (rules.field, rules.min_side_px, rules.max_side_px) == ("image_url", 300, 4000)
    assert (rules.min_aspect, rules.max_aspect, rules.max_size_bytes_exclusive) == (0.4, 2.5, 10_000_000)
    assert not rules.is_array


def test_unknown_rule_is_ignored_and_logged() -> None:
    odd = {**IMAGE, "validations": [{"validation_rule": "colours<", "validation_value": 5}]}
    assert model({"image_url": odd}).images[0].max_side_px is None
    assert "image_url: colours<" in notes({"image_url": odd})


_OLD = {"type": "string", "validations": [{"validation_rule": "width_pixels>", "validation_value": 360}]}


@pytest.mark.parametrize(
    ("fields", "required", "found"),
    [
        ({"image": IMAGE, "end_image": IMAGE}, ["image"], "image"),
        ({"img_url": _OLD, "logo": {"format": "image_uri"}}, [], "img_url"),
        ({"images": {"type": "array", "items": {"format": "image_uri"}}}, [], "images"),
        ({"image_url": {"validations": IMAGE["validations"][:1]}}, [], "image_url"),
        ({"audio": {"validations": IMAGE["validations"][:1]}, "image": IMAGE}, [], "image"),
    ],
)
def test_field_of_the_source_image_is_found(fields: dict[str, Any], required: list[str], found: str) -> None:
    assert model(fields, required=required).image_field() == found


def test_field_of_the_source_image_is_the_one_that_is_not_given_by_name() -> None:
    both = model({"first_frame": IMAGE, "last_frame": IMAGE}, required=["first_frame", "last_frame"])
    with pytest.raises(WanInputError, match=r"several images: first_frame, last_frame.*image_field="):
        both.image_field()
    assert both.image_field(others=["last_frame"]) == "first_frame"
    with pytest.raises(WanInputError, match="names no input for an image"):
        model({"prompt": {}}).image_field()


# -- the bundled schema ------------------------------------------------------------------------------------


def wan_page(**changed: Any) -> dict[str, Any]:
    bundled = load_schema(MODEL)
    assert bundled is not None
    fields = {name: {k: v for k, v in r.items() if k[:2] != "x-"} for name, r in bundled.fields.items()}
    return {name: rules for name, rules in {**fields, **changed}.items() if rules is not None}


def test_page_decides_where_it_differs_from_the_bundled_schema() -> None:
    fields = wan_page(
        duration={"type": "integer", "minimum": 2, "maximum": 10},
        prompt={"type": "string", "maxLength": 5},
        fps={"type": "integer"},
        template=None,
        img_url=IMAGE,
    )
    found, said = model_of_page(page(fields, MODEL, required=["prompt", "img_url"]))
    good = {"prompt": "waves", "img_url": URL}
    assert validate_inputs(found, {**good, "duration": "8", "fps": "24"}) == {
        **good,
        "duration": 8,
        "fps": 24,
    }
    assert "at most 5" in refusal(found, {**good, "prompt": "waves!"})
    assert "must not be empty" in refusal(found, {**good, "prompt": " "})
    assert "not a field" in refusal(found, {**good, "template": "squish"})
    (rules,) = found.images
    assert (rules.formats, rules.alpha) == (("JPEG", "PNG", "BMP", "WEBP"), False), "no page states these"
    assert (rules.min_side_px, rules.max_side_px) == (300, 4000)
    assert found.defaults["duration"] == 5, "defaults of the bundled schema enter fingerprints"
    for part in (
        "duration: enum [5] is now no enum",
        "prompt: maxLength 800 is now maxLength 5",
        "fps is new",
        "template is gone",
    ):
        assert part in said[-1]


def test_page_without_differences_logs_none() -> None:
    info = page(wan_page(), MODEL, required=["prompt", "img_url"])
    assert not any("differs" in note for note in model_of_page(info)[1])


# -- fingerprints ------------------------------------------------------------------------------------------


def test_images_of_other_fields_are_part_of_the_fingerprint_by_their_content() -> None:
    def made(end: SourceImage | None, first: str = "md5:a") -> str:
        return make_video_spec(
            ACME,
            {"prompt": "waves"},
            images=[SourceImage("image", "gs://b/a.jpg", first, is_source=True), *([end] if end else [])],
        ).fingerprint

    end = SourceImage("end_image", "gs://b/b.jpg", "md5:b")
    moved = SourceImage("end_image", "gs://b/c.jpg", "md5:b")
    other_field = SourceImage("last_image", "gs://b/b.jpg", "md5:b")
    assert made(end) == made(moved)
    others = [
        made(None),
        made(end),
        made(other_field),
        made(end, "md5:c"),
        made(SourceImage("end_image", URL)),
    ]
    assert len(set(others)) == len(others)
    signed = SourceImage("end_image", f"{URL}?X-Goog-Signature=1")
    assert made(signed) == made(SourceImage("end_image", URL))


def test_lists_of_images_are_sent_as_lists() -> None:
    images = [
        SourceImage("images", f"gs://b/{n}", f"md5:{n}", lambda n=n: f"https://s/{n}?sig=1", is_listed=True)
        for n in "ab"
    ]
    spec = make_video_spec(ACME, {"prompt": "waves"}, images=images)
    assert spec.make_inputs() == {"prompt": "waves", "images": ["https://s/a?sig=1", "https://s/b?sig=1"]}
    assert spec.inputs["images"] == ["gs://b/a", "gs://b/b"]
    reordered = make_video_spec(ACME, {"prompt": "waves"}, images=images[::-1])
    assert reordered.fingerprint != spec.fingerprint


# -- schemas that do harm ----------------------------------------------------------------------------------


def test_schema_causes_no_network_call_and_no_hang() -> None:
    hostile = {
        "x": {"type": "string", "pattern": "(a+)+$"},
        "y": {"$ref": "https://evil.example.com/schema.json"},
        "z": {"$dynamicRef": "#meta", "patternProperties": {"(a+)+$": {}}},
    }
    found = model(hostile)
    assert validate_inputs(found, {"x": "a" * 50_000 + "!", "y": 1, "z": {"a": 1}})
    for keyword in ("pattern", "$ref", "$dynamicRef", "patternProperties"):
        assert keyword in notes(hostile)
        assert f'"{keyword}"' not in json.dumps(found.schema.document if found.schema else {})


def test_names_and_values_of_a_page_cannot_forge_log_lines() -> None:
    forged = {"x\nERROR": {}, "y": {"enum": ["a\nERROR", "b" * 5000]}, "z" * 5000: {}}
    found = model(forged, required=["x\nERROR", "y"])
    assert list(found.schema.fields if found.schema else ()) == ["y"]
    message = refusal(found, {"y": "c", "zzzz": 1})
    assert len(message) < 600
    assert not any(line.strip() == "ERROR" for line in message.splitlines())


def test_schema_that_is_too_deep_or_too_large_is_not_used() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    assert model({"x": deep}).schema is None
    assert "levels" in notes({"x": deep})
    assert model({f"f{n}": {} for n in range(30_000)}).schema is None
    cyclic: dict[str, Any] = {"properties": {}}
    cyclic["properties"]["x"] = cyclic
    with pytest.raises(WanInputError, match="levels"):
        read_schema(cyclic, ACME)


@pytest.mark.parametrize("given", ["", "[]", "{", "7", "[" * 100_000, {"type": "object"}, {"properties": {}}])
def test_invalid_schema_of_the_user_is_refused(given: Any) -> None:
    with pytest.raises(WanInputError, match="schema="):
        read_schema(given, ACME)


def test_schema_of_the_user_may_be_json_text_or_a_whole_page() -> None:
    schema = {"properties": {"prompt": {"type": "string"}}}
    for way in (schema, json.dumps(schema), {"model_id": ACME, "input_schema": schema}):
        found = read_schema(way, ACME).schema
        assert found is not None
        assert list(found.fields) == ["prompt"]


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["string", "float", "integer", "image_uri", "width_pixels<", "-1", "1e999", 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
_KEYWORDS = [
    *(
        "type",
        "enum",
        "const",
        "default",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "multipleOf",
        "minLength",
    ),
    *("maxLength", "minItems", "maxItems", "uniqueItems", "required", "items", "anyOf", "oneOf", "allOf"),
    *("format", "validations", "properties", "additionalProperties", "$ref", "pattern", "title", "not", "if"),
]
_SCHEMAS = st.recursive(
    st.dictionaries(st.sampled_from(_KEYWORDS), _JSON, max_size=5),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "float"]) | _JSON,
            "properties": st.dictionaries(st.sampled_from(["a", "b", "prompt"]), inner, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "required": st.lists(st.sampled_from(["a", "b"]) | _JSON, max_size=2),
            "validations": st.lists(
                st.fixed_dictionaries({"validation_rule": _JSON, "validation_value": _JSON}), max_size=2
            ),
            "enum": st.lists(_JSON, max_size=3),
            "multipleOf": _JSON,
        },
    ),
    max_leaves=6,
)


@STEADY
@given(st.dictionaries(st.sampled_from(["a", "b", "prompt"]), _SCHEMAS, max_size=3), _JSON, _JSON)
def test_no_schema_ends_in_anything_but_our_own_error(fields: Any, required: Any, value: Any) -> None:
    for schema in ({"properties": fields, "required": required}, required):
        found = SchemaTranslation(ACME, schema, required).schema
        for model_id in (ACME, MODEL):
            info = ModelInfo(model_id, None, None, None, None, schema, {"required_inputs": required})
            whole = model_of_page(info)[0]
            for of in (Model(model_id, found), whole):
                try:
                    sent = validate_inputs(of, {"a": value, "prompt": "x", "duration": 5})
                    json.dumps(sent)
                    of.image_field()
                except WanError:
                    pass
                clip_seconds(of, {"a": value})
                assert isinstance(of.images, tuple)
