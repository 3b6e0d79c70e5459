# SPDX-License-Identifier: Apache-2.0
"""The catalogue in RunComfy's dialect: pages, search, and every model of the contract's table with its rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.tests.api_client import MODEL, Client, image_bytes, put_image
from wan_sandbox.runcomfy.models import catalog
from wan_sandbox.server import Sandbox

ADDRESS = "https://images.example.com/a.jpg"
MODELS = [model for model in catalog().search(text="", category="") if model.schema]


def page(client: Client, model: str) -> dict[str, Any]:
    answer = client.get(f"/v1/models/{model}")
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


def good_inputs(schema: dict[str, Any], image: str) -> dict[str, Any]:
    """Build the smallest inputs that a page allows."""
    inputs: dict[str, Any] = {}
    for name in schema["required"]:
        rules = schema["properties"][name]
        if name == "prompt":
            inputs[name] = "a slow wave"
        elif rules.get("format") == "image_uris":
            inputs[name] = [image, image]
        elif rules["type"] == "string" and "enum" not in rules:
            inputs[name] = image
        else:
            inputs[name] = rules["enum"][0] if "enum" in rules else rules["minimum"]
    return inputs


def bad_changes(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (field, change) for each rule of a page, so that the change breaks it."""
    yield "promt", {"promt": "a typo"}
    for name in schema["required"]:
        yield name, {name: None}
    for name, rules in schema["properties"].items():
        yield name, {name: {"string": 7, "object": "x", "array": "x"}.get(rules["type"], "ninety")}
        if "enum" in rules:
            yield name, {name: "8k" if rules["type"] == "string" else 99}
        if "maximum" in rules:
            yield name, {name: rules["maximum"] + 1}
            yield name, {name: rules["minimum"] - 1}
        if "maxLength" in rules:
            yield name, {name: "x" * (rules["maxLength"] + 1)}
        if "maxItems" in rules:
            yield name, {name: [ADDRESS] * (rules["maxItems"] + 1)}


@pytest.mark.parametrize("model_id", [model.model_id for model in MODELS])
def test_a_model_takes_what_its_page_allows_and_refuses_the_rest(client: Client, model_id: str) -> None:
    schema = page(client, model_id)["input_schema"]
    good = good_inputs(schema, ADDRESS)
    assert client.post(f"/v1/models/{model_id}", good).status_code == 200
    for field, change in bad_changes(schema):
        answer = client.post(f"/v1/models/{model_id}", {**good, **change})
        assert answer.status_code == 422, change
        assert field in [problem["loc"][1] for problem in answer.json()["detail"]], change
    assert len(client.sandbox.ledger()["purchases"]) == 1


#: Images to break rules with, by width and height.
SIZES = [(700, 500), (200, 200), (900, 240), (2001, 400), (6100, 2500)]


@pytest.fixture(scope="module")
def images() -> Iterator[tuple[Client, dict[tuple[int, int], str]]]:
    """A client of a sandbox that checks images, and addresses of images by size."""
    with Sandbox(video_bytes=50_000) as sandbox:
        yield Client(sandbox), {size: put_image(sandbox, str(size[0]), image_bytes(*size)) for size in SIZES}


def breaks(size: tuple[int, int], rule: str, value: float) -> bool:
    found = {"width_pixels": size[0], "height_pixels": size[1], "width/height": size[0] / size[1]}
    what = found.get(rule[:-1], value)
    return what > value if rule.endswith("<") else what < value


@pytest.mark.parametrize("model_id", [model.model_id for model in MODELS if "minimax" not in model.model_id])
def test_each_image_is_checked_by_the_validations_of_its_field(
    images: tuple[Client, dict[tuple[int, int], str]], model_id: str
) -> None:
    client, urls = images
    schema = page(client, model_id)["input_schema"]
    good = good_inputs(schema, urls[SIZES[0]])
    for name, rules in schema["properties"].items():
        for size, url in urls.items() if "validations" in rules else ():
            broken = [
                rule["validation_error"]
                for rule in rules["validations"]
                if breaks(size, rule["validation_rule"], rule["validation_value"])
            ]
            value = [urls[SIZES[0]], url] if rules["type"] == "array" else url
            answer = client.post(f"/v1/models/{model_id}", {**good, name: value})
            assert answer.status_code == (422 if broken else 200), (name, size)
            if broken:
                [problem] = answer.json()["detail"]
                assert problem["loc"] == ["body", name]
                assert problem["msg"] == f"{broken[0]}: it is {size[0]} x {size[1]} px"


