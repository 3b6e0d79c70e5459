# SPDX-License-Identifier: Apache-2.0
"""The table of a journal: its rows, what a later export reads and writes, and the questions of the documentation."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import WanConflictError
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.export import JournalExport
from airflow_provider_wan.landing.table import row_of, table_schema
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_export import WanExportRecordsOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from tests.batch.batch_support import LOG, addresses, bad_first_take, connection, run
from tests.landing.landing_support import FileServer, Serving
from tests.landing.made_videos import made
from tests.sandboxes import MODEL, Bucket
from tests.task_runs import make_context
from wan_sandbox.server import Sandbox

JOURNAL, TABLE = "gs://videos/_journal", "gs://videos/tables/clips"
DOCS = Path(__file__).resolve().parents[2] / "docs/howto/table.md"


def export(**changes: Any) -> dict[str, Any]:
    given = {"journal": JOURNAL, "destination": TABLE, **changes}
    return WanExportRecordsOperator(task_id="export", **given).execute({})


def record(number: int, day: str = "2026-01-31", **changes: Any) -> Record:
    given: dict[str, Any] = {
        "stage": Stage.SUBMITTED,
        "request_id": f"request-{number}",
        "submitted_at": f"{day}T23:59:59.000+00:00",
        "inputs": {"prompt": "waves", "lora": {"path": "a"}},
    }
    return Record(f"{number:064x}", MODEL, **{**given, **changes})


@pytest.fixture
def journal(bucket: Bucket) -> BucketJournal:
    return BucketJournal(bucket.client, JOURNAL)


def rows(bucket: Bucket) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the table, by file."""
    names = [name for name in bucket.objects("tables/") if name.endswith(".jsonl")]
    return {
        name.removeprefix("tables/clips/"): [json.loads(line) for line in bucket.read(name).splitlines()]
        for name in names
    }


def test_every_record_is_a_line_in_the_file_of_its_day(bucket: Bucket, journal: BucketJournal) -> None:
    for each in (record(1), record(2), record(3, "2026-02-01", stage=Stage.FAILED, error="out of memory")):
        journal.write(each, replaces=None)
    journal.write(
        replace(record(4, "2026-02-01"), request_id=None, stage=Stage.INTENT, submitted_at=None),
        replaces=None,
    )
    done = export()
    assert (done["records"], done["changed"], done["days"]) == (
        4,
        4,
        ["1970-01-01", "2026-01-31", "2026-02-01"],
    )
    found = rows(bucket)
    assert {name: len(lines) for name, lines in found.items()} == {
        "dt=1970-01-01/records.jsonl": 1,
        "dt=2026-01-31/records.jsonl": 2,
        "dt=2026-02-01/records.jsonl": 1,
    }
    (failed,) = found["dt=2026-02-01/records.jsonl"]
    assert (failed["stage"], failed["error"], failed["usable"]) == ("failed", "out of memory", False)
    assert json.loads(failed["inputs"]) == {"prompt": "waves", "lora": {"path": "a"}}


def test_the_schema_describes_every_column_of_a_row(bucket: Bucket, journal: BucketJournal) -> None:
    journal.write(record(1), replaces=None)
    export()
    schema = json.loads(bucket.read("tables/clips/_schema.json"))
    assert schema == table_schema()
    assert [column["name"] for column in schema] == list(row_of(record(1)))
    assert all(column["description"] for column in schema)
    documented = DOCS.read_text(encoding="utf-8")
    assert [column["name"] for column in schema if f"`{column['name']}`" not in documented] == []


