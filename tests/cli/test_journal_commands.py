# SPDX-License-Identifier: Apache-2.0
"""``airflow wan journal ...``: lost submits are listed and settled from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.cli import get_wan_cli_commands, main
from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.exceptions import WanUnknownSubmissionError
from airflow_provider_wan.get_provider_info import get_provider_info
from tests.durable.submission_support import (
    JOURNAL,
    a_video,
    an_intent,
    bucket_journal,
    connect,
    posts,
    purchases,
    submission,
)
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

LOST = [a_video(prompt, owner=f"dag/run/task/{index}") for index, prompt in enumerate(["a wave", "a storm"])]


@pytest.fixture
def journal(bucket: Bucket, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> BucketJournal:
    """A journal with two open claims, whose writers can't be at their POST any more."""
    connect(monkeypatch, sandbox, timeout=30)
    monkeypatch.setattr("airflow_provider_wan.durable.submission.CLAIM_MARGIN_S", -1000.0)
    opened = bucket_journal()
    for video in LOST:
        opened.write(an_intent(video, watchers=(str(video.owner),)), replaces=None)
    return opened


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Run a command with JSON output; return its exit code and what it printed."""
    capsys.readouterr()
    try:
        main(["journal", arguments[0], JOURNAL, *arguments[1:], "--output", "json"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        if isinstance(ended.code, str):
            return 1, ended.code
    return code, json.loads(capsys.readouterr().out)


def test_open_claims_are_listed_with_prompt_image_and_task(
    journal: BucketJournal, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    submission(journal).obtain(a_video("is bought, so it is not listed"))
    code, rows = run(capsys, "unknown")
    assert code == 0
    assert {(row["fingerprint"], row["prompt"], row["task"]) for row in rows} == {
        (video.fingerprint, video.inputs["prompt"], video.owner) for video in LOST
    }
    assert all(row["image"] == LOST[0].image and row["submitted"] for row in rows)


def test_claim_settled_with_a_request_id_is_adopted_by_its_task(
    journal: BucketJournal, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(LOST[0]).request_id
    code, [row] = run(capsys, "settle", LOST[0].fingerprint, "--request-id", real)
    assert (code, row["outcome"]) == (0, "settled")
    obtained = submission(journal).obtain(LOST[0])
    assert (obtained.how, obtained.request_id) == ("adopted", real)
    assert purchases(sandbox) == [real]


def test_claims_settled_as_not_bought_are_submitted_by_their_tasks(
    journal: BucketJournal, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WanUnknownSubmissionError, match="journal settle"):
        submission(journal).obtain(LOST[0])
    code, rows = run(capsys, "settle", "--all", "--not-bought")
    assert code == 0
    assert {row["fingerprint"] for row in rows} == {video.fingerprint for video in LOST}
    assert run(capsys, "unknown") == (0, [])
    assert posts(sandbox) == 0, "the command buys nothing"
    assert [submission(journal).obtain(video).how for video in LOST] == ["submitted"] * 2


def test_claim_after_a_failed_request_is_settled_back_to_it(
    journal: BucketJournal, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    video = a_video("fails, and is lost when it is bought again", owner="dag/run/task/9")
    journal.write(
        an_intent(video, earlier_request_ids=("req-failed",), earlier_buyers=("dag/run/task/9",)),
        replaces=None,
    )
    assert run(capsys, "settle", video.fingerprint, "--not-bought")[0] == 0
    held = journal.read(video.fingerprint)
    assert held is not None
    assert (held.record.stage, held.record.request_id, held.record.buyer) == (
        Stage.FAILED,
        "req-failed",
        "dag/run/task/9",
    )


@pytest.mark.parametrize("form", ["mapping", "rows"])
def test_file_settles_many_claims_and_skips_rows_without_an_answer(
    journal: BucketJournal,
    sandbox: Sandbox,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    form: str,
) -> None:
    real = submission(None).obtain(LOST[0]).request_id
    _, rows = run(capsys, "unknown")
    answers: Any = {LOST[0].fingerprint: real}
    if form == "rows":
        answers = [row | {"request_id": answers.get(row["fingerprint"], "")} for row in rows]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers))
    code, settled = run(capsys, "settle", "--file", str(file))
    assert code == 0
    assert [row["fingerprint"] for row in settled] == [LOST[0].fingerprint]
    assert [row["fingerprint"] for row in run(capsys, "unknown")[1]] == [LOST[1].fingerprint]


def test_settle_makes_the_same_checks_as_resolve(
    journal: BucketJournal, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    real = submission(None).obtain(LOST[0]).request_id
    first, second = (video.fingerprint for video in LOST)
    for fingerprint, answer, says in (
        (first, "req-typo", "does not have it"),
        (first, "../../balance", "not valid"),
        (second, real, "already holds it"),
        ("f" * 64, real, "no open claim"),
    ):
        if answer == real and fingerprint == second:
            assert run(capsys, "settle", first, "--request-id", real)[0] == 0
        code, [row] = run(capsys, "settle", fingerprint, "--request-id", answer)
        assert code == 1
        assert says in row["outcome"]
    assert [row["fingerprint"] for row in run(capsys, "unknown")[1]] == [second]


def test_claim_with_a_submit_in_progress_is_not_settled(
    bucket: Bucket, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect(monkeypatch, sandbox)
    bucket_journal().write(an_intent(LOST[0]), replaces=None)
    code, [row] = run(capsys, "settle", LOST[0].fingerprint, "--not-bought")
    assert code == 1
    assert "under way" in row["outcome"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "Give one of"),
        (("--not-bought",), "Give a fingerprint"),
        (("f" * 64, "--not-bought", "--request-id", "r"), "Give one of"),
        (("--all", "--request-id", "r"), "can't have one request id"),
        (("--file", "/nowhere.json"), "can't be read as JSON"),
    ],
)
def test_contradicting_options_are_refused(
    journal: BucketJournal, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    code, message = run(capsys, "settle", *options)
    assert code == 1
    assert says in message


def test_module_runs_without_the_airflow_command(journal: BucketJournal) -> None:
    command = [sys.executable, "-m", "airflow_provider_wan", "journal", "unknown", JOURNAL, "-o", "json"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=True)
    assert len(json.loads(done.stdout.splitlines()[-1])) == len(LOST)


def test_airflow_finds_the_commands() -> None:
    assert get_provider_info()["cli"] == ["airflow_provider_wan.cli.get_wan_cli_commands"]
    (group,) = get_wan_cli_commands()
    assert group.name == "wan"


def test_commands_import_nothing_heavy() -> None:
    code = (
        "import airflow.cli.cli_config, sys; before = set(sys.modules); import airflow_provider_wan.cli; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "['airflow_provider_wan']"
