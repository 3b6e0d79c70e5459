# SPDX-License-Identifier: Apache-2.0
"""The serialized and public shapes of this provider, as ``pinned.json`` holds them.

Journals, waiting triggers, XComs, DAG files and dashboards of users depend on these shapes. A change of this file or
of ``pinned.json`` is a breaking change, unless it only adds something. There is no tool that regenerates
``pinned.json``: edit it by hand, and say so in the changelog.

What must be equal: fingerprints, the text of records, and what triggers serialize. Everywhere else a pinned key must
exist with the pinned value, and new keys may come. A value such as ``<string>`` or ``<number or null>`` pins the JSON
type only.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan import metrics
from airflow_provider_wan.batch.plan import open_rows, plan_rows
from airflow_provider_wan.durable.journal import BucketJournal, TaskStateJournal
from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.get_provider_info import get_provider_info
from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.images.preparation import Preparation
from airflow_provider_wan.images.rows import DatasetRow, PreparedImage, RowImage
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.model_api.fingerprints import fingerprint
from airflow_provider_wan.model_api.schema import LazyModel
from airflow_provider_wan.operators.wan import WanCancelOperator, WanSubmitOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from airflow_provider_wan.triggers.wan import WanBatchTrigger, WanRequestTrigger
from airflow_provider_wan.utils.images import open_images
from tests import batch_runs
from tests.image_samples import encoded, exif_with, photo
from tests.sandboxes import INPUTS, Bucket
from tests.task_runs import StoreInMemory, connect, first_event, make_context, run, start
from wan_sandbox.server import Sandbox

PINNED: dict[str, Any] = json.loads((Path(__file__).parent / "pinned.json").read_text(encoding="utf-8"))
JOURNAL = "gs://videos/_journal"
LOG = logging.getLogger(__name__)
_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
_TYPES |= {list: "list", dict: "object"}


def each(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", sorted(PINNED[section]))


def differences(pinned: Any, now: Any, where: str = "") -> list[str]:
    """Return where a pinned JSON value has changed or is missing; additions do not count."""
    if isinstance(pinned, str) and pinned.startswith("<") and pinned.endswith(">"):
        is_same = _TYPES[type(now)] in pinned[1:-1].split(" or ")
    elif isinstance(pinned, dict) and isinstance(now, dict):
        gone = [f"{where}/{key} is gone" for key in pinned if key not in now]
        both = [differences(pinned[key], now[key], f"{where}/{key}") for key in pinned if key in now]
        return gone + [one for some in both for one in some]
    elif isinstance(pinned, list) and isinstance(now, list) and len(pinned) == len(now):
        pairs = enumerate(zip(pinned, now, strict=True))
        return [one for at, (a, b) in pairs for one in differences(a, b, f"{where}/{at}")]
    else:
        is_same = type(pinned) is type(now) and pinned == now
    return [] if is_same else [f"{where}: {now!r} instead of {pinned!r}"]


def plain(value: Any) -> Any:
    """Return a value after a JSON round trip."""
    return json.loads(json.dumps(value))


# -- fingerprints ------------------------------------------------------------------------------------------


def row_of(case: Mapping[str, Any], *, is_prepared: bool) -> DatasetRow:
    field = image_field(case)
    inputs = {name: value for name, value in case["inputs"].items() if name != field}
    image, identity, variation = case["inputs"][field], case["identity"], case["variation"]
    prepared = PreparedImage(image, image, 640, 480, 1, "0" * 64, identity=identity)
    return DatasetRow((RowImage(image, prepared=prepared if is_prepared else None),), inputs, variation)


def image_field(case: Mapping[str, Any]) -> str:
    return str((case["image_fields"] or ["img_url"])[0])


def sources_of(case: Mapping[str, Any]) -> ImageSources:
    model = LazyModel(case["model_id"], chosen_field=image_field(case))
    return ImageSources(model, storage_client, LOG)


def directly(case: Mapping[str, Any]) -> str:
    more = {"image_fields": case["image_fields"]}
    return fingerprint(case["model_id"], case["inputs"], case["identity"], case["variation"], **more)


def in_submit(case: Mapping[str, Any]) -> str:
    """Build the spec as ``WanSubmitOperator`` does from inputs alone."""
    sources = ImageSources(LazyModel(case["model_id"]), storage_client, LOG)
    source = open_images(sources, None, {}, inputs=case["inputs"], variation=case["variation"])
    return source.spec().fingerprint


def in_submit_of_an_image(case: Mapping[str, Any]) -> str:
    """Build the spec as ``WanSubmitOperator`` does with ``image=``."""
    return sources_of(case).open(row_of(case, is_prepared=True)).spec().fingerprint


def in_batch(case: Mapping[str, Any]) -> str:
    row = row_of(case, is_prepared=case["identity"] is not None)
    sources = sources_of(case)
    (one,) = plan_rows(open_rows([row], sources), model=sources.model, object_name="").items
    return one


def in_preparation(case: Mapping[str, Any]) -> str:
    """Build the spec as the plan of ``WanPrepareImagesOperator`` does, to find existing purchases."""
    preparation = Preparation(sources_of(case), workers=1)
    (looked,) = preparation.plan([row_of(case, is_prepared=True)])
    return str(getattr(looked, "fingerprint", looked))


BUILDERS = {
    "batch": in_batch,
    "fingerprint": directly,
    "preparation": in_preparation,
    "submit": in_submit,
    "submit_image": in_submit_of_an_image,
}


@each("fingerprints")
def test_fingerprints(case: str) -> None:
    pinned = PINNED["fingerprints"][case]
    assert {name: BUILDERS[name](pinned) for name in pinned["expected"]} == pinned["expected"]


# -- records, journals -------------------------------------------------------------------------------------


def record_of(case: str) -> Record:
    """Build a record from its fields, as the provider does."""
    return Record.from_dict(PINNED["records"][case]["fields"])


def one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@each("records")
def test_records(case: str) -> None:
    pinned = PINNED["records"][case]["text"]
    written = record_of(case).to_json()
    keys = json.loads(pinned).keys()
    assert one_line({key: value for key, value in json.loads(written).items() if key in keys}) == pinned
    assert written == one_line(json.loads(written))
    assert Record.from_json(pinned) == Record.from_json(pinned.encode()) == record_of(case)
    assert Record.from_json(one_line({**json.loads(pinned), "of_a_later_version": 1})) == record_of(case)


@each("records")
def test_the_journal(bucket: Bucket, case: str) -> None:
    journal, record = BucketJournal(bucket.client, JOURNAL), record_of(case)
    journal.write(record, replaces=None)
    about = bucket.objects("_journal/")[f"_journal/{record.fingerprint}.json"]
    (listed,) = journal.listing()
    now = {"metadata": about["metadata"], "listed": plain(asdict(listed))}
    assert not differences(PINNED["records"][case]["journal"], now)


def test_the_task_state_store() -> None:
    store, record = StoreInMemory(), record_of("succeeded")
    TaskStateJournal(store).write(record, replaces=None)
    text = PINNED["records"]["succeeded"]["text"]
    assert not differences(json.loads(text), store.get("airflow_provider_wan.request"))


# -- XComs, landed objects, events -------------------------------------------------------------------------


def submit_operator(**options: Any) -> Any:
    given = {"check_image": False, "poll_interval": 0.05, **INPUTS, **options}
    return WanSubmitOperator(task_id="submit", **given)


def submit_request(**options: Any) -> dict[str, Any]:
    return dict(
        run(
            submit_operator(wait_for_completion=False, **options),
            make_context(task_id="submit", store=StoreInMemory()),
        )
    )


def xcoms_of(task: Any, **context: Any) -> dict[str, Any]:
    """Run a task and return all its XComs."""
    given = make_context(task_id=task.task_id, store=StoreInMemory(), **context)
    try:
        result = {"return_value": run(task, given)}
    except Exception as error:
        result = {"raised": type(error).__name__}
    return plain({**result, **given["ti"].xcoms})


def lines(bucket: Bucket, uri: str) -> list[Any]:
    return [json.loads(line) for line in bucket.read(uri.removeprefix("gs://videos/")).splitlines()]


def landed(sandbox: Sandbox, bucket: Bucket) -> dict[str, Any]:
    sandbox.add_fault("generation", "output_shape", shape="videos", n=2)
    request = submit_request(journal=JOURNAL, variation="b")
    xcoms = xcoms_of(WanToGCSOperator(task_id="land", request=request, bucket_name="videos", object_name="a.mp4"))
    objects = {name: about["metadata"] for name, about in bucket.objects("a").items()}
    return {**xcoms, "metadata": objects, "record": json.loads(bucket.read("a.mp4.json"))}


def cancelled(sandbox: Sandbox, *, place: int) -> dict[str, Any]:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    requests = [submit_request(), submit_request()]
    return xcoms_of(WanCancelOperator(task_id="cancel", request=requests[place]))


def prepared(bucket: Bucket, **options: Any) -> dict[str, Any]:
    turned = encoded(photo(640, 480), "JPEG", quality=90, exif=exif_with(orientation=6, gps=True))
    bucket.put("in/a.jpg", turned)
    bucket.put("in/b.jpg", b"no image")
    given = {"inputs": {"prompt": "waves"}, "on_invalid": "skip", "tolerated_share": 0.5, **options}
    task = WanPrepareImagesOperator(task_id="prepare", dataset="gs://videos/in/", staging="gs://videos/s", **given)
    xcoms = xcoms_of(task)
    if "summary" in xcoms:
        xcoms["chunk"] = lines(bucket, xcoms["return_value"][0])
        xcoms["lines_of_the_report"] = lines(bucket, xcoms["summary"]["report"])
    return xcoms


def batch(bucket: Bucket, **options: Any) -> dict[str, Any]:
    ti = batch_runs.TaskInstance()
    played = batch_runs.run_try(ti, images=batch_runs.IMAGES[:2], deferrable=False, **options)
    raised = {} if played.error is None else {"raised": type(played.error).__name__}
    xcoms = {**plain({**raised, "return_value": played.summary}), **ti.xcoms}
    where = xcoms.get("summary", {}).get("manifest")
    return {**xcoms, "manifest": lines(bucket, where)} if where else xcoms


def event(trigger: type[Any] = WanRequestTrigger, *, seconds: float = 60, **options: Any) -> dict[str, Any]:
    given = {"wan_conn_id": "wan_default", "deadline": time.time() + seconds, **options}
    return asyncio.run(first_event(trigger(**given)))


def failing(sandbox: Sandbox, what: Callable[[], dict[str, Any]], call: str = "generation", fault: str = "fail") -> Any:
    sandbox.add_fault(call, fault)
    return what()


def late(sandbox: Sandbox) -> dict[str, Any]:
    sandbox.control("speed", {"generation_seconds": 3600})
    return event(request_id=submit_request()["request_id"], seconds=0.5, poll_interval=0.05, fingerprint="f")


def deferred(sandbox: Sandbox) -> dict[str, Any]:
    sandbox.control("speed", {"generation_seconds": 3600})
    waits = start(submit_operator(wait_for_completion=True, journal=JOURNAL), make_context(task_id="submit"))
    path, kwargs = waits.trigger.serialize()
    return {"method_name": waits.method_name, "path": path, "kwargs": plain(kwargs)}


#: Values that are produced with the sandbox, by name.
MADE: dict[str, Callable[[Sandbox, Bucket], Any]] = {
    "submit": lambda _s, _b: xcoms_of(submit_operator()),
    "submit with a journal": lambda _s, _b: xcoms_of(submit_operator(journal=JOURNAL, variation="b", seed="7")),
    "submit that waits": lambda _s, _b: xcoms_of(submit_operator(wait_for_completion=True)),
    "submit that defers": lambda s, _b: deferred(s),
    "submit that fails": lambda s, _b: failing(s, lambda: xcoms_of(submit_operator(wait_for_completion=True))),
    "submit that is skipped": lambda _s, _b: xcoms_of(submit_operator(duration=7, on_invalid="skip")),
    "sensor": lambda _s, _b: xcoms_of(WanRequestSensor(task_id="wait", request=submit_request())),
    "sensor of an id": lambda _s, _b: xcoms_of(
        WanRequestSensor(task_id="wait", request=submit_request()["request_id"])
    ),
    "landing of two videos": landed,
    "cancel of a queued request": lambda s, _b: cancelled(s, place=1),
    "cancel of a running request": lambda s, _b: cancelled(s, place=0),
    "cancel of nothing": lambda _s, _b: xcoms_of(WanCancelOperator(task_id="cancel", request=None)),
    "prepare": lambda _s, b: prepared(b),
    "prepare as a plan": lambda _s, b: prepared(b, dry_run=True),
    "batch": lambda _s, b: batch(b),
    "batch as a plan": lambda _s, b: batch(b, dry_run=True),
    "batch that fails": lambda s, b: failing(s, lambda: batch(b)),
    "contact sheet": lambda _s, _b: xcoms_of(WanContactSheetOperator(task_id="sheet", bucket_name="videos")),
    "event of success": lambda _s, _b: event(request_id=submit_request()["request_id"], fingerprint="f"),
    "event of failure": lambda s, _b: failing(s, lambda: event(request_id=submit_request()["request_id"])),
    "event of a timeout": lambda s, _b: late(s),
    "event of a wrong id": lambda s, _b: failing(
        s, lambda: event(request_id="0" * 8, is_known=False), "status", "malformed_id"
    ),
    "event of a lost result": lambda s, _b: failing(
        s, lambda: event(request_id=submit_request()["request_id"]), "result", "not_found"
    ),
    "event of a batch": lambda _s, _b: event(WanBatchTrigger, request_ids=[submit_request()["request_id"]]),
    "event of a late batch": lambda _s, _b: event(WanBatchTrigger, request_ids=["a"], seconds=-1),
    "event of a batch that is due": lambda _s, _b: event(WanBatchTrigger, request_ids=["a"], not_later_than=1),
}


@each("made")
def test_outputs_of_tasks_and_triggers(
    sandbox: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    connect(monkeypatch, sandbox, timeout=2, not_found_patience=0.05)
    assert not differences(PINNED["made"][case], MADE[case](sandbox, bucket))


@each("triggers")
def test_triggers_serialize_unchanged(case: str) -> None:
    kwargs = PINNED["triggers"][case]
    assert plain(import_path(case.replace(".Wan", ":Wan"))(**kwargs).serialize()) == [case, kwargs]


# -- names -------------------------------------------------------------------------------------------------


def import_path(path: str) -> Any:
    """Import the object at ``module:name.name``."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    return found