def test_a_later_export_reads_only_what_has_changed(bucket: Bucket, journal: BucketJournal) -> None:
    held = [journal.write(record(number, f"2026-01-{10 + number % 3}"), replaces=None) for number in range(30)]
    export()
    before = {name: stored["generation"] for name, stored in bucket.objects("tables/").items()}
    counted = bucket.calls()["bucket.get"]
    assert export()["changed"] == 0
    assert bucket.calls()["bucket.get"] - counted == 1  # the state
    assert {name: stored["generation"] for name, stored in bucket.objects("tables/").items()} == before
    changed = replace(held[4].record, stage=Stage.SUCCEEDED, cost_usd=0.2)
    journal.write(changed, replaces=held[4])
    journal.forget(held[7])
    again = replace(held[5].record, request_id="other", submitted_at="2026-03-01T00:00:00.000+00:00")
    journal.write(again, replaces=held[5])
    journal.write(record(99), replaces=None)
    done = export()
    assert (done["changed"], done["removed"], done["records"]) == (3, 1, 30)
    assert done["days"] == ["2026-01-11", "2026-01-12", "2026-01-31", "2026-03-01"]
    lines = [line for some in rows(bucket).values() for line in some]
    assert len(lines) == len({line["fingerprint"] for line in lines}) == 30
    assert next(line for line in lines if line["fingerprint"] == f"{4:064x}")["cost_usd"] == 0.2
    assert [line["request_id"] for line in rows(bucket)["dt=2026-03-01/records.jsonl"]] == ["other"]


def test_an_export_that_was_killed_is_repeated(bucket: Bucket, sandbox: Sandbox, journal: BucketJournal) -> None:
    for number in range(4):
        journal.write(record(number, f"2026-01-1{number}"), replaces=None)
    sandbox.add_fault("bucket.upload", "forbidden", object_contains="dt=2026-01-12", count=1)
    with pytest.raises(Exception, match="dt=2026-01-12"):
        export()
    assert export()["changed"] == 4
    assert sum(map(len, rows(bucket).values())) == 4


def test_an_unreadable_record_is_left_out_and_named(
    bucket: Bucket, journal: BucketJournal, caplog: pytest.LogCaptureFixture
) -> None:
    journal.write(record(1), replaces=None)
    bucket.put(f"_journal/{2:064x}.json", b"{")
    done = JournalExport(bucket.client, JOURNAL, TABLE, LOG).run()
    assert (done["records"], done["changed"], done["unreadable"]) == (2, 1, 1)
    assert f"{2:064x}.json" in caplog.text