def test_limits_that_a_page_has_only_as_text_are_enforced(
    images: tuple[Client, dict[tuple[int, int], str]],
) -> None:
    client, urls = images
    model_id = "minimax/minimax-h3/image-to-video"
    schema = page(client, model_id)["input_schema"]
    assert "validations" not in schema["properties"]["image"]
    assert "256 to 5760 px" in schema["properties"]["image"]["description"]
    good = good_inputs(schema, urls[SIZES[0]])
    assert client.post(f"/v1/models/{model_id}", {**good, "last_image": urls[(200, 200)]}).status_code == 422


def test_one_address_is_judged_by_the_rules_of_each_model(
    images: tuple[Client, dict[tuple[int, int], str]],
) -> None:
    client, urls = images
    inputs = {"prompt": "a slow wave", "image_url": urls[(2001, 400)]}
    assert client.submit(img_url=urls[(2001, 400)]).status_code == 422
    assert client.post("/v1/models/lightricks/ltx-2.5/image-to-video/fast", inputs).status_code == 200


def test_the_page_of_wan_2_2_is_of_the_older_kind(client: Client) -> None:
    schema = page(client, MODEL)["input_schema"]
    image = schema["properties"]["img_url"]
    assert "format" not in image
    assert {rule["validation_rule"]: rule["validation_value"] for rule in image["validations"]} == {
        "file_size_mb<": 10,
        "width_pixels<": 2000,
        "height_pixels<": 2000,
        "width_pixels>": 360,
        "height_pixels>": 360,
    }
    assert "without alpha" in image["description"]
    keywords = {keyword for rules in schema["properties"].values() for keyword in rules}
    assert not {keyword for keyword in keywords if keyword.startswith("x-")}
    assert "additionalProperties" not in schema


def test_a_page_has_price_categories_and_required_inputs(client: Client) -> None:
    found = page(client, "wan-ai/wan-3.0/image-to-video")
    schema = found.pop("input_schema")
    note = found.pop("pricing_note")
    assert found == {
        "model_id": "wan-ai/wan-3.0/image-to-video",
        "display_name": "Wan 3.0 image to video",
        "kind": "video",
        "categories": ["image-to-video"],
        "required_inputs": ["prompt", "image_url"],
        "base_price_usd": 0.06,
        "price_unit": "second",
        "model_url": "https://www.runcomfy.com/models/wan-ai/wan-3.0/image-to-video",
    }
    assert "This is a base" in note
    assert schema["properties"]["end_image_url"]["format"] == "image_uri"


def test_a_model_of_any_input_has_no_schema(client: Client) -> None:
    assert page(client, "sandbox/free-form/any")["input_schema"] is None


def test_models_are_searched_and_paged(client: Client) -> None:
    total = client.get("/v1/models").json()["total"]
    everything = client.get("/v1/models", limit=100).json()
    assert total == everything["total"] == len(everything["models"]) > 30
    assert not [model for model in everything["models"] if "input_schema" in model]
    pages = [client.get("/v1/models", limit=20, offset=at).json()["models"] for at in range(0, total, 20)]
    assert [model for shown in pages for model in shown] == everything["models"]
    found = client.get("/v1/models", search="WAN-2-2", category="image-to-video", include_schema="true").json()
    assert [model["model_id"] for model in found["models"]] == [MODEL]
    assert found["models"][0] == page(client, MODEL)


