# SPDX-License-Identifier: Apache-2.0
"""Every image-to-video model of the catalogue: right inputs are bought, and wrong ones are refused before a submit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanAuthError, WanInputError, WanTransientError
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.operators.wan import WanSubmitOperator
from tests.image_samples import encoded, photo
from tests.sandboxes import Bucket
from tests.task_runs import StoreInMemory, connect, make_context, posts, purchases, run
from wan_sandbox.server import Sandbox

#: The image fields of each model, the source image first, and the other inputs that it requires.
TABLE: dict[str, tuple[list[str], dict[str, Any]]] = {
    "wan-ai/wan-2-2/image-to-video": (["img_url"], {}),
    "wan-ai/wan-2-5/image-to-video": (["img_url"], {}),
    "wan-ai/wan-2-6/image-to-video": (["img_url"], {}),
    "wan-ai/wan-2.7/image-to-video": (["image_url", "end_image_url"], {}),
    "wan-ai/wan-3.0/image-to-video": (["image_url", "end_image_url"], {}),
    "wan-ai/wan-3.0-prime/image-to-video": (["image_url", "end_image_url"], {}),
    "bytedance/seedance-2.5/image-to-video/720p": (["image"], {}),
    "bytedance/seedance-2.5/first-last-frame/720p": (["first_frame", "last_frame"], {}),
    "alibaba/happyhorse-1.1/image-to-video": (["image_url"], {}),
    "kling/kling-3.0/pro/image-to-video": (["start_image_url", "end_image_url"], {}),
    "kling/kling-video-o3/pro/image-to-video": (["image", "end_image"], {}),
    "minimax/minimax-h3/image-to-video": (["image", "last_image"], {"duration": "6", "resolution": "2k"}),
    "lightricks/ltx-2.5/image-to-video/pro": (["image_url", "end_image_url"], {"duration": 8}),
}
each_model = pytest.mark.parametrize("model_id", TABLE)
WITH_PIXEL_RULES = [name for name in TABLE if not name.startswith(("minimax", "lightricks"))]
WITH_ASPECT_RULES = [name for name in WITH_PIXEL_RULES if "wan-2-" not in name]
WAN_3 = "wan-ai/wan-3.0/image-to-video"
FREE_FORM = "sandbox/free-form/any"
A, B = "gs://videos/a.jpg", "gs://videos/b.jpg"


@pytest.fixture
def images(bucket: Bucket) -> Bucket:
    bucket.put("a.jpg", encoded(photo(640, 480), "JPEG"))
    bucket.put("b.jpg", encoded(photo(800, 600), "JPEG"))
    bucket.put("small.jpg", encoded(photo(200, 150), "JPEG"))
    bucket.put("wide.jpg", encoded(photo(3600, 380), "JPEG"))
    return bucket


def submit(**options: Any) -> WanSubmitOperator:
    return WanSubmitOperator(**{"task_id": "task", "prompt": "a slow wave", **options})


def complete(model_id: str, **options: Any) -> WanSubmitOperator:
    """A task with every image that the model takes."""
    (_, *others), inputs = TABLE[model_id]
    given = {"image": A, "images": dict.fromkeys(others, B), "model_id": model_id, "inputs": inputs}
    return submit(**{**given, **options, "inputs": {**inputs, **options.get("inputs", {})}})


def sent(sandbox: Sandbox) -> dict[str, Any]:
    [bought] = sandbox.ledger()["purchases"]
    inputs: dict[str, Any] = bought["inputs"]
    return inputs


def refusal(sandbox: Sandbox, task: WanSubmitOperator) -> str:
    with pytest.raises(WanInputError) as raised:
        run(task, make_context())
    assert posts(sandbox) == 0
    return str(raised.value)


# -- each model --------------------------------------------------------------------------------------------


@each_model
def test_right_inputs_and_all_images_are_bought(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    returned = run(complete(model_id), make_context())
    fields, inputs = TABLE[model_id]
    given = sent(sandbox)
    assert [given[name].partition("?")[0].rpartition("/")[2] for name in fields] == ["a.jpg", "b.jpg"][: len(fields)]
    assert {name: str(given[name]) for name in inputs} == {name: str(value) for name, value in inputs.items()}
    assert returned["image"] == A
    assert [returned["inputs"][name] for name in fields] == [A, B][: len(fields)]


@each_model
def test_mistyped_field_is_refused_with_the_nearest_name(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    assert "did you mean 'prompt'?" in refusal(sandbox, complete(model_id, inputs={"promt": "x"}))


@each_model
def test_wrong_type_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    assert "'duration'" in refusal(sandbox, complete(model_id, inputs={"duration": "ninety"}))


@each_model
def test_value_out_of_range_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    assert "'duration': " in refusal(sandbox, complete(model_id, inputs={"duration": 99}))


@each_model
def test_missing_required_field_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    assert "'prompt' is required" in refusal(sandbox, complete(model_id, prompt=None))


@each_model
def test_missing_image_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    task = submit(model_id=model_id, inputs=TABLE[model_id][1])
    assert f"'{TABLE[model_id][0][0]}' is required" in refusal(sandbox, task)


@pytest.mark.parametrize("model_id", WITH_PIXEL_RULES)
def test_small_image_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    message = refusal(sandbox, complete(model_id, image="gs://videos/small.jpg"))
    assert "200x150 px" in message


@pytest.mark.parametrize("model_id", [name for name in WITH_PIXEL_RULES if len(TABLE[name][0]) > 1])
def test_small_second_image_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    second = TABLE[model_id][0][1]
    message = refusal(sandbox, complete(model_id, images={second: "gs://videos/small.jpg"}))
    assert "200x150 px" in message


@pytest.mark.parametrize("model_id", WITH_ASPECT_RULES)
def test_image_of_a_wrong_aspect_ratio_is_refused(sandbox: Sandbox, images: Bucket, model_id: str) -> None:
    message = refusal(sandbox, complete(model_id, image="gs://videos/wide.jpg"))
    assert "3600x380" in message


# -- images ------------------------------------------------------------------------------------------------


def test_small_images_of_every_field_are_enlarged_in_the_staging_prefix(sandbox: Sandbox, images: Bucket) -> None:
    small = "gs://videos/small.jpg"
    task = submit(model_id=WAN_3, image=small, images={"end_image_url": small}, staging="gs://videos/staged")
    run(task, make_context())
    given = sent(sandbox)
    assert given["image_url"] == given["end_image_url"]
    assert "/staged/" in given["image_url"]


def test_other_second_image_is_another_video_and_the_same_content_is_not(
    sandbox: Sandbox, images: Bucket, bucket: Bucket
) -> None:
    bucket.put("moved.jpg", bucket.read("b.jpg"))
    store = StoreInMemory()
    for end in (B, "gs://videos/moved.jpg", A, B):
        run(submit(model_id=WAN_3, image=A, images={"end_image_url": end}), make_context(store=store))
    assert len(purchases(sandbox)) == 2


def test_images_are_templated_and_may_be_json_text(sandbox: Sandbox, images: Bucket) -> None:
    task = submit(model_id=WAN_3, image=A, images="{{ ends }}")
    task.render_template_fields({"ends": json.dumps({"end_image_url": B, "other": None})})
    run(task, make_context())
    assert sent(sandbox)["end_image_url"].endswith("/b.jpg")


def test_list_of_images_goes_to_a_field_that_takes_several(sandbox: Sandbox, images: Bucket) -> None:
    model_id = "wan-ai/wan-3.0/reference-to-video"
    run(submit(model_id=model_id, images={"image_urls": [A, B]}), make_context())
    assert [url.rpartition("/")[2] for url in sent(sandbox)["image_urls"]] == ["a.jpg", "b.jpg"]


def test_one_image_is_sent_as_a_list_where_the_field_takes_several(sandbox: Sandbox, images: Bucket) -> None:
    run(submit(model_id="wan-ai/wan-3.0/reference-to-video", image=A), make_context())
    assert [url.rpartition("/")[2] for url in sent(sandbox)["image_urls"]] == ["a.jpg"]


def test_source_image_of_wan_2_2_is_the_same_video_under_its_field_name(sandbox: Sandbox, images: Bucket) -> None:
    store = StoreInMemory()
    for given in ({"image": A}, {"images": {"img_url": A}}):
        run(submit(**given), make_context(store=store))
    assert len(purchases(sandbox)) == 1


def test_text_to_video_model_needs_no_image(sandbox: Sandbox) -> None:
    model_id = "wan-ai/wan-3.0/text-to-video"
    run(submit(model_id=model_id, inputs={"duration": "4"}), make_context())
    assert sent(sandbox) == {"prompt": "a slow wave", "duration": 4}
    with pytest.raises(WanInputError, match="names no input for an image"):
        run(submit(model_id=model_id, image=A), make_context())


def test_public_image_among_the_inputs_is_checked_by_the_rules_of_its_field(
    sandbox: Sandbox, images: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, sandbox, allow_private_images=True)
    small = f"{sandbox.bucket_url}/videos/small.jpg"
    task = submit(model_id=WAN_3, image=A, inputs={"end_image_url": small})
    assert "200x150 px" in refusal(sandbox, task)


# -- the page ----------------------------------------------------------------------------------------------


def page_is_down(sandbox: Sandbox) -> None:
    sandbox.add_fault("model", "status", status=503)


def test_page_that_is_down_lets_inputs_go_unchecked_and_the_log_says_so(
    sandbox: Sandbox, images: Bucket, capfd: pytest.CaptureFixture[str]
) -> None:
    page_is_down(sandbox)
    run(submit(model_id=WAN_3, image=A, image_field="image_url", inputs={"duration": 5}), make_context())
    log = capfd.readouterr().out
    assert f"The page of model {WAN_3} could not be read" in log
    assert "sent unchecked" in log
    assert sent(sandbox)["duration"] == 5


def test_image_without_its_field_fails_while_the_page_is_down_and_can_be_retried(
    sandbox: Sandbox, images: Bucket
) -> None:
    page_is_down(sandbox)
    with pytest.raises(WanTransientError, match="image_field="):
        run(submit(model_id=WAN_3, image=A), make_context())
    assert posts(sandbox) == 0


def test_image_without_its_field_is_refused_where_the_page_has_no_schema(sandbox: Sandbox, images: Bucket) -> None:
    assert "image_field=" in refusal(sandbox, submit(model_id=FREE_FORM, image=A))
    run(submit(model_id=FREE_FORM, image=A, image_field="picture"), make_context())
    assert sent(sandbox)["picture"].endswith("/a.jpg")


def test_required_schema_refuses_what_can_not_be_checked(sandbox: Sandbox) -> None:
    assert "require_schema" in refusal(sandbox, submit(model_id=FREE_FORM, require_schema="true"))
    page_is_down(sandbox)
    with pytest.raises(WanTransientError, match="require_schema"):
        run(submit(model_id=WAN_3, require_schema=True), make_context())
    assert posts(sandbox) == 0


def test_rules_of_the_package_apply_to_wan_2_2_while_its_page_is_down(
    sandbox: Sandbox, images: Bucket, capfd: pytest.CaptureFixture[str]
) -> None:
    page_is_down(sandbox)
    assert "'duration'" in refusal(sandbox, submit(image=A, duration=6))
    run(submit(image=A, require_schema=True), make_context())
    assert "The rules of this package apply." in capfd.readouterr().out


def test_page_that_is_down_or_changes_buys_nothing_twice(sandbox: Sandbox, images: Bucket) -> None:
    store = StoreInMemory()
    options = {"model_id": WAN_3, "image": A, "image_field": "image_url", "inputs": {"duration": "5"}}
    first = run(submit(**options), make_context(store=store))
    page_is_down(sandbox)
    WanHook.forget_models()
    assert run(submit(**options), make_context(store=store))["request_id"] == first["request_id"]
    changed = submit(**options, schema={"properties": {"other": {"type": "string"}}})
    assert run(changed, make_context(store=store))["request_id"] == first["request_id"]
    assert len(purchases(sandbox)) == 1


def test_adopting_a_request_reads_no_page(sandbox: Sandbox, images: Bucket) -> None:
    store = StoreInMemory()
    first = run(submit(image=A), make_context(store=store))
    WanHook.forget_models()
    calls = sandbox.ledger()["calls"].get("model", 0)
    run(submit(image=A), make_context(store=store))
    run(submit(image=A, request=first["request_id"]), make_context(store=store))
    run(submit(prompt=None, request=first["request_id"]), make_context())
    assert sandbox.ledger()["calls"].get("model", 0) == calls == 1


def test_pages_are_read_once_in_a_process(sandbox: Sandbox, images: Bucket) -> None:
    for number in range(3):
        run(submit(model_id=WAN_3, image=A, variation=str(number), max_cost_usd=10), make_context())
    assert sandbox.ledger()["calls"]["model"] == 1


def test_schema_of_the_user_replaces_that_of_the_page(sandbox: Sandbox, images: Bucket) -> None:
    schema = {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string"},
            "image_url": {"type": "string", "format": "image_uri"},
            "duration": {"type": "integer", "maximum": 4},
        },
    }
    options = {"model_id": WAN_3, "image": A, "schema": json.dumps(schema)}
    assert "at most 4" in refusal(sandbox, submit(**options, duration=5))
    run(submit(**options, duration="4"), make_context())
    assert sent(sandbox)["duration"] == 4
    assert sandbox.ledger()["calls"].get("model", 0) == 0


def test_wrong_token_is_an_error_of_its_own(sandbox: Sandbox, images: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", json.dumps(connection | {"password": "wrong"}))
    with pytest.raises(WanAuthError):
        run(submit(model_id=WAN_3, image=A), make_context())


def test_price_of_a_limit_uses_the_values_that_are_sent(sandbox: Sandbox, images: Bucket) -> None:
    from airflow_provider_wan.exceptions import WanBudgetError

    with pytest.raises(WanBudgetError, match="base price"):
        run(submit(model_id=WAN_3, image=A, duration="30", max_cost_usd=1), make_context())
    assert "'duration'" in refusal(sandbox, submit(model_id=WAN_3, image=A, duration="31", max_cost_usd=1))
