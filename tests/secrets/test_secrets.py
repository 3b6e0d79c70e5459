# SPDX-License-Identifier: Apache-2.0
"""Run everything with a known token and known signatures, then search for them wherever they must not be."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.operators.wan import WanCancelOperator, WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from tests.dag_runs import DagFolder
from tests.sandboxes import INPUTS, MODEL, Bucket
from tests.task_runs import Deferred, StoreInMemory, make_context, run, start
from wan_sandbox.server import Sandbox

TOKEN = "rc-secret-token-0a1b2c3d4e5f6789"
SIGNATURE = "signature-9f8e7d6c5b4a39281706"
SIGNED = f"https://images.example.com/a.jpg?X-Goog-Signature={SIGNATURE}&X-Goog-Expires=600&size=big"
JOURNAL = "gs://videos/_journal"
SECRETS = (TOKEN, SIGNATURE)


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.control("tokens", {"add": TOKEN, "revoke": sandbox.token})
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
    connect(monkeypatch, sandbox, timeout_s=20)


def connect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, *, timeout_s: float) -> None:
    connection = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    connection["password"] = TOKEN
    connection["extra"] |= {"timeout": timeout_s, "not_found_patience": 0.05}
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", json.dumps(connection))


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Search everything that a test logs and prints, except the debug messages of libraries."""
    with caplog.at_level(logging.DEBUG):
        yield
        records = [record for phase in ("setup", "call") for record in caplog.get_records(phase)]
        ours = [r for r in records if r.levelno > logging.DEBUG or r.name.startswith("airflow_provider_wan")]
        assert leaks("\n".join([*(r.getMessage() for r in ours), *capfd.readouterr()])) == []


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def exception_text(error: BaseException) -> str:
    """Return everything that a log, a debugger or an error collector could show of an exception."""
    shown = ["".join(traceback.format_exception(error)), repr(error), str(error)]
    seen: set[int] = set()
    left: list[Any] = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            shown += [repr(one), str(one), repr(one.args), repr(vars(one))]
            left += [one.__cause__, None if one.__suppress_context__ else one.__context__, *one.args]
    return "\n".join(shown)


def submit(**options: Any) -> WanSubmitOperator:
    given = {**INPUTS, "img_url": SIGNED, "check_image": False, "poll_interval": 0.05}
    return WanSubmitOperator(**{"task_id": "submit", **given, **options})


def test_no_token_or_signature_outlives_a_successful_run(sandbox: Sandbox, bucket: Bucket) -> None:
    context = make_context(task_id="submit")
    waiting = start(submit(journal=JOURNAL, wait_for_completion=True), context)
    assert isinstance(waiting, Deferred)
    trigger = json.dumps(waiting.trigger.serialize())
    result = waiting.resume()
    sensed = run(WanRequestSensor(task_id="wait", request=result, poke_interval=0.05), make_context(task_id="wait"))
    landed = run(
        WanToGCSOperator(task_id="land", request=sensed, bucket_name="videos", object_name="out/"),
        make_context(task_id="land"),
    )
    cancelled = run(WanCancelOperator(task_id="cancel", request=result), make_context(task_id="cancel"))

    outlives = {
        "trigger": trigger,
        "events": json.dumps(waiting.events),
        "xcoms": json.dumps([result, sensed, landed, cancelled, context["ti"].xcoms]),
        **{name: bucket.read(name).decode("latin-1") for name in bucket.objects()},
        "metadata": json.dumps(bucket.objects()),
    }
    assert len(outlives) >= 7, "the video, its record and the journal's record are among them"
    assert {name: leaks(text) for name, text in outlives.items() if leaks(text)} == {}
    assert [bought["img_url"] for bought in sandbox.ledger()["purchases"]] == [SIGNED], (
        "the API received the complete token"
    )
    assert sandbox.ledger()["token_leaked"] == []


def test_no_signed_video_link_outlives_the_sensor(sandbox: Sandbox, bucket: Bucket) -> None:
    waiting = start(submit(journal=JOURNAL, wait_for_completion=True), make_context(task_id="submit"))
    result = waiting.resume()
    [link] = result["videos"]
    run(
        WanToGCSOperator(task_id="land", request=result, bucket_name="videos", object_name="out/"),
        make_context(task_id="land"),
    )
    records = {name: bucket.read(name).decode() for name in bucket.objects() if name.endswith(".json")}
    assert len(records) == 4, "next to the video, in the journal, the task's reference and the learned price"
    for text in (*records.values(), json.dumps(waiting.events), json.dumps(waiting.trigger.serialize())):
        assert link not in text
        assert "/media" not in text


FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("submit", "unauthorized", {}),
    ("submit", "status", {"status": 422, "error_message": f"bad image {SIGNED} for Bearer {TOKEN}"}),
    ("submit", "status", {"status": 500, "body": "html"}),
    ("submit", "reset_after", {}),
    ("submit", "hang", {}),
    ("submit", "redirect", {}),
    ("submit", "invalid", {}),
    ("status", "unauthorized", {}),
    ("status", "status", {"status": 403, "error_code": 403001, "error_message": f"token {TOKEN}"}),
    ("status", "status", {"status": 404, "error_code": 404001}),
    ("status", "cut_json", {}),
    ("status", "hang", {}),
    ("result", "status", {"status": 500, "error_message": f"while reading {SIGNED}"}),
    ("generation", "fail", {"error": f"could not fetch {SIGNED} with Authorization: Bearer {TOKEN}"}),
    ("generation", "fail", {"error_shape": "object", "error": f"could not fetch {SIGNED}"}),
    ("generation", "stuck_queue", {}),
]


@pytest.mark.parametrize(("call", "fault", "params"), FAULTS)
def test_no_token_or_signature_in_the_errors_and_logs_of_a_failure(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, call: str, fault: str, params: dict[str, Any]
) -> None:
    if fault == "hang":
        connect(monkeypatch, sandbox, timeout_s=1)
    sandbox.add_fault(call, fault, **params)
    for deferrable in (True, False):
        store = StoreInMemory()
        context = make_context(task_id="submit", store=store)
        with pytest.raises(WanError) as error:
            run(submit(wait_for_completion=True, deferrable=deferrable, timeout=0.4), context)
        assert leaks(exception_text(error.value)) == []
        assert leaks(json.dumps([store.values, context["ti"].xcoms])) == []


def test_error_of_a_bad_image_omits_its_signature(bucket: Bucket) -> None:
    bucket.put("a.jpg", b"not an image", "image/jpeg")
    for url in (
        f"{bucket.sandbox.bucket_url}/videos/a.jpg?sig={SIGNATURE}",
        f"http://127.0.0.1:9/a.jpg?sig={SIGNATURE}",
    ):
        with pytest.raises(WanError) as error:
            run(submit(img_url=url, check_image=True), make_context(store=StoreInMemory()))
        assert leaks(exception_text(error.value)) == []


@pytest.mark.parametrize("bad", [f"http://u:{SIGNATURE}@/a.jpg", f"data:{SIGNATURE}", f"https:///a?sig={SIGNATURE}"])
def test_error_of_a_refused_url_omits_its_signature(sandbox: Sandbox, bad: str) -> None:
    with pytest.raises(WanError) as error:
        run(submit(img_url=bad, prompt=""), make_context(store=StoreInMemory()))
    assert leaks(exception_text(error.value)) == []


def test_no_object_shows_the_token(sandbox: Sandbox) -> None:
    hook = WanHook()
    hook.submit(MODEL, INPUTS)
    session = hook.get_conn()
    shown = [repr(hook), repr(vars(hook)), repr(hook.settings), repr(session.headers), repr(vars(session))]
    assert leaks("\n".join(shown)) == []


def test_no_token_or_signature_in_airflows_database_and_logs(
    sandbox: Sandbox, dags: DagFolder, bucket: Bucket, airflow_db: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = dags.write(
        """
        submit = WanSubmitOperator(
            task_id="submit", prompt="p", img_url="{{ dag_run.conf['img_url'] }}", check_image=False, retries=0,
        )
        wait = WanRequestSensor(task_id="wait", request=submit.output, poke_interval=0.05)
        land = WanToGCSOperator(task_id="land", request=wait.output, bucket_name="videos", object_name="out/")
        submit >> wait >> land
        """
    )({"img_url": SIGNED})
    assert result.state == "success"
    home = Path(os.environ["AIRFLOW_HOME"])
    logs = [path.read_text(errors="replace") for path in (home / "logs").rglob("*.log")]
    assert leaks("\n".join([*logs, *capfd.readouterr()])) == []

    rows: dict[str, str] = {}
    with sqlite3.connect(airflow_db) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            rows[table] = repr(database.execute(f'select * from "{table}"').fetchall())
    assert [table for table, text in rows.items() if TOKEN in text] == []
    # The run's configuration as the user typed it is the only exception.
    assert [table for table, text in rows.items() if SIGNATURE in text] == ["dag_run"]