def test_categories_are_listed_and_select_models(client: Client) -> None:
    categories = client.get("/v1/models/categories").json()["categories"]
    assert {"image-to-video", "text-to-video", "reference-to-video"} <= set(categories)
    found = client.get("/v1/models", category="text-to-video").json()["models"]
    assert "wan-ai/wan-3.0/text-to-video" in [model["model_id"] for model in found]


@pytest.mark.parametrize(
    ("model_id", "inputs", "usd"),
    [
        (MODEL, {"img_url": ADDRESS, "resolution": "1080P"}, 0.2),
        ("wan-ai/wan-3.0/image-to-video", {"image_url": ADDRESS}, 0.9975),
        ("wan-ai/wan-3.0/image-to-video", {"image_url": ADDRESS, "enable_audio": False, "duration": 10}, 1.5),
        ("kling/kling-video-o3/pro/image-to-video", {"image": ADDRESS}, 1.0),
        ("kling/kling-video-o3/pro/image-to-video", {"image": ADDRESS, "sound": True}, 1.33),
        ("lightricks/ltx-2.5/image-to-video/pro", {"image_url": ADDRESS, "duration": "6"}, 1.596),
    ],
)
def test_a_model_charges_by_its_inputs_unless_it_is_wan_2_2(
    client: Client, model_id: str, inputs: dict[str, Any], usd: float
) -> None:
    request_id = client.post(f"/v1/models/{model_id}", {"prompt": "a slow wave", **inputs}).json()["request_id"]
    client.finish(request_id)
    assert client.result(request_id, include_cost="true").json()["cost"] == pytest.approx(usd)


def test_prices_by_inputs_can_be_switched_off(client: Client) -> None:
    client.sandbox.control("price", {"by_inputs": False})
    model_id = "kling/kling-video-o3/pro/image-to-video"
    answer = client.post(f"/v1/models/{model_id}", {"prompt": "a slow wave", "image": ADDRESS, "sound": True})
    client.finish(answer.json()["request_id"])
    assert client.sandbox.ledger()["charged_usd"] == 0.2
    by_the_second = {"prompt": "a", "image_url": ADDRESS, "duration": 10}
    answer = client.post("/v1/models/wan-ai/wan-3.0/image-to-video", by_the_second)
    client.finish(answer.json()["request_id"])
    assert client.sandbox.ledger()["charged_usd"] == pytest.approx(0.2 + 10 * 0.06)
    assert "base:" not in page(client, model_id)["pricing_note"]


@pytest.mark.parametrize(
    ("model_id", "keys"),
    [
        ("wan-ai/wan-3.0/image-to-video", ["video"]),
        ("bytedance/seedance-2.5/image-to-video/480p", ["video_url"]),
        ("kling/kling-3.0/pro/image-to-video", ["videos"]),
        ("minimax/minimax-h3/image-to-video", ["generated_video"]),
        ("lightricks/ltx-2.5/image-to-video/fast", ["download_url"]),
        ("alibaba/happyhorse-1.1/image-to-video", ["video", "videos"]),
    ],
)
def test_the_output_has_the_form_of_the_model(client: Client, model_id: str, keys: list[str]) -> None:
    inputs = good_inputs(page(client, model_id)["input_schema"], ADDRESS)
    request_id = client.post(f"/v1/models/{model_id}", inputs).json()["request_id"]
    client.finish(request_id)
    assert list(client.result(request_id).json()["output"]) == keys


def test_the_ledger_and_the_faults_know_the_image_of_every_model(client: Client) -> None:
    client.sandbox.add_fault("submit", "status", status=503, img_url_contains="storm")
    model_id = "kling/kling-3.0/pro/image-to-video"
    path, inputs = f"/v1/models/{model_id}", {"prompt": "a", "start_image_url": f"{ADDRESS}?storm"}
    assert client.post(path, inputs).status_code == 503
    assert client.post(path, {**inputs, "start_image_url": ADDRESS}).status_code == 200
    [purchase] = client.sandbox.ledger()["purchases"]
    assert purchase["img_url"] == ADDRESS
