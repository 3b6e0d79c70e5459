# SPDX-License-Identifier: Apache-2.0
"""Inputs that the API would reject are rejected before a purchase; strings from Jinja and CSV are converted
back.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api.coercion import coerce_value
from airflow_provider_wan.model_api.inputs import coerce_inputs, validate_inputs
from airflow_provider_wan.model_api.schema import Model, load_schema
from tests.model_api.model_api_replies import MODEL, STEADY

WAN = Model.bundled(MODEL)
GOOD = {"prompt": "a cat", "img_url": "https://h.example/a.png"}


def refusal(inputs: Any, model_id: str = MODEL, **options: bool) -> str:
    with pytest.raises(WanInputError) as raised:
        validate_inputs(Model.bundled(model_id), inputs, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {}),
        ({"seed": "123"}, {"seed": 123}),
        ({"seed": " -5 "}, {"seed": -5}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": "5.0"}, {"seed": 5}),
        ({"duration": "5"}, {"duration": 5}),
        ({"duration": 5.0}, {"duration": 5}),
        ({"prompt_extend": "False"}, {"prompt_extend": False}),
        ({"prompt_extend": "YES"}, {"prompt_extend": True}),
        ({"prompt_extend": "off"}, {"prompt_extend": False}),
        ({"prompt_extend": 1}, {"prompt_extend": True}),
        ({"prompt_extend": "0"}, {"prompt_extend": False}),
        ({"prompt": 2024}, {"prompt": "2024"}),
        ({"negative_prompt": 1.5}, {"negative_prompt": "1.5"}),
        # left out
        ({"seed": None}, {}),
        ({"seed": ""}, {}),
        ({"seed": " "}, {}),
        ({"seed": "None"}, {}),
        ({"seed": float("nan")}, {}),
        ({"prompt_extend": "None"}, {}),
        ({"template": ""}, {}),
        ({"negative_prompt": None, "resolution": None}, {}),
        # a word is a word where a string is asked for
        ({"negative_prompt": "None"}, {"negative_prompt": "None"}),
        ({"prompt": "true"}, {"prompt": "true"}),
        # the limits themselves
        ({"prompt": "x" * 800}, {"prompt": "x" * 800}),
        ({"negative_prompt": "x" * 500}, {"negative_prompt": "x" * 500}),
        ({"resolution": "1080P"}, {"resolution": "1080P"}),
        ({"template": "anything-new"}, {"template": "anything-new"}),
        ({"img_url": "http://127.0.0.1:8787/a.png?X-Goog-Signature=1"},) * 2,
    ],
)
def test_values_are_coerced_without_loss(given: dict[str, Any], sent: dict[str, Any]) -> None:
    validated = validate_inputs(WAN, GOOD | given)
    assert validated == GOOD | sent
    assert {name: type(value) for name, value in validated.items()} == {
        name: type(value) for name, value in (GOOD | sent).items()
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": "1e3"}, ["'seed'", '"1e3"', "integer"]),
        ({"seed": True}, ["'seed'", "True", "integer"]),
        ({"seed": 5.5}, ["'seed'", "5.5", "integer"]),
        ({"seed": float("inf")}, ["'seed'", "inf", "not JSON"]),
        ({"seed": "٣"}, ["'seed'", "integer"]),
        ({"seed": "1_000"}, ["'seed'", "integer"]),
        ({"duration": 6}, ["'duration'", "6", "must be 5"]),
        ({"duration": "6"}, ["'duration'", "6", "must be 5"]),
        ({"resolution": "720P"}, ["'resolution'", '"720P"', '"480P" or "1080P"']),
        ({"prompt_extend": "maybe"}, ["'prompt_extend'", '"maybe"', "boolean"]),
        ({"prompt_extend": 2}, ["'prompt_extend'", "2", "boolean"]),
        ({"prompt": "x" * 801}, ["'prompt'", "801 characters", "at most 800"]),
        ({"negative_prompt": "x" * 501}, ["'negative_prompt'", "501 characters", "at most 500"]),
        ({"prompt": ""}, ["'prompt'", "must not be empty"]),
        ({"prompt": " \t\n"}, ["'prompt'", "must not be empty"]),
        ({"prompt": None}, ["'prompt'", "is required"]),
        ({"prompt": True}, ["'prompt'", "True", "string"]),
        ({"prompt": ["a"]}, ["'prompt'", "string"]),
        ({"img_url": ""}, ["'img_url'", "must not be empty"]),
        ({"img_url": "None"}, ["'img_url'", '"None"', "http"]),
        ({"img_url": "gs://b/o.png"}, ["'img_url'", "gs://b/o.png", "http"]),
        ({"img_url": "/tmp/a.png"}, ["'img_url'", "http"]),
        ({"img_url": "https://"}, ["'img_url'", "http"]),
        ({"img_url": "https://h/a b.png"}, ["'img_url'", "http"]),
        ({"img_url": "data:image/png;base64,AAAA"}, ["'img_url'", "data:"]),
        ({"promt": "x"}, ["promt", "'prompt'"]),
        ({"image_url": "x"}, ["image_url", "'img_url'"]),
        ({"Negative_Prompt": None}, ["Negative_Prompt", "'negative_prompt'"]),
        ({"zzzz": 1}, ["zzzz", "known", "prompt_extend"]),
        ({"prompt": object()}, ["'prompt'", "not JSON"]),
        ({5: "x"}, ["names"]),
    ],
)
def test_broken_rule_names_field_value_and_rule(given: dict[Any, Any], said: list[str]) -> None:
    message = refusal(GOOD | given)
    for part in [*said, MODEL, "nothing was bought"]:
        assert part in message


def test_all_broken_rules_are_named_at_once() -> None:
    message = refusal({"promt": "x", "seed": "x", "duration": 9, "img_url": "gs://b/o"})
    for part in ("promt", "'prompt' is required", "'seed'", "'duration'", "'img_url'"):
        assert part in message


def test_long_and_signed_values_are_cut_in_messages() -> None:
    assert "x" * 81 not in refusal(GOOD | {"prompt": "x" * 900})
    assert "abc" not in refusal(GOOD | {"seed": "https://h/a?X-Goog-Signature=abc"})
    assert len(refusal(GOOD | {"img_url": "data:text/plain," + "A" * 10_000})) < 400


@pytest.mark.parametrize("uri", ["data:image/png;base64,AAAA", "DATA:text/html,x", "data:"])
def test_data_uri_is_refused(uri: str) -> None:
    assert "'img_url'" in refusal(GOOD | {"img_url": uri})


def test_request_that_is_too_large_is_refused() -> None:
    assert "bytes" in refusal(GOOD | {"img_url": "https://h/" + "A" * (64 * 1024 * 1024)})


def test_model_without_a_schema_accepts_any_json() -> None:
    inputs = {"text": "x", "n": [1, {"a": None}], "skip": None}
    assert validate_inputs(Model("acme/new-model"), inputs) == {"text": "x", "n": [1, {"a": None}]}
    assert "no inputs" in refusal({}, "acme/new-model")
    assert "no inputs" in refusal({"a": None}, "acme/new-model")
    assert "'a'" in refusal({"a": {1, 2}}, "acme/new-model")
    assert "dict" in refusal(["a"], "acme/new-model")
    assert "dict" in refusal("{}", "acme/new-model")


def test_model_id_cannot_leave_the_folder_of_schemas() -> None:
    for model_id in ("../schemas/x", "", "a//b", "wan-ai/../x"):
        with pytest.raises(WanInputError):
            load_schema(model_id)
    assert load_schema("wan-ai--wan-2-2--image-to-video") is None
    assert load_schema("wan-ai/wan-2-2--image-to-video") is None


def test_every_bundled_schema_is_valid() -> None:
    from jsonschema import Draft202012Validator

    files = [f for f in resources.files("airflow_provider_wan.model_api.schemas").iterdir() if f.name.endswith(".json")]
    assert files
    for file in files:
        document = json.loads(file.read_text())
        Draft202012Validator.check_schema(document)
        assert file.name == document["x-model-id"].replace("/", "--") + ".json"
        schema = load_schema(document["x-model-id"])
        assert schema is not None
        for name, rules in schema.fields.items():
            assert rules["title"], name
            assert rules["description"], name
            assert "default" not in rules or coerce_value(rules["default"], (rules["type"],)) == rules["default"]


def test_bundled_image_rules_are_those_of_the_page() -> None:
    (rules,) = WAN.images
    assert rules.field == "img_url"
    assert rules.formats == ("JPEG", "PNG", "BMP", "WEBP")
    assert (rules.alpha, rules.min_side_px, rules.max_side_px) == (False, 360, 2000)
    assert rules.max_size_bytes_exclusive == 10_000_000
    assert Model.bundled("acme/new-model").images == ()


@pytest.mark.parametrize(
    ("value", "types", "coerced"),
    [
        ("1.5", ("number",), 1.5),
        ("1e3", ("number",), 1000.0),
        ("12", ("number",), 12),
        ("1e999", ("number",), "1e999"),
        ("[1, 2]", ("array",), [1, 2]),
        ((1, 2), ("array",), [1, 2]),
        ("{'a': 1}", ("object",), "{'a': 1}"),
        ('{"a": 1}', ("object",), {"a": 1}),
        ("[1]", ("object",), "[1]"),
        ("[" * 100_000, ("array",), "[" * 100_000),
        ("7", ("integer", "null"), 7),
        (7.0, ("integer", "null"), 7),
        ("7", ("integer", "string"), "7"),
        (10**400, ("integer",), 10**400),
        ("x", (), "x"),
        ("x", ("odd",), "x"),
    ],
)
def test_other_types_are_coerced_too(value: Any, types: tuple[str, ...], coerced: Any) -> None:
    assert coerce_value(value, types) == coerced


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["None", "", " ", "1", "1.0", "true", "No", "1e3", "[1]", "https://h/a?x=1"]),
    st.lists(st.integers(), max_size=2),
)
FIELDS = st.sampled_from([*GOOD, "seed", "duration", "prompt_extend", "negative_prompt", "resolution", "odd"])


@STEADY
@given(st.dictionaries(FIELDS, VALUES))
def test_coercion_is_idempotent(inputs: dict[str, Any]) -> None:
    once = coerce_inputs(WAN, inputs)
    assert repr(coerce_inputs(WAN, once)) == repr(once)


@STEADY
@given(st.dictionaries(FIELDS, VALUES))
def test_any_inputs_are_refused_or_sendable(inputs: dict[str, Any]) -> None:
    try:
        validated = validate_inputs(WAN, inputs)
    except WanInputError:
        return
    assert validate_inputs(WAN, json.loads(json.dumps(validated))) == validated
    assert "odd" not in validated