def test_two_exports_at_once_do_not_overwrite_each_other(
    bucket: Bucket, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.write(record(1), replaces=None)
    write_day = JournalExport._write_day

    def slow(self: JournalExport, day: str, changes: Any) -> None:
        monkeypatch.setattr(JournalExport, "_write_day", write_day)
        journal.write(record(2), replaces=None)
        JournalExport(bucket.client, JOURNAL, TABLE, LOG).run()
        write_day(self, day, changes)

    monkeypatch.setattr(JournalExport, "_write_day", slow)
    with pytest.raises(WanConflictError, match=r"_state\.json was written by another export"):
        JournalExport(bucket.client, JOURNAL, TABLE, LOG).run()
    assert export()["changed"] == 0
    assert sum(map(len, rows(bucket).values())) == 2


# -- the records that tasks leave ------------------------------------------------------------------------------


def run_rows(bucket: Bucket) -> list[dict[str, Any]]:
    """Return the rows that tasks have left."""
    return [row for name, some in rows(bucket).items() if name.startswith("runs/dt=") for row in some]


def test_a_batch_leaves_the_records_of_its_purchases_once(bucket: Bucket, sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="00003.jpg", charged=True)
    checks = VideoChecks((bad_first_take,), "reject")
    given: dict[str, Any] = {"checks": checks, "rebuy_rejected": 1, "records": TABLE}
    for _ in range(2):  # a retry replaces the file
        run(addresses(3), **given)
        run(addresses(4), owner="dag/other/task/-1", **given)  # another run buys the last image only
    found = run_rows(bucket)
    assert len(found) == len({row["request_id"] for row in found}) == 7
    assert Counter((row["stage"], row["verdict"]) for row in found) == {
        ("landed", "bad"): 3,
        ("landed", "good"): 3,
        ("failed", None): 1,
    }
    export()
    exported = [row for name, some in rows(bucket).items() if name.startswith("dt=") for row in some]
    assert sorted(found, key=str) == sorted(exported, key=str)


def test_purchases_for_images_that_have_left_the_dataset_stay_in_the_file(bucket: Bucket, sandbox: Sandbox) -> None:
    run(addresses(3), records=TABLE)
    run(addresses(1), records=TABLE)
    assert len(run_rows(bucket)) == 3


def test_a_batch_whose_records_can_not_be_written_succeeds_and_says_what_to_do(
    bucket: Bucket, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.add_fault("bucket.upload", "forbidden", object_contains="runs/dt=")
    report = run(addresses(2), records=TABLE)
    assert report.error is None
    assert "clear the task, which buys nothing, or export the journal with" in caplog.text
    assert run(addresses(2), records="not an address").error is None
    sandbox.clear_faults()
    run(addresses(2), records=TABLE)
    assert len(run_rows(bucket)) == 2
    assert len(sandbox.ledger()["purchases"]) == 2


def test_a_landing_leaves_the_record_of_its_request(bucket: Bucket, sandbox: Sandbox) -> None:
    context = make_context()
    request = WanSubmitOperator(task_id="submit", prompt="waves", image=addresses(1)[0], check_image=False)
    submitted = request.execute(context)
    for number in range(2):  # also under another name
        land = WanToGCSOperator(
            task_id="land",
            request=submitted,
            bucket_name="videos",
            object_name=f"{number}.mp4",
            records=TABLE,
        )
        land.execute(make_context())
    (row,) = run_rows(bucket)
    assert (row["request_id"], row["uri"], row["usable"]) == (
        submitted["request_id"],
        "gs://videos/1.mp4",
        True,
    )


# -- the questions of the documentation ------------------------------------------------------------------------


@pytest.fixture(params=["clips", "clips/runs"])
def clips(
    bucket: Bucket,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Run a batch with one rejected and one failed image, and load the table of an export or of runs into DuckDB."""
    with FileServer(Serving(made("black"))) as server:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, download_hosts=[sandbox.url, server.url]))
        sandbox.add_fault("result", "link", url=f"{server.url}/v.mp4", img_url_contains="00002.jpg")
        sandbox.add_fault("generation", "fail", img_url_contains="00003.jpg", charged=True)
        run(addresses(10), checks=VideoChecks(on_bad_video="reject"), records=TABLE)
        run(addresses(2), variation="second take", owner="dag/second/task/-1", records=TABLE)
    export()
    for name in bucket.objects("tables/clips/"):
        path = tmp_path / name.removeprefix("tables/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.read(name))
    connected = duckdb.connect()
    connected.execute("CREATE SCHEMA my_dataset")
    kinds = {
        "STRING": "VARCHAR",
        "INT64": "BIGINT",
        "FLOAT64": "DOUBLE",
        "BOOL": "BOOLEAN",
        "TIMESTAMP": "TIMESTAMPTZ",
    }
    columns = {
        column["name"]: kinds[column["type"]] + ("[]" if column["mode"] == "REPEATED" else "")
        for column in table_schema()
    }
    connected.execute(
        f"CREATE VIEW my_dataset.clips AS SELECT * FROM read_json('{tmp_path}/{request.param}/dt=*/*.jsonl', "
        f"format = 'newline_delimited', hive_partitioning = true, columns = {columns})"
    )
    yield connected
    connected.close()


def test_the_questions_of_the_documentation_are_answered(clips: duckdb.DuckDBPyConnection) -> None:
    cost, reasons, seconds, of_one_image = re.findall(
        r"```sql\n(SELECT .*?my_dataset.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    (by_model,) = clips.execute(cost).fetchall()
    assert by_model[:3] == (MODEL, 12, 10)
    assert by_model[3] == pytest.approx(0.24, abs=0.03)
    assert clips.execute(reasons).fetchall() == [("black", 1, pytest.approx(1 / 11))]
    ((_, landed, average, longest),) = clips.execute(seconds).fetchall()
    assert (landed, 0 <= average <= longest) == (11, True)
    takes = clips.execute(of_one_image).fetchall()
    assert [take[2] for take in takes] == [None, "second take"]