def parameters(what: Any) -> dict[str, str]:
    what = getattr(what, "__func__", what)
    signature = inspect.signature(what.__init__ if inspect.isclass(what) else what)
    known = [one for one in signature.parameters.values() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    return {
        one.name: "required" if one.default is one.empty else repr(one.default)
        for one in known
        if one.name not in ("self", "cls")
    }


@each("parameters")
def test_parameters(case: str) -> None:
    pinned, what = PINNED["parameters"][case], import_path(f"airflow_provider_wan.{case}")
    if pinned == "property":
        assert not callable(what)
    else:
        assert not differences(pinned, parameters(what))


def test_the_provider_info() -> None:
    info = plain(get_provider_info())
    assert not differences(PINNED["provider_info"]["connection"], info["connection-types"][0])
    assert not differences(PINNED["provider_info"]["config"], info["config"])
    assert not differences(PINNED["provider_info"]["task-decorators"], info["task-decorators"])
    assert set(PINNED["provider_info"]["extra-links"]) <= set(info["extra-links"])


def test_metrics() -> None:
    assert not differences(PINNED["metrics"], {name: getattr(metrics, name) for name in PINNED["metrics"]})


def test_faults_of_the_sandbox(sandbox: Sandbox) -> None:
    known: dict[str, set[str]] = {}
    for kind in sandbox.control("fault-kinds")["kinds"]:
        known.setdefault(kind["fault"], set()).update(kind["params"])
    lost = {name: params for name, params in PINNED["faults"].items() if not set(params) <= known.get(name, set())}
    assert not lost
    assert PINNED["faults"].keys() <= known.keys()
