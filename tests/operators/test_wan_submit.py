# SPDX-License-Identifier: Apache-2.0
"""WanSubmitOperator, parameter by parameter, against the sandbox, whose ledger shows the purchases."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException
from PIL import Image

from airflow_provider_wan.batch.prices import PriceBook
from airflow_provider_wan.durable.journal import BucketJournal, TaskStateJournal
from airflow_provider_wan.exceptions import (
    WanBudgetError,
    WanCancelledError,
    WanDownloadError,
    WanError,
    WanGenerationFailedError,
    WanInputError,
    WanNoOutputError,
    WanNotFoundError,
    WanRefusedError,
    WanTimeoutError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.schema import LazyModel
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator
from tests.image_samples import encoded, noise
from tests.sandboxes import INPUTS, MODEL, Bucket
from tests.task_runs import Deferred, StoreInMemory, connect, make_context, posts, purchases, run, start
from wan_sandbox.server import Sandbox

JOURNAL = "gs://videos/_journal"


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, sandbox, timeout=30, not_found_patience=0.05)


@pytest.fixture
def store() -> StoreInMemory:
    return StoreInMemory()


def submit(**options: Any) -> WanSubmitOperator:
    return WanSubmitOperator(**{"task_id": "task", "check_image": False, "poll_interval": 0.05, **INPUTS, **options})


def long_ones(sandbox: Sandbox, *, concurrency: int = 50) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": concurrency})


def sent(sandbox: Sandbox) -> dict[str, Any]:
    """Return the inputs of the only purchase."""
    [bought] = sandbox.ledger()["purchases"]
    inputs: dict[str, Any] = bought["inputs"]
    return inputs


# -- inputs ------------------------------------------------------------------------------------------------


def test_every_input_has_a_parameter_and_is_sent_as_it_is(sandbox: Sandbox) -> None:
    given = {
        **INPUTS,
        "negative_prompt": "no text",
        "template": "squish",
        "resolution": "1080P",
        "duration": 5,
        "prompt_extend": False,
        "seed": 42,
    }
    run(submit(**given), make_context(store=StoreInMemory()))
    assert sent(sandbox) == given


def test_numbers_and_booleans_rendered_by_jinja_are_converted(sandbox: Sandbox, store: StoreInMemory) -> None:
    task = submit(
        prompt="{{ params.prompt }}",
        duration="{{ params.duration }}",
        prompt_extend="{{ params.extend }}",
        seed="{{ params.seed }}",
        negative_prompt="{{ params.nothing }}",
        variation="{{ ds }}",
    )
    params = {
        "prompt": "a <b>bold</b> \"wave\" {{ '{' }}% é漢",
        "duration": 5,
        "extend": False,
        "seed": 7,
        "nothing": None,
    }
    task.render_template_fields({"params": params, "ds": "2026-01-02"})
    result = run(task, make_context(store=store))
    assert sent(sandbox) == {
        **INPUTS,
        "prompt": params["prompt"],
        "duration": 5,
        "prompt_extend": False,
        "seed": 7,
    }
    assert result["variation"] == "2026-01-02"


@pytest.mark.parametrize("form", [dict, json.dumps, str])
def test_inputs_may_be_a_mapping_or_json_text(sandbox: Sandbox, form: Any) -> None:
    task = WanSubmitOperator(task_id="task", check_image=False, inputs=form({**INPUTS, "seed": 3}))
    run(task, make_context(store=StoreInMemory()))
    assert sent(sandbox) == {**INPUTS, "seed": 3}


def test_inputs_of_another_model_are_sent(sandbox: Sandbox, store: StoreInMemory) -> None:
    inputs = {"anything": [1, {"deep": True}], "prompt": "x"}
    task = WanSubmitOperator(task_id="task", model_id="sandbox/free-form/any", inputs=inputs)
    result = run(task, make_context(store=store))
    assert result["model_id"] == "sandbox/free-form/any"
    assert sent(sandbox) == inputs
    assert run(task, make_context(store=store))["request_id"] == result["request_id"]


REFUSED_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "x" * 801}, "800"),
    ({"img_url": None}, "img_url"),
    ({"img_url": "photos/cat.jpg"}, "img_url"),
    ({"img_url": "data:image/png;base64,AAAA"}, "data:"),
    ({"resolution": "4K"}, "480P"),
    ({"duration": 6}, "duration"),
    ({"seed": "many"}, "seed"),
    ({"inputs": {"promt": "typo"}}, "did you mean 'prompt'"),
    ({"inputs": {"prompt": "twice"}}, "prompt: given as a parameter and in inputs"),
    ({"inputs": "not JSON"}, "inputs='not JSON' is not JSON"),
    ({"inputs": [1]}, "inputs must be a mapping"),
    ({"model_id": "../../v1/requests"}, "model id"),
    ({"resolve": "[]"}, "resolve must be a mapping"),
    ({"resolve": {"x": "../../balance"}}, "not valid"),
    ({"request": "a/../b"}, "not valid"),
    ({"request": {"video": "x"}}, "neither a request id"),
    ({"journal": "s3://videos"}, "journal="),
]


@pytest.mark.parametrize(("given", "says"), REFUSED_INPUTS)
def test_invalid_inputs_are_refused_before_any_call_but_the_page(
    sandbox: Sandbox, store: StoreInMemory, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(WanInputError) as error:
        run(submit(**given), make_context(store=store))
    assert says in str(error.value)
    assert isinstance(error.value, AirflowFailException), "a retry can't help"
    assert set(sandbox.ledger()["calls"]) <= {"model"}
    assert store.values == {}


@pytest.mark.parametrize(
    "options",
    [{"on_invalid": "ignore"}, {"on_unknown_submission": "maybe"}, {"durable": False, "journal": JOURNAL}],
)
def test_invalid_options_fail_when_the_dag_is_parsed(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        submit(**options)


def test_refusal_by_the_api_names_the_fields(sandbox: Sandbox, store: StoreInMemory) -> None:
    sandbox.add_fault("submit", "invalid")
    with pytest.raises(WanInputError, match="HTTP 422") as error:
        run(submit(), make_context(store=store))
    assert isinstance(error.value, AirflowFailException)
    assert store.values == {}


# -- the image ---------------------------------------------------------------------------------------------


def an_image(bucket: Bucket, side_px: int, name: str = "a b.png") -> str:
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), "teal").save(file, "PNG")
    bucket.put(name, file.getvalue(), "image/png")
    return f"{bucket.sandbox.bucket_url}/videos/{name.replace(' ', '%20')}"


def test_unsuitable_image_is_refused_before_the_purchase(bucket: Bucket, store: StoreInMemory) -> None:
    url = f"{an_image(bucket, 100)}?sig=very-secret"
    with pytest.raises(WanInputError, match="360") as error:
        run(submit(img_url=url, check_image=True), make_context(store=store))
    assert "very-secret" not in str(error.value)
    assert posts(bucket.sandbox) == 0
    assert store.values == {}, "an image is looked at before the claim"


def test_signed_address_is_sent_and_recorded_without_its_signature(bucket: Bucket, store: StoreInMemory) -> None:
    url = f"{an_image(bucket, 400)}?sig=very-secret"
    result = run(submit(img_url=url, check_image=True), make_context(store=store))
    assert sent(bucket.sandbox)["img_url"] == url
    assert "very-secret" not in json.dumps([result, store.values])
    again = run(submit(img_url=url.replace("very", "newly"), check_image=True), make_context(store=store))
    assert again["request_id"] == result["request_id"], "with a new signature it is the same image"


def test_image_is_not_read_where_nothing_is_bought(bucket: Bucket, store: StoreInMemory) -> None:
    url = an_image(bucket, 400)
    first = run(submit(img_url=url, check_image=True), make_context(store=store))
    bucket.client.bucket("videos").blob("a b.png").delete()
    assert run(submit(img_url=url, check_image=True), make_context(store=store))["request_id"] == first["request_id"]


def test_private_address_is_refused_unless_the_connection_allows_it(
    bucket: Bucket, store: StoreInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, bucket.sandbox, allow_private_images=False)
    with pytest.raises(WanDownloadError, match="allow_private_images"):
        run(submit(img_url=an_image(bucket, 400), check_image=True), make_context(store=store))
    assert posts(bucket.sandbox) == 0


def test_unsuitable_image_can_skip_its_task(bucket: Bucket, store: StoreInMemory) -> None:
    context = make_context(store=store)
    url = f"{an_image(bucket, 100)}?sig=very-secret"
    with pytest.raises(AirflowSkipException):
        run(submit(img_url=url, check_image=True, on_invalid="skip"), context)
    [refused] = context["ti"].xcoms["refused"]
    assert refused["img_url"] == url.partition("?")[0]
    assert "360" in refused["rule"]
    assert posts(bucket.sandbox) == 0


def test_invalid_prompt_can_skip_its_task(sandbox: Sandbox, store: StoreInMemory) -> None:
    with pytest.raises(AirflowSkipException):
        run(submit(prompt="x" * 900, on_invalid="skip"), make_context(store=store))


@pytest.mark.parametrize("given", [{"resolve": "[]"}, {"request": "a/b"}, {"inputs": "nonsense"}, {"journal": "x"}])
def test_error_in_the_dag_is_not_skipped(sandbox: Sandbox, store: StoreInMemory, given: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException):
        run(submit(on_invalid="skip", **given), make_context(store=store))


# -- paying once -------------------------------------------------------------------------------------------


def test_second_try_adopts_the_request_of_the_first(sandbox: Sandbox, store: StoreInMemory) -> None:
    long_ones(sandbox)
    first = run(submit(), make_context(store=store))
    assert set(first) >= {"request_id", "model_id", "fingerprint", "submitted_at"}
    assert run(submit(), make_context(store=store)) == first
    assert purchases(sandbox) == [first["request_id"]]


def test_journal_protects_across_runs_and_without_a_store(sandbox: Sandbox, bucket: Bucket) -> None:
    long_ones(sandbox)
    first = run(submit(journal=JOURNAL), make_context(run_id="one"))
    second = run(submit(journal=JOURNAL), make_context(run_id="two", store=StoreInMemory()))
    assert second["request_id"] == first["request_id"]
    assert first["journal"] == JOURNAL
    assert second["watcher"] == "dag/two/task/-1"
    assert purchases(sandbox) == [first["request_id"]]


def test_two_mapped_tasks_with_the_same_inputs_buy_once_with_a_journal(sandbox: Sandbox, bucket: Bucket) -> None:
    long_ones(sandbox)
    results = [run(submit(journal=JOURNAL), make_context(map_index=index)) for index in range(3)]
    assert {result["request_id"] for result in results} == set(purchases(sandbox))
    assert len(purchases(sandbox)) == 1


def test_new_variation_buys_a_new_video(sandbox: Sandbox, bucket: Bucket) -> None:
    takes = ["monday", "tuesday", "monday", "", "None", None]
    ids = [run(submit(journal=JOURNAL, variation=take), make_context(run_id=str(take)))["request_id"] for take in takes]
    assert ids[0] == ids[2] != ids[1]
    assert ids[3] == ids[4] == ids[5], "what a template leaves empty is none"
    assert len(purchases(sandbox)) == 3
    assert all("variation" not in bought["inputs"] for bought in sandbox.ledger()["purchases"])


def test_durable_false_buys_each_time(sandbox: Sandbox, store: StoreInMemory) -> None:
    for _ in range(2):
        run(submit(durable=False), make_context(store=store))
    assert len(purchases(sandbox)) == 2
    assert store.values == {}


MISSING = "No record of this request is kept across tries"


def test_missing_protection_is_logged_once(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    run(submit(wait_for_completion=True), make_context())
    log = capfd.readouterr().out
    assert log.count(MISSING) == 1
    assert "journal=" in log


@pytest.mark.parametrize("given", [{"prompt": ""}, {"durable": False}, {"resolve": "[]"}])
def test_missing_protection_is_not_logged_where_nothing_is_bought(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str], given: dict[str, Any]
) -> None:
    with contextlib.suppress(WanError):
        run(submit(**given), make_context())
    assert MISSING not in capfd.readouterr().out


def test_lost_submission_fails_without_retry_and_is_settled_by_dag_run_conf(
    sandbox: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twice a connect and an answer, of 30 s each: a claim counts as open at once.
    monkeypatch.setattr("airflow_provider_wan.durable.submission.CLAIM_MARGIN_S", -120.0)
    sandbox.add_fault("submit", "reset_after", count=1)
    with pytest.raises(WanUnknownSubmissionError) as error:
        run(submit(journal=JOURNAL), make_context())
    assert isinstance(error.value, AirflowFailException)
    [bought] = purchases(sandbox)
    said = str(error.value)
    assert said.count("Look at") == 1, f"one instruction is enough: {said}"

    task = submit(journal=JOURNAL, resolve="{{ dag_run.conf.get('resolve') }}")
    conf = {"resolve": {INPUTS["img_url"]: bought}}

    class DagRun:
        pass

    DagRun.conf = conf  # type: ignore[attr-defined]
    task.render_template_fields({"dag_run": DagRun})
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client

    settled = run(task, make_context(run_id="two"))
    assert settled["request_id"] == bought
    held = BucketJournal(storage_client(), JOURNAL).read(settled["fingerprint"])
    assert held is not None
    assert held.record.request_id == bought
    assert posts(sandbox) == 1


@pytest.mark.parametrize("nothing", [None, "", "None", "{}"])
def test_resolve_rendered_empty_is_ignored(sandbox: Sandbox, store: StoreInMemory, nothing: Any) -> None:
    run(submit(resolve=nothing), make_context(store=store))
    assert len(purchases(sandbox)) == 1


def test_clear_on_success_is_warned_about_before_the_purchase(
    sandbox: Sandbox, store: StoreInMemory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", "True")
    run(submit(), make_context(store=store))
    log = capfd.readouterr().out
    assert log.index("clear_on_success") < log.index("RunComfy accepted the request")
    run(submit(durable=False), make_context(store=store))
    assert "clear_on_success" not in capfd.readouterr().out


def test_request_given_by_id_is_not_cancelled_at_the_timeout(sandbox: Sandbox, store: StoreInMemory) -> None:
    """Another task submitted it, and may wait for it."""
    long_ones(sandbox, concurrency=1)
    run(submit(prompt="keeps the only place", durable=False), make_context())
    theirs = run(submit(durable=False), make_context(task_id="another"))
    for _ in range(2):
        task = submit(wait_for_completion=True, timeout=0.2, request=theirs["request_id"])
        with pytest.raises(WanTimeoutError, match="not cancelled: without a journal"):
            run(task, make_context(store=store))
    assert sandbox.ledger()["cancels"] == []


# -- a limit in USD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_cost_usd": 0.1}, "base price"),
        ({"max_cost_usd": "0.1", "price_usd": "0.3"}, "0.3 USD (as price_usd says)"),
        (
            {"max_cost_usd": 1, "price_usd": {"resolution=1080P": 2.0, "": 0.1}, "resolution": "1080P"},
            "costs 2 USD",
        ),
    ],
)
def test_request_above_its_limit_is_not_bought(
    sandbox: Sandbox, store: StoreInMemory, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(WanBudgetError) as error:
        run(submit(**options), make_context(store=store))
    assert says in str(error.value)
    assert isinstance(error.value, AirflowFailException)
    assert posts(sandbox) == 0
    assert store.values == {}


def test_request_within_its_limit_is_bought_and_the_log_names_the_base_price(
    sandbox: Sandbox, store: StoreInMemory, capfd: pytest.CaptureFixture[str]
) -> None:
    run(submit(max_cost_usd=5), make_context(store=store))
    assert "base price of the model's page" in capfd.readouterr().out
    again = run(submit(max_cost_usd=0.001), make_context(store=store))
    assert [again["request_id"]] == purchases(sandbox), "adopting costs nothing"


def test_learned_price_is_used_instead_of_the_base_price(sandbox: Sandbox, bucket: Bucket) -> None:
    run(submit(journal=JOURNAL, max_cost_usd=1), make_context())
    book = PriceBook(None, BucketJournal(bucket.client, JOURNAL), LazyModel(MODEL), logging.getLogger())
    book.learn(book.key_of(INPUTS), 2.0)
    with pytest.raises(WanBudgetError, match="real cost of an earlier request"):
        run(submit(journal=JOURNAL, variation="2", max_cost_usd=1), make_context())
    assert len(purchases(sandbox)) == 1


def test_awaited_request_teaches_its_real_cost_to_later_submits_plans_and_batches(
    sandbox: Sandbox, bucket: Bucket
) -> None:
    sandbox.control("price", {"price_usd": 0.1, "charged_usd": 0.7})
    run(submit(journal=JOURNAL, wait_for_completion=True), make_context())
    with pytest.raises(WanBudgetError, match=r"costs 0\.7 USD \(the real cost of an earlier request\)"):
        run(submit(journal=JOURNAL, variation="2", max_cost_usd=0.5), make_context())
    assert len(purchases(sandbox)) == 1
    plan = WanPrepareImagesOperator(
        task_id="plan",
        dataset=[
            {"image": "gs://videos/photos/a.jpg"},
            {"image": "gs://videos/photos/b.jpg", "resolution": "1080P"},
        ],
        staging="gs://videos/_staged",
        inputs={"prompt": "waves"},
        journal=JOURNAL,
        dry_run=True,
    )
    for name in "ab":
        bucket.put(f"photos/{name}.jpg", encoded(noise(600, 400 + ord(name)), "JPEG"), "image/jpeg")
    planned = plan.execute(make_context())
    assert {price["inputs"]["resolution"]: (price["price_usd"], price["source"]) for price in planned["prices"]} == {
        "480P": (0.7, "learned"),
        "1080P": (0.1, "base"),
    }
    assert (planned["expected_cost_usd"], planned["price_source"]) == (pytest.approx(0.8), "base")
    assert planned["pricing_note"]


@pytest.mark.parametrize("options", [{"max_cost_usd": "much"}, {"max_cost_usd": 1, "price_usd": -1}])
def test_invalid_amount_is_refused(sandbox: Sandbox, options: dict[str, Any]) -> None:
    with pytest.raises(WanInputError, match=r"must be more than 0|is not a number"):
        run(submit(**options), make_context())
    assert posts(sandbox) == 0


# -- taking over by id -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["id", "xcom", "text"])
def test_request_is_adopted_by_its_id_or_the_return_value_of_a_task(sandbox: Sandbox, form: str) -> None:
    long_ones(sandbox)
    bought = run(submit(durable=False), make_context())
    given = {"id": bought["request_id"], "xcom": bought, "text": json.dumps(bought)}[form]
    task = WanSubmitOperator(task_id="task", request=given)
    assert run(task, make_context())["request_id"] == bought["request_id"]
    assert len(purchases(sandbox)) == 1


def test_adopted_request_with_inputs_is_recorded_for_them(sandbox: Sandbox, bucket: Bucket) -> None:
    long_ones(sandbox)
    bought = run(submit(durable=False), make_context())
    run(submit(journal=JOURNAL, request=bought["request_id"]), make_context())
    assert run(submit(journal=JOURNAL), make_context(run_id="later"))["request_id"] == bought["request_id"]
    assert len(purchases(sandbox)) == 1


def test_adopted_request_without_inputs_has_no_record(sandbox: Sandbox, bucket: Bucket) -> None:
    """All requests adopted in this way would share one record."""
    bought = [run(submit(durable=False), make_context()) for _ in range(2)]
    for one in bought:
        task = WanSubmitOperator(task_id="task", request=one["request_id"], journal=JOURNAL, wait_for_completion=True)
        assert run(task, make_context())["state"] == "succeeded"
    assert bucket.objects("_journal") == {}


@pytest.mark.parametrize("given", [{}, INPUTS])
def test_missing_request_is_not_adopted(sandbox: Sandbox, given: dict[str, Any]) -> None:
    task = WanSubmitOperator(task_id="task", request="req-typo", check_image=False, **given)
    with pytest.raises(WanNotFoundError, match="req-typo") as error:
        run(task, make_context(store=StoreInMemory()))
    assert isinstance(error.value, AirflowFailException)
    assert posts(sandbox) == 0


@pytest.mark.parametrize("nothing", ["", "None", None])
def test_request_rendered_empty_is_ignored(sandbox: Sandbox, store: StoreInMemory, nothing: Any) -> None:
    run(submit(request=nothing), make_context(store=store))
    assert len(purchases(sandbox)) == 1


# -- waiting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deferrable", [True, False])
def test_task_waits_and_returns_the_result(sandbox: Sandbox, store: StoreInMemory, deferrable: bool) -> None:
    sandbox.control("speed", {"generation_seconds": 0.2})
    result = run(submit(wait_for_completion=True, deferrable=deferrable), make_context(store=store))
    assert result["state"] == "succeeded"
    assert [url.startswith("http") for url in result["videos"]] == [True]
    assert result["cost_usd"] == 0.2
    assert {"created_at", "finished_at", "fingerprint", "model_id"} <= set(result)
    again = run(submit(wait_for_completion=True, deferrable=deferrable), make_context(store=store))
    assert again["request_id"] == result["request_id"]
    assert len(purchases(sandbox)) == 1


def test_finished_request_is_adopted_without_the_triggerer(sandbox: Sandbox, store: StoreInMemory) -> None:
    long_ones(sandbox)
    waiting = start(submit(wait_for_completion=True), make_context(store=store))
    assert isinstance(waiting, Deferred)
    sandbox.control(f"requests/{waiting.trigger.request_id}", {"state": "succeeded"})
    result = start(submit(wait_for_completion=True), make_context(store=store))
    assert result["request_id"] == waiting.trigger.request_id
    assert result["state"] == "succeeded"
    assert len(purchases(sandbox)) == 1


def test_deadline_is_absolute_and_in_the_trigger_arguments(sandbox: Sandbox, store: StoreInMemory) -> None:
    long_ones(sandbox)
    before = time.time()
    waiting = start(submit(wait_for_completion=True, timeout=timedelta(minutes=5)), make_context(store=store))
    assert isinstance(waiting, Deferred)
    assert before + 300 <= waiting.trigger.deadline <= time.time() + 300


@pytest.mark.parametrize("deferrable", [True, False])
def test_queued_request_is_cancelled_at_the_deadline(sandbox: Sandbox, store: StoreInMemory, deferrable: bool) -> None:
    long_ones(sandbox, concurrency=1)
    run(submit(prompt="keeps the only place", durable=False), make_context())
    task = submit(wait_for_completion=True, deferrable=deferrable, timeout=0.3)
    with pytest.raises(WanTimeoutError, match="cancelled and not charged") as error:
        run(task, make_context(store=store))
    assert error.value.request_id in str(error.value)
    assert isinstance(error.value, AirflowException)
    assert not isinstance(error.value, AirflowFailException), "another try may"
    assert [cancel["outcome"] for cancel in sandbox.ledger()["cancels"]] == ["cancelled"]


def test_running_request_at_the_deadline_is_left_to_the_next_try(sandbox: Sandbox, store: StoreInMemory) -> None:
    long_ones(sandbox)
    with pytest.raises(WanTimeoutError, match="charged") as error:
        run(submit(wait_for_completion=True, timeout=0.2), make_context(store=store))
    again = start(submit(wait_for_completion=True), make_context(store=store))
    assert again.trigger.request_id == error.value.request_id
    assert len(purchases(sandbox)) == 1


def test_request_with_other_owners_is_not_cancelled_at_the_deadline(sandbox: Sandbox, bucket: Bucket) -> None:
    long_ones(sandbox, concurrency=1)
    run(submit(prompt="keeps the only place", durable=False), make_context())
    run(submit(journal=JOURNAL), make_context(run_id="another"))
    with pytest.raises(WanTimeoutError, match="depend on it"):
        run(submit(journal=JOURNAL, wait_for_completion=True, timeout=0.2), make_context(run_id="mine"))
    assert sandbox.ledger()["cancels"] == []


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize(("fault", "kind"), [("fail", WanGenerationFailedError), ("cancelled", WanCancelledError)])
def test_retry_after_a_failed_generation_buys_another(
    sandbox: Sandbox, store: StoreInMemory, deferrable: bool, fault: str, kind: type[Exception]
) -> None:
    sandbox.add_fault("generation", fault, count=1)
    with pytest.raises(kind) as error:
        run(submit(wait_for_completion=True, deferrable=deferrable), make_context(store=store))
    assert not isinstance(error.value, AirflowFailException)
    result = run(submit(wait_for_completion=True, deferrable=deferrable), make_context(store=store))
    assert result["state"] == "succeeded"
    assert len(purchases(sandbox)) == 2


@pytest.mark.parametrize("deferrable", [True, False])
def test_success_without_output_fails_without_retry_and_is_not_bought_again(
    sandbox: Sandbox, store: StoreInMemory, deferrable: bool
) -> None:
    sandbox.add_fault("result", "no_output")
    for _ in range(2):
        with pytest.raises(WanNoOutputError, match="counts as paid") as error:
            run(submit(wait_for_completion=True, deferrable=deferrable), make_context(store=store))
        assert isinstance(error.value, AirflowFailException)
    assert len(purchases(sandbox)) == 1


RAW_AND_ENCODED = [
    ("https://x.example/Küche 1.jpg", "https://x.example/K%C3%BCche%201.jpg"),
    (
        "https://x.example/a.jpg?name=漢 字&ok=%C3%BC",
        "https://x.example/a.jpg?name=%E6%BC%A2%20%E5%AD%97&ok=%C3%BC",
    ),
    (" https://x.example/a.jpg ", "https://x.example/a.jpg"),
]


@pytest.mark.parametrize(("raw", "encoded"), RAW_AND_ENCODED)
@pytest.mark.parametrize("name", ["img_url", "image"])
def test_two_spellings_of_one_address_buy_once_and_are_sent_encoded(
    sandbox: Sandbox, bucket: Bucket, raw: str, encoded: str, name: str
) -> None:
    prompt = {"prompt": INPUTS["prompt"], "img_url": None}
    ids = {
        run(submit(**{**prompt, name: url}, journal=JOURNAL), make_context(run_id=url))["request_id"]
        for url in (raw, encoded)
    }
    assert len(ids) == len(purchases(sandbox)) == 1
    assert sent(sandbox)["img_url"] == encoded


@pytest.mark.parametrize("name", ["img_url", "image"])
@pytest.mark.parametrize(
    ("odd", "called"), [("\u200b", "ZERO WIDTH SPACE (U+200B)"), ("\n", "U+000A"), ("\xa0", "NO-BREAK SPACE")]
)
def test_invisible_character_in_an_address_is_named(
    sandbox: Sandbox, store: StoreInMemory, name: str, odd: str, called: str
) -> None:
    url = f"https://x.example/a{odd}b.jpg"
    with pytest.raises(WanInputError) as error:
        run(submit(**{"img_url": None, name: url}), make_context(store=store))
    assert called in str(error.value)
    assert posts(sandbox) == 0


def test_missing_request_is_decided_by_the_next_try(sandbox: Sandbox, store: StoreInMemory) -> None:
    long_ones(sandbox)
    waiting = start(submit(wait_for_completion=True), make_context(store=store))
    event = {
        "request_id": waiting.trigger.request_id,
        "outcome": "gone",
        "message": "gone",
        "fingerprint": None,
    }
    with pytest.raises(WanTransientError):
        waiting.task.execute_complete(waiting.context, event)


def test_unread_result_that_is_gone_counts_as_paid(sandbox: Sandbox, store: StoreInMemory) -> None:
    """Its trigger saw a final status, but no result; then it is gone. The next try must not buy it again."""
    waiting = start(submit(wait_for_completion=True), make_context(store=store))
    request_id = waiting.trigger.request_id
    sandbox.add_fault("result", "not_found")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
        with pytest.raises(WanNotFoundError, match="variation") as error:
            waiting.resume()
    assert isinstance(error.value, AirflowFailException)
    sandbox.clear_faults()
    sandbox.control(f"requests/{request_id}", {"state": "vanished"})
    with pytest.raises(WanRefusedError):
        run(submit(), make_context(store=store))
    assert purchases(sandbox) == [request_id]


def test_success_with_an_expired_result_is_not_bought_again(sandbox: Sandbox, store: StoreInMemory) -> None:
    waiting = start(submit(wait_for_completion=True), make_context(store=store))
    sandbox.control(f"requests/{waiting.trigger.request_id}", {"state": "vanished"})
    event = {
        "request_id": waiting.trigger.request_id,
        "outcome": "succeeded",
        "fingerprint": waiting.trigger.fingerprint,
    }
    with pytest.raises(WanNotFoundError, match="counts as paid"):
        waiting.task.execute_complete(waiting.context, event)
    with pytest.raises(WanRefusedError):
        run(submit(), make_context(store=store))
    assert len(purchases(sandbox)) == 1


def test_stopped_worker_leaves_its_request_to_the_next_try(sandbox: Sandbox, store: StoreInMemory) -> None:
    long_ones(sandbox)
    task = submit(wait_for_completion=True, deferrable=False, poll_interval=5)
    import threading

    def stop() -> None:
        while not sandbox.ledger()["calls"].get("status"):
            time.sleep(0.02)
        task.on_kill()

    threading.Thread(target=stop).start()
    with pytest.raises(AirflowException, match="later try takes it over"):
        run(task, make_context(store=store))
    assert sandbox.ledger()["cancels"] == []
    assert run(submit(), make_context(store=store))["request_id"] == purchases(sandbox)[0]


def test_bucket_outage_after_the_wait_does_not_fail_the_task(sandbox: Sandbox, bucket: Bucket) -> None:
    waiting = start(submit(journal=JOURNAL, wait_for_completion=True), make_context())
    sandbox.add_fault("bucket.upload", "forbidden")
    assert waiting.resume()["state"] == "succeeded"


# -- as a part of Airflow ----------------------------------------------------------------------------------


def test_airflow_can_copy_the_task_at_any_time(sandbox: Sandbox) -> None:
    copied = copy.deepcopy(submit(wait_for_completion=True))
    assert copied.prompt == INPUTS["prompt"]
    copied.on_kill()


def test_every_templated_field_is_an_attribute() -> None:
    task = submit()
    for name in (*WanSubmitOperator.template_fields, *WanSubmitOperator.template_fields_renderers):
        assert hasattr(task, name), name


def test_record_has_request_inputs_variation_and_owner(sandbox: Sandbox, store: StoreInMemory) -> None:
    result = run(submit(seed=5, variation="v"), make_context(store=store))
    record = json.loads(store.values[TaskStateJournal.KEY])
    assert record["request_id"] == result["request_id"]
    assert record["inputs"] == {**INPUTS, "seed": 5}
    assert record["variation"] == "v"
    assert record["watchers"] == ["dag/manual__1/task/-1"]
    assert record["model_id"] == MODEL
