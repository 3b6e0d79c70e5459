# SPDX-License-Identifier: Apache-2.0
"""The one call that costs money: after any failure the ledger shows one purchase, or an open claim to settle."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_provider_wan.durable.journal import BucketJournal, TaskStateJournal, VersionedRecord
from airflow_provider_wan.durable.reconcile import amend, as_paid
from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.durable.submission import Submission
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanBudgetError,
    WanInputError,
    WanJournalError,
    WanNoOutputError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.video_spec import VideoSpec, make_video_spec
from tests.durable.submission_support import (
    AT_ONCE,
    LOG,
    StoreInMemory,
    a_video,
    an_intent,
    bucket_journal,
    connect,
    posts,
    purchases,
    submission,
)
from tests.sandboxes import INPUTS, MODEL, Bucket
from wan_sandbox.server import Sandbox

VIDEO = a_video()
OWNER = "dag/run/task/-1"
#: The most that an API call may take, in seconds: on a busy machine, no answer may count as lost that is only slow.
TIMEOUT_S = 30.0
#: The same for tests that wait for it.
SHORT_TIMEOUT_S = 3.0
LONG_AGO = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="milliseconds")


@pytest.fixture
def journal(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> BucketJournal:
    connect(monkeypatch, bucket.sandbox, timeout=TIMEOUT_S, not_found_patience=0.02)
    return bucket_journal()


@pytest.fixture
def store(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> StoreInMemory:
    connect(monkeypatch, sandbox, timeout=TIMEOUT_S, not_found_patience=0.02)
    return StoreInMemory()


def lost_long_ago(store: StoreInMemory, **changes: Any) -> TaskStateJournal:
    """Leave a lost submission that nobody can still be at, in a task's store."""
    journal = TaskStateJournal(store)
    journal.write(an_intent(VIDEO, claimed_at=LONG_AGO, **changes), replaces=None)
    return journal


def retried(journal: Any, **options: Any) -> Submission:
    """Make what a try of a task makes, which looks for what it asked for before its inputs changed."""
    return submission(journal, follows_task=True, **options)


def stage_of(journal: Any) -> Stage | None:
    held = journal.read(VIDEO.fingerprint)
    return held.record.stage if held else None


# -- one purchase ------------------------------------------------------------------------------------------


def test_repeated_submit_of_a_video_adopts_its_request(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first = submission(journal).obtain(VIDEO)
    again = submission(bucket_journal()).obtain(VIDEO)
    assert (first.how, again.how) == ("submitted", "adopted")
    assert purchases(sandbox) == [first.request_id] == [again.request_id]


def test_a_succeeded_request_is_reused_and_the_log_names_variation(
    sandbox: Sandbox, journal: BucketJournal, caplog: pytest.LogCaptureFixture
) -> None:
    submission(journal).obtain(VIDEO)
    with caplog.at_level(logging.INFO, logger=LOG.name):
        again = submission(journal).obtain(VIDEO)
    assert again.how == "reused"
    assert "variation" in caplog.text
    assert len(purchases(sandbox)) == 1
    assert stage_of(journal) is Stage.SUCCEEDED


def test_a_landed_request_is_reused_after_its_result_expired(sandbox: Sandbox, journal: BucketJournal) -> None:
    bought = submission(journal).obtain(VIDEO)
    landed = lambda record: replace(record, stage=Stage.LANDED)  # noqa: E731
    amend(journal, VIDEO.fingerprint, bought.request_id, landed, LOG)
    sandbox.control(f"requests/{bought.request_id}", {"state": "vanished"})
    assert submission(journal).obtain(VIDEO).how == "reused"
    assert len(purchases(sandbox)) == 1


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_failed_or_cancelled_request_is_bought_again(sandbox: Sandbox, journal: BucketJournal, state: str) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first = submission(journal).obtain(VIDEO)
    sandbox.control(f"requests/{first.request_id}", {"state": state})
    second = submission(journal).obtain(VIDEO)
    assert second.how == "submitted"
    assert second.record.earlier_request_ids == (first.request_id,)
    assert purchases(sandbox) == [first.request_id, second.request_id]


def test_five_threads_that_ask_for_one_video_at_once_buy_it_once(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.add_fault("submit", "delay", seconds=0.3)
    together = threading.Barrier(5)
    obtained: list[Any] = []

    def want(number: int) -> None:
        mine = submission(bucket_journal())
        together.wait()
        obtained.append(mine.obtain(a_video(owner=f"dag/run/task/{number}")))

    threads = [threading.Thread(target=want, args=[number]) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.how for one in obtained) == ["adopted"] * 4 + ["submitted"]
    assert {one.request_id for one in obtained} == set(purchases(sandbox))
    assert len(purchases(sandbox)) == posts(sandbox) == 1
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert sorted(held.record.watchers) == [f"dag/run/task/{number}" for number in range(5)]


def test_without_a_journal_each_call_buys(sandbox: Sandbox) -> None:
    submission(None).obtain(VIDEO)
    submission(None).obtain(VIDEO)
    assert len(purchases(sandbox)) == 2


# -- every fault of a submit -------------------------------------------------------------------------------

NOT_BOUGHT: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("unauthorized", {}, WanAuthError),
    ("error_200", {}, WanAuthError),
    ("no_balance", {}, WanBalanceError),
    ("malformed_id", {}, WanRefusedError),
    ("invalid", {}, WanInputError),
    ("overloaded", {}, WanTransientError),
    ("overloaded", {"retry_after": 31_536_000}, WanTransientError),
    ("status", {"status": 403, "error_code": 403001}, WanRefusedError),
    ("redirect", {}, WanRefusedError),
    ("forbidden_html", {}, WanRefusedError),
]
UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    ("status", {"status": 500}),
    ("status", {"status": 503, "retry_after": 1}),
    ("status", {"status": 504, "body": "html"}),
    ("reset", {}),
    ("reset", {"clean": True}),
    ("hang", {}),
    ("html", {}),
    ("empty", {}),
]
BOUGHT_UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    ("status_after", {"status": 502}),
    ("reset_after", {}),
    ("reset_after", {"clean": True}),
    ("hang_after", {}),
    ("html_after", {}),
    ("empty_after", {}),
    ("cut_json", {"keep": 0.2}),
    ("cut_json", {"honest": False}),
    ("drip", {"every_s": 0.5}),
    ("no_id", {}),
    ("bad_id", {}),
]


@pytest.mark.parametrize(("fault", "params", "error"), NOT_BOUGHT)
def test_a_refusal_leaves_nothing_behind(
    sandbox: Sandbox, journal: BucketJournal, fault: str, params: dict[str, Any], error: type[Exception]
) -> None:
    sandbox.add_fault("submit", fault, **params)
    with pytest.raises(error, match="othing was bought"):
        submission(journal).obtain(VIDEO)
    assert purchases(sandbox) == []
    assert stage_of(journal) is None
    sandbox.clear_faults()
    assert submission(journal).obtain(VIDEO).how == "submitted"


def test_a_refusal_leaves_the_record_of_the_former_request(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first = submission(journal).obtain(VIDEO)
    sandbox.control(f"requests/{first.request_id}", {"state": "failed"})
    sandbox.add_fault("submit", "no_balance")
    with pytest.raises(WanBalanceError):
        submission(journal).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert (held.record.stage, held.record.request_id) == (Stage.FAILED, first.request_id)


def test_an_overloaded_api_is_retried(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_fault("submit", "overloaded", count=2)
    assert submission(journal, retry=AT_ONCE).obtain(VIDEO).how == "submitted"
    assert (posts(sandbox), len(purchases(sandbox))) == (3, 1)


@pytest.mark.parametrize(("fault", "params"), UNKNOWN + BOUGHT_UNKNOWN)
def test_a_lost_answer_is_not_sent_again(
    sandbox: Sandbox,
    store: StoreInMemory,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    params: dict[str, Any],
) -> None:
    if fault in ("hang", "hang_after", "drip"):
        connect(monkeypatch, sandbox, timeout=SHORT_TIMEOUT_S)
    sandbox.add_fault("submit", fault, **params)
    with pytest.raises(WanUnknownSubmissionError, match="resolve=") as first:
        submission(TaskStateJournal(store), retry=AT_ONCE).obtain(VIDEO)
    assert not first.value.retry_helps
    assert posts(sandbox) == 1
    assert len(purchases(sandbox)) == ((fault, params) in BOUGHT_UNKNOWN)
    sandbox.clear_faults()

    # A day later, when no process can still be at its POST.
    journal = TaskStateJournal(store)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.stage is Stage.INTENT
    journal.write(replace(held.record, claimed_at=LONG_AGO), replaces=held)
    with pytest.raises(WanUnknownSubmissionError, match=VIDEO.fingerprint) as second:
        submission(journal).obtain(VIDEO)
    assert VIDEO.image in str(second.value)
    assert posts(sandbox) == 1

    resolve = {str(VIDEO.image): (purchases(sandbox) or ["resubmit"])[0]}
    settled = submission(journal, resolve=resolve).obtain(VIDEO)
    assert [settled.request_id] == purchases(sandbox)


def test_an_accepted_request_is_known_by_its_id_whatever_the_status(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.add_fault("submit", "accepted_202")
    assert [submission(journal).obtain(VIDEO).request_id] == purchases(sandbox)


def test_the_id_is_in_the_log_before_it_is_written(
    sandbox: Sandbox,
    journal: BucketJournal,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sandbox.add_fault("bucket.upload", "quota", skip=1, object_contains=VIDEO.fingerprint)
    monkeypatch.setattr("airflow_provider_wan.hooks.gcs.RETRY_FOR_S", 0.01)
    monkeypatch.setattr("airflow_provider_wan.durable.submission.WRITE_ID_FOR_S", 0.05)
    with (
        caplog.at_level(logging.INFO, logger=LOG.name),
        pytest.raises(WanStorageError, match="It is not lost: pass request=") as error,
    ):
        submission(journal, sleep=lambda s: None).obtain(VIDEO)
    [request_id] = purchases(sandbox)
    assert request_id in str(error.value)
    assert f"request_id={request_id}" in caplog.text


def test_the_id_is_written_after_an_outage_of_the_bucket(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_wan.hooks.gcs.RETRY_FOR_S", 0.01)
    sandbox.add_fault("bucket.upload", "quota", skip=1, count=5, object_contains=VIDEO.fingerprint)
    sandbox.add_fault("bucket.get", "quota", skip=1, count=3, object_contains=VIDEO.fingerprint)
    obtained = submission(journal, sleep=lambda s: None).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.request_id == obtained.request_id


# -- settling a lost submission ----------------------------------------------------------------------------


def test_resubmit_buys_one_request(sandbox: Sandbox, store: StoreInMemory) -> None:
    journal = lost_long_ago(store)
    bought = submission(journal, resolve={VIDEO.fingerprint: "resubmit"}).obtain(VIDEO)
    assert bought.how == "submitted"
    assert purchases(sandbox) == [bought.request_id]
    again = submission(journal, resolve={VIDEO.fingerprint: "resubmit"}).obtain(VIDEO)
    assert again.how == "reused"
    assert len(purchases(sandbox)) == 1


def test_on_unknown_submission_resubmit_sends_a_lost_submission_again(sandbox: Sandbox, store: StoreInMemory) -> None:
    bought = submission(lost_long_ago(store), on_unknown_submission="resubmit").obtain(VIDEO)
    assert bought.how == "submitted"
    assert bought.record.lost_submissions == 1


def test_resubmit_setting_applies_once(sandbox: Sandbox, store: StoreInMemory) -> None:
    """A retry finds the same setting in its run's configuration, although it already settled that submission."""
    journal = lost_long_ago(store)
    sandbox.add_fault("submit", "reset_after")
    with pytest.raises(WanUnknownSubmissionError, match="resubmit-2"):
        submission(journal, resolve={str(VIDEO.image): "resubmit"}).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    journal.write(replace(held.record, claimed_at=LONG_AGO), replaces=held)

    with pytest.raises(WanUnknownSubmissionError, match="resubmit-2"):
        submission(journal, resolve={str(VIDEO.image): "resubmit"}).obtain(VIDEO)
    assert len(purchases(sandbox)) == 1


def test_second_task_with_the_same_resubmit_setting_does_not_resubmit_again(
    sandbox: Sandbox, store: StoreInMemory
) -> None:
    """Two tasks use the same setting at once. The second finds the first one's claim, to which it does not apply."""
    winners_claim = an_intent(VIDEO, lost_submissions=1, claimed_at=LONG_AGO)
    TaskStateJournal(store).write(winners_claim, replaces=None)
    with pytest.raises(WanUnknownSubmissionError, match="resubmit-2"):
        submission(TaskStateJournal(store), resolve={VIDEO.fingerprint: "resubmit"}).obtain(VIDEO)
    assert posts(sandbox) == 0


@pytest.mark.parametrize("key", ["image", "fingerprint", "signed image"])
def test_a_lost_submission_is_settled_by_image_or_fingerprint(sandbox: Sandbox, store: StoreInMemory, key: str) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(VIDEO)
    names = {
        "image": str(VIDEO.image),
        "fingerprint": VIDEO.fingerprint,
        "signed image": f"{VIDEO.image}?Signature=x",
    }
    journal = lost_long_ago(store)
    obtained = submission(journal, resolve={names[key]: real.request_id}).obtain(VIDEO)
    assert obtained.how == "adopted"
    assert purchases(sandbox) == [obtained.request_id]


def test_a_mistyped_settlement_changes_nothing(sandbox: Sandbox, store: StoreInMemory) -> None:
    journal = lost_long_ago(store)
    with pytest.raises(WanNotFoundError, match="resolve= names request req-typo"):
        submission(journal, resolve={VIDEO.fingerprint: "req-typo"}).obtain(VIDEO)
    assert stage_of(journal) is Stage.INTENT
    assert posts(sandbox) == 0


def test_a_settlement_that_is_not_an_id_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(WanInputError, match="not valid"):
        submission(None, resolve={VIDEO.fingerprint: "../../balance"})


@pytest.mark.parametrize("key", [VIDEO.fingerprint, str(VIDEO.image)])
@pytest.mark.parametrize("kind", ["bucket", "store", "none"])
def test_a_settlement_without_an_open_claim_fails_and_names_request(
    sandbox: Sandbox, bucket: Bucket, store: StoreInMemory, key: str, kind: str
) -> None:
    real = submission(None).obtain(VIDEO)
    journal = {"bucket": bucket_journal(), "store": TaskStateJournal(store), "none": None}[kind]
    with pytest.raises(WanRefusedError, match=f"request='{real.request_id}'"):
        submission(journal, resolve={key: real.request_id}).obtain(VIDEO)
    assert len(purchases(sandbox)) == 1


# An image can have open claims of several videos: other prompts, other takes.
OTHER = a_video("quite another wave")


def lost_in_the_bucket(journal: BucketJournal, *videos: VideoSpec) -> None:
    for video in videos:
        journal.write(an_intent(video), replaces=None)


@pytest.fixture
def quick(journal: BucketJournal, monkeypatch: pytest.MonkeyPatch) -> BucketJournal:
    """A journal whose claims count as open at once."""
    # The window is a connect and an answer for sending, the same for the answer, and the margin.
    monkeypatch.setattr("airflow_provider_wan.durable.submission.CLAIM_MARGIN_S", -4 * TIMEOUT_S)
    return journal


def test_a_settlement_by_image_reaches_only_its_one_open_claim(sandbox: Sandbox, quick: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(VIDEO)
    lost_in_the_bucket(quick, VIDEO)
    mine = submission(quick, resolve={str(VIDEO.image): real.request_id})
    ids = [mine.obtain(video).request_id for video in (OTHER, VIDEO, a_video("a third wave"))]
    assert ids[1] == real.request_id
    assert sorted(ids) == sorted(purchases(sandbox))
    assert len(set(ids)) == 3


def test_a_settlement_by_image_with_two_open_claims_settles_neither(
    sandbox: Sandbox, quick: BucketJournal, caplog: pytest.LogCaptureFixture
) -> None:
    real = submission(None).obtain(VIDEO)
    lost_in_the_bucket(quick, VIDEO, OTHER)
    for video in (VIDEO, OTHER):
        with pytest.raises(WanUnknownSubmissionError, match=video.fingerprint):
            submission(quick, resolve={str(VIDEO.image): real.request_id}).obtain(video)
    assert "2 open claims" in caplog.text
    assert purchases(sandbox) == [real.request_id]


def test_two_videos_are_not_settled_as_one_request(sandbox: Sandbox, quick: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(VIDEO)
    lost_in_the_bucket(quick, VIDEO, OTHER)
    mine = submission(quick, resolve={VIDEO.fingerprint: real.request_id, OTHER.fingerprint: real.request_id})
    assert mine.obtain(VIDEO).request_id == real.request_id
    with pytest.raises(WanRefusedError, match="already holds it"):
        mine.obtain(OTHER)
    held = quick.read(OTHER.fingerprint)
    assert held is not None
    assert held.record.stage is Stage.INTENT


# -- a journal that can't be overwritten -------------------------------------------------------------------


def test_a_journal_that_can_not_be_overwritten_buys_nothing_and_gets_no_claim(
    sandbox: Sandbox, bucket: Bucket, journal: BucketJournal
) -> None:
    sandbox.add_fault("bucket.upload", "forbidden", skip=1, object_contains="_checks/")
    with pytest.raises(WanJournalError, match="retention") as error:
        submission(journal).obtain(VIDEO)
    assert not error.value.retry_helps
    assert posts(sandbox) == 0
    assert stage_of(journal) is None


def test_the_proof_that_a_journal_can_be_written_leaves_nothing_behind(
    sandbox: Sandbox, bucket: Bucket, journal: BucketJournal
) -> None:
    mine = submission(journal)
    mine.obtain(VIDEO)
    mine.obtain(OTHER)
    assert sorted(bucket.objects("_journal/")) == sorted(
        f"_journal/{video.fingerprint}.json" for video in (VIDEO, OTHER)
    )
    assert bucket.calls()["bucket.delete"] == 1, "proved once for a task"


def test_a_refusal_to_write_the_id_is_final_at_once_and_names_it(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.add_fault("bucket.upload", "forbidden", skip=1, object_contains=VIDEO.fingerprint)
    with pytest.raises(WanJournalError, match="was bought") as error:
        submission(journal, sleep=lambda seconds: pytest.fail("it waits")).obtain(VIDEO)
    assert [error.value.request_id] == purchases(sandbox)
    assert error.value.request_id in str(error.value)
    assert not error.value.retry_helps


# -- an API that does not answer ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_retry", [True, False])
def test_nothing_is_claimed_while_the_api_is_down(sandbox: Sandbox, journal: BucketJournal, is_retry: bool) -> None:
    """A retry makes a free call first; so does every task of a process in which a submit just got no answer."""
    sandbox.add_fault("submit", "status", status=503)
    sandbox.add_fault("status", "status", status=503)
    if not is_retry:
        with pytest.raises(WanUnknownSubmissionError):
            submission(journal).obtain(OTHER)
    sent = posts(sandbox)
    with pytest.raises(WanTransientError, match="does not answer"):
        submission(journal, is_retry=is_retry).obtain(VIDEO)
    assert stage_of(journal) is None
    assert posts(sandbox) == sent
    sandbox.clear_faults()
    assert submission(journal, is_retry=is_retry).obtain(VIDEO).how == "submitted"


def test_threads_that_need_the_free_call_at_once_share_its_failure(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call after another for each thread would block a batch for as many timeouts as it has threads."""
    connect(monkeypatch, sandbox, timeout=SHORT_TIMEOUT_S)
    sandbox.add_fault("status", "hang")
    shared = submission(journal, is_retry=True)
    together = threading.Barrier(8)

    def obtain(number: int) -> Exception | None:
        video = a_video(f"wave {number}")

        def make_inputs() -> Any:
            together.wait()
            return video.make_inputs()

        try:
            shared.obtain(replace(video, make_inputs=make_inputs))
        except WanTransientError as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(obtain, range(8)))
    assert all("does not answer" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 8, "a caller may change the message of its own error"
    assert sandbox.ledger()["calls"]["status"] < 4
    assert posts(sandbox) == 0


def test_a_lost_submission_that_is_to_be_resubmitted_is_retried_by_airflow(
    sandbox: Sandbox, quick: BucketJournal
) -> None:
    sandbox.add_fault("submit", "reset_after", count=1)
    with pytest.raises(WanUnknownSubmissionError, match="Another try submits it again") as error:
        submission(quick, on_unknown_submission="resubmit").obtain(VIDEO)
    assert error.value.retry_helps
    assert submission(quick, on_unknown_submission="resubmit").obtain(VIDEO).how == "submitted"


def test_the_first_error_gives_the_time_of_the_submit(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.add_fault("submit", "reset_after")
    with pytest.raises(WanUnknownSubmissionError) as error:
        submission(journal).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert f"sent at {held.record.claimed_at}" in str(error.value)


def test_an_id_that_settled_an_earlier_loss_does_not_settle_the_next(sandbox: Sandbox, store: StoreInMemory) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(VIDEO)
    journal = lost_long_ago(store)
    resolve = {str(VIDEO.image): real.request_id}
    submission(journal, resolve=resolve).obtain(VIDEO)
    sandbox.control(f"requests/{real.request_id}", {"state": "failed"})
    sandbox.add_fault("submit", "reset_after")
    with pytest.raises(WanUnknownSubmissionError):
        submission(journal, resolve=resolve).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    journal.write(replace(held.record, claimed_at=LONG_AGO), replaces=held)
    with pytest.raises(WanUnknownSubmissionError):
        submission(journal, resolve=resolve).obtain(VIDEO)
    assert stage_of(journal) is Stage.INTENT


def test_a_former_tasks_lost_submission_is_not_taken_for_this_one(sandbox: Sandbox, store: StoreInMemory) -> None:
    """The task was changed after a submit was lost; the id that a person finds belongs to the former inputs."""
    sandbox.control("speed", {"generation_seconds": 3600})
    former = submission(None).obtain(VIDEO)
    journal = lost_long_ago(store)
    new = a_video("quite another wave", owner=OWNER)
    with pytest.raises(WanUnknownSubmissionError, match=VIDEO.fingerprint):
        retried(journal).obtain(new)

    obtained = retried(journal, resolve={VIDEO.fingerprint: former.request_id}).obtain(new)
    assert obtained.how == "submitted"
    assert obtained.request_id != former.request_id
    assert obtained.record.fingerprint == new.fingerprint


# -- a process that stopped, and one that waits ------------------------------------------------------------


def test_a_claim_without_an_id_is_waited_for(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(VIDEO)
    claimed = journal.write(an_intent(VIDEO), replaces=None)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:  # the other one is done
            done = replace(claimed.record, stage=Stage.SUBMITTED, request_id=real.request_id)
            bucket_journal().write(done, replaces=claimed)

    obtained = submission(journal, sleep=sleep).obtain(VIDEO)
    assert obtained.how == "adopted"
    assert len(naps) == 3
    assert len(purchases(sandbox)) == 1


def test_a_claim_whose_writer_died_is_unknown_after_its_posts_time(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, sandbox, timeout=0.1)  # twice a POST of 0.2 s, and the margin
    monkeypatch.setattr("airflow_provider_wan.durable.submission.CLAIM_MARGIN_S", 1.0)
    journal.write(an_intent(VIDEO), replaces=None)
    outcomes: list[Exception] = []

    def want(**options: Any) -> None:
        try:
            submission(bucket_journal(), **options).obtain(VIDEO)
        except WanUnknownSubmissionError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert posts(sandbox) == 0


def test_the_next_try_waits_for_the_post_of_a_cleared_one(sandbox: Sandbox, store: StoreInMemory) -> None:
    """Airflow's store has no preconditions, and the old process keeps running for a while."""
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.add_fault("submit", "delay", seconds=0.5, count=1)
    old: list[Any] = []
    cleared = threading.Thread(target=lambda: old.append(submission(TaskStateJournal(store)).obtain(VIDEO)))
    cleared.start()
    while not posts(sandbox):
        time.sleep(0.01)
    new = submission(TaskStateJournal(store)).obtain(VIDEO)
    cleared.join()
    assert (old[0].how, new.how) == ("submitted", "adopted")
    assert purchases(sandbox) == [new.request_id]


def test_a_process_that_was_stopped_after_its_claim_does_not_send_late(
    sandbox: Sandbox, journal: BucketJournal
) -> None:
    """Meanwhile another process may have considered the claim expired, and submitted."""
    from airflow_provider_wan.hooks.wan import WanHook

    with pytest.raises(WanTransientError, match="Nothing was bought"):
        WanHook().submit(VIDEO.model_id, VIDEO.make_inputs(), retry=False, send_by=0.0)
    assert posts(sandbox) == 0


def test_a_bucket_that_answers_a_claim_too_late_delays_the_purchase(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, sandbox, timeout=SHORT_TIMEOUT_S)
    late_s = 2 * SHORT_TIMEOUT_S + 0.5
    sandbox.add_fault("bucket.upload", "delay", seconds=late_s, count=1, object_contains=VIDEO.fingerprint)
    obtained = submission(journal, retry=AT_ONCE).obtain(VIDEO)
    assert purchases(sandbox) == [obtained.request_id]
    assert posts(sandbox) == 1, "the first claim was taken back, and nothing sent on it"


def test_waiting_for_the_rate_limit_does_not_age_a_claim(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, sandbox, timeout=TIMEOUT_S, requests_per_second=1)
    from airflow_provider_wan.hooks.wan import WanHook

    first_turn = datetime.now(UTC)
    WanHook().take_turn()
    obtained = submission(journal).obtain(VIDEO)
    claimed_at = datetime.fromisoformat(str(obtained.record.claimed_at))
    assert claimed_at - first_turn > timedelta(seconds=0.9), "it is claimed after the wait for its turn"
    assert (posts(sandbox), purchases(sandbox)) == (1, [obtained.request_id])


def test_a_claim_whose_acknowledgement_was_lost_is_used(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket's answers are lost for longer than a write is retried."""
    monkeypatch.setattr("airflow_provider_wan.hooks.gcs.RETRY_FOR_S", 0.01)
    sandbox.add_fault("bucket.upload", "lost_ack", count=1, object_contains=VIDEO.fingerprint)
    obtained = submission(journal).obtain(VIDEO)
    assert purchases(sandbox) == [obtained.request_id]


# -- concurrent writes of the record -------------------------------------------------------------------------


class Between:
    """A journal beside which something happens right before a write; the rest is the bucket's."""

    def __init__(self, journal: BucketJournal, happens: Callable[[], None], *, before_write: int) -> None:
        self._journal, self._happens, self._left = journal, happens, before_write
        self.where = journal.where

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    def write(self, record: Any, *, replaces: VersionedRecord | None) -> VersionedRecord:
        self._left -= 1
        if self._left == 0:
            self._happens()
        return self._journal.write(record, replaces=replaces)


def test_a_record_that_was_deleted_during_the_post_is_written_again(
    sandbox: Sandbox, bucket: Bucket, journal: BucketJournal
) -> None:
    def vanish() -> None:
        bucket.client.bucket("videos").blob(f"_journal/{VIDEO.fingerprint}.json").delete()

    obtained = submission(Between(journal, vanish, before_write=2)).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.request_id == obtained.request_id == purchases(sandbox)[0]


def test_an_id_that_comes_too_late_is_named_and_overwrites_no_other(sandbox: Sandbox, journal: BucketJournal) -> None:
    def settle() -> None:
        held = journal.read(VIDEO.fingerprint)
        assert held is not None
        other = replace(held.record, claim="another", stage=Stage.SUBMITTED, request_id="of-another")
        journal.write(other, replaces=held)

    with pytest.raises(WanStorageError, match="was bought, but") as error:
        submission(Between(journal, settle, before_write=2)).obtain(VIDEO)
    assert error.value.request_id == purchases(sandbox)[0]
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.request_id == "of-another"


def test_a_process_that_loses_the_claim_adopts_the_winners_request(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    bought: list[str] = []

    def be_faster() -> None:
        bought.append(submission(bucket_journal()).obtain(VIDEO).request_id)

    obtained = submission(Between(journal, be_faster, before_write=1)).obtain(VIDEO)
    assert (obtained.how, obtained.request_id) == ("adopted", bought[0])
    assert len(purchases(sandbox)) == 1


# -- the state at RunComfy of a recorded request -------------------------------------------------------------


def remember(journal: Any, **changes: Any) -> None:
    record = an_intent(VIDEO, stage=Stage.SUBMITTED, request_id="req-gone")
    journal.write(replace(record, **changes), replaces=None)


def test_missing_request_is_bought_again_only_if_it_never_succeeded(sandbox: Sandbox, journal: BucketJournal) -> None:
    remember(journal)
    looks: list[float] = []
    assert submission(journal, sleep=looks.append).obtain(VIDEO).how == "submitted"
    assert len(looks) == 2
    assert sandbox.ledger()["calls"]["status"] == 3


def test_missing_request_that_was_paid_is_not_bought_again(sandbox: Sandbox, journal: BucketJournal) -> None:
    remember(journal, succeeded_once=True)
    with pytest.raises(WanRefusedError, match=r"req-gone.*variation"):
        submission(journal).obtain(VIDEO)
    assert posts(sandbox) == 0


def test_request_missing_after_days_is_not_bought_again_by_a_clear(sandbox: Sandbox, store: StoreInMemory) -> None:
    """A run cleared after weeks, without a journal: its store does not know that its video landed."""
    journal = TaskStateJournal(store)
    remember(journal, submitted_at=(datetime.now(UTC) - timedelta(days=14)).isoformat(timespec="milliseconds"))
    for _ in range(2):
        with pytest.raises(WanRefusedError, match=r"req-gone.*variation"):
            submission(journal).obtain(VIDEO)
    assert posts(sandbox) == 0


def test_a_result_that_expired_unread_is_not_bought_again(sandbox: Sandbox, journal: BucketJournal) -> None:
    """/status still says completed, so the request ended and was presumably charged."""
    first = submission(journal).obtain(VIDEO)
    sandbox.add_fault("result", "not_found")
    with pytest.raises(WanRefusedError, match="no longer has its result"):
        submission(journal).obtain(VIDEO)
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.succeeded_once
    sandbox.control(f"requests/{first.request_id}", {"state": "vanished"})
    with pytest.raises(WanRefusedError):
        submission(journal).obtain(VIDEO)
    assert len(purchases(sandbox)) == 1


def test_two_404s_do_not_make_a_request_missing(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first = submission(journal).obtain(VIDEO)
    sandbox.add_fault("status", "not_found", count=2)
    assert submission(journal).obtain(VIDEO).request_id == first.request_id
    assert len(purchases(sandbox)) == 1


@pytest.mark.parametrize("fault", ["other_user", "not_found_html", "forbidden_html", "malformed_id", "unauthorized"])
def test_no_clear_answer_buys_nothing(sandbox: Sandbox, journal: BucketJournal, fault: str) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first = submission(journal).obtain(VIDEO)
    sandbox.add_fault("status", fault)
    with pytest.raises(WanTransientError, match=first.request_id):
        submission(journal).obtain(VIDEO)
    sandbox.clear_faults()
    assert submission(journal).obtain(VIDEO).request_id == first.request_id
    assert len(purchases(sandbox)) == 1


def test_unknown_state_is_awaited(sandbox: Sandbox, journal: BucketJournal) -> None:
    first = submission(journal).obtain(VIDEO)
    sandbox.add_fault("status", "word", word="pondering")
    assert submission(journal).obtain(VIDEO).how == "adopted"
    assert purchases(sandbox) == [first.request_id]


def test_an_outage_of_the_bucket_buys_nothing(
    sandbox: Sandbox, journal: BucketJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fault in ({"call": "bucket.get"}, {"call": "bucket.upload"}):
        rule = sandbox.add_fault(fault["call"], "forbidden")
        with pytest.raises(WanStorageError):
            submission(journal).obtain(VIDEO)
        sandbox.control(f"faults/{rule}", method="DELETE")
    assert posts(sandbox) == 0


# -- a task whose inputs have changed ------------------------------------------------------------------------


@pytest.fixture(params=["bucket", "store"])
def either(request: pytest.FixtureRequest, quick: BucketJournal, store: StoreInMemory) -> Any:
    """Opens the task's journal, as each try does: in a bucket, or Airflow's task state store."""
    return bucket_journal if request.param == "bucket" else lambda: TaskStateJournal(store)


MINE = a_video(owner=OWNER)
CHANGED = a_video("changed", owner=OWNER)


def test_a_changed_task_cancels_its_former_request_while_queued_and_warns(
    sandbox: Sandbox, either: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    submission(None).obtain(a_video("keeps the only place"))
    former = retried(either()).obtain(MINE)
    assert "inputs of this task have changed" not in caplog.text
    new = retried(either()).obtain(CHANGED)
    assert new.how == "submitted"
    assert "inputs of this task have changed" in caplog.text
    [cancelled] = sandbox.ledger()["cancels"]
    assert (cancelled["request_id"], cancelled["outcome"]) == (former.request_id, "cancelled")


def test_a_changed_task_leaves_a_running_request_and_says_so(
    sandbox: Sandbox, either: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    former = retried(either()).obtain(MINE)
    with caplog.at_level(logging.INFO, logger=LOG.name):
        retried(either()).obtain(CHANGED)
    assert former.request_id in caplog.text
    assert "left behind" in caplog.text
    assert sandbox.ledger()["cancels"] == []


def test_inputs_that_change_back_are_not_bought_again(sandbox: Sandbox, either: Any) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first = retried(either()).obtain(MINE)
    second = retried(either()).obtain(CHANGED)
    assert retried(either()).obtain(MINE).request_id == first.request_id
    assert retried(either()).obtain(CHANGED).request_id == second.request_id
    assert len(purchases(sandbox)) == 2


def test_a_changed_task_reports_the_claim_that_it_left_open(sandbox: Sandbox, either: Any) -> None:
    """Killed during the POST, then the prompt renders differently: the first video may have been charged."""
    journal = either()
    journal.point_to(OWNER, MINE.image, MINE.fingerprint)
    journal.write(an_intent(MINE, claimed_at=LONG_AGO, watchers=(OWNER,)), replaces=None)
    with pytest.raises(WanUnknownSubmissionError, match=f"have changed.*{MINE.fingerprint}"):
        retried(either()).obtain(CHANGED)
    assert posts(sandbox) == 0
    obtained = retried(either(), resolve={MINE.fingerprint: "resubmit"}).obtain(CHANGED)
    assert [obtained.request_id] == purchases(sandbox), "settled as not bought, it is not sent again either"
    assert retried(either()).obtain(CHANGED).how == "reused"


def test_a_changed_task_that_may_resubmit_continues(sandbox: Sandbox, either: Any) -> None:
    journal = either()
    journal.point_to(OWNER, MINE.image, MINE.fingerprint)
    journal.write(an_intent(MINE, claimed_at=LONG_AGO, watchers=(OWNER,)), replaces=None)
    assert retried(either(), on_unknown_submission="resubmit").obtain(CHANGED).how == "submitted"
    assert len(purchases(sandbox)) == 1


def test_a_refused_submit_of_changed_inputs_keeps_the_former_record(sandbox: Sandbox, store: StoreInMemory) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    former = retried(TaskStateJournal(store)).obtain(MINE)
    sandbox.add_fault("submit", "no_balance", count=1)
    with pytest.raises(WanBalanceError):
        retried(TaskStateJournal(store)).obtain(CHANGED)
    assert retried(TaskStateJournal(store)).obtain(MINE).request_id == former.request_id


def queued_former(sandbox: Sandbox, journal: Any) -> Any:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    submission(None).obtain(a_video("keeps the only place"))
    return retried(journal).obtain(MINE)


@pytest.mark.parametrize("refusal", ["price", "journal", "api"])
def test_a_changed_task_that_is_refused_keeps_its_former_request_queued(
    sandbox: Sandbox, quick: BucketJournal, refusal: str
) -> None:
    queued_former(sandbox, quick)
    changed = CHANGED
    if refusal == "price":

        def too_expensive() -> Any:
            raise WanBudgetError("It costs more than max_cost_usd.")

        changed = replace(CHANGED, make_inputs=too_expensive)
    elif refusal == "journal":
        sandbox.add_fault("bucket.upload", "forbidden", object_contains="_checks/")
    else:
        sandbox.add_fault("status", "status", status=503, skip=1)  # the state of the former request is known
    with pytest.raises((WanBudgetError, WanJournalError, WanTransientError)):
        retried(quick, is_retry=True).obtain(changed)
    assert sandbox.ledger()["cancels"] == []
    sandbox.clear_faults()
    retried(quick, is_retry=True).obtain(CHANGED)
    assert [cancel["outcome"] for cancel in sandbox.ledger()["cancels"]] == ["cancelled"]


def test_a_changed_task_whose_new_request_exists_cancels_the_former_one(sandbox: Sandbox, quick: BucketJournal) -> None:
    first = queued_former(sandbox, quick)
    second = submission(quick).obtain(a_video("changed", owner="dag/another/task/-1"))
    assert retried(quick).obtain(CHANGED).request_id == second.request_id
    assert [cancel["request_id"] for cancel in sandbox.ledger()["cancels"]] == [first.request_id]


def test_a_former_request_that_another_task_depends_on_is_not_cancelled(sandbox: Sandbox, quick: BucketJournal) -> None:
    former = queued_former(sandbox, quick)
    retried(quick).obtain(a_video(owner="dag/another/task/-1"))
    assert retried(quick).obtain(CHANGED).request_id != former.request_id
    assert sandbox.ledger()["cancels"] == []


def test_map_index_with_another_image_cancels_nothing(
    sandbox: Sandbox, either: Any, caplog: pytest.LogCaptureFixture
) -> None:
    queued_former(sandbox, either())
    other_image = make_video_spec(MODEL, {**INPUTS, "img_url": "https://example.com/another.jpg"}, owner=OWNER)
    retried(either()).obtain(other_image)
    assert sandbox.ledger()["cancels"] == []
    assert "have changed" not in caplog.text


def test_a_success_without_output_counts_as_paid_and_is_not_bought_again(
    sandbox: Sandbox, journal: BucketJournal
) -> None:
    sandbox.add_fault("result", "no_output")
    submission(journal).obtain(VIDEO)
    for _ in range(3):
        with pytest.raises(WanNoOutputError, match="counts as paid") as error:
            submission(journal).obtain(VIDEO)
        assert not error.value.retry_helps
    assert len(purchases(sandbox)) == 1
    take_2 = make_video_spec(MODEL, INPUTS, variation="2")
    assert submission(journal).obtain(take_2).how == "submitted"


# -- adopting a request by id --------------------------------------------------------------------------------


def test_a_named_request_is_adopted_and_recorded(sandbox: Sandbox, journal: BucketJournal) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    real = submission(None).obtain(VIDEO)
    submission(journal).take_over(a_video(owner="dag/run/task/-1"), real.request_id)
    again = submission(journal).obtain(VIDEO)
    assert again.request_id == real.request_id
    assert len(purchases(sandbox)) == 1


@pytest.mark.parametrize("fault", ["not_found", "other_user", "malformed_id"])
def test_a_request_that_runcomfy_does_not_have_is_not_adopted(
    sandbox: Sandbox, journal: BucketJournal, fault: str
) -> None:
    sandbox.add_fault("status", fault)
    with pytest.raises(WanRefusedError, match="request= names request req-typo"):
        submission(journal).take_over(VIDEO, "req-typo")
    assert stage_of(journal) is None


def bought_by(journal: BucketJournal, owner: str) -> int:
    """Return how many purchases a listing of the journal counts for a task instance."""
    return sum(summary.bought_by(owner) for summary in journal.listing())


@pytest.mark.parametrize("settles", ["a person", "the batch"])
def test_a_request_of_the_tasks_own_open_claim_counts_once(
    sandbox: Sandbox, journal: BucketJournal, settles: str
) -> None:
    real = submission(None).obtain(VIDEO)
    journal.write(an_intent(VIDEO, watchers=(OWNER,)), replaces=None)
    if settles == "a person":
        submission(journal).take_over(MINE, real.request_id)
    else:
        submission(journal).record_purchase(MINE, real.request_id)
    assert submission(journal).obtain(MINE).request_id == real.request_id
    assert bought_by(journal, OWNER) == 1
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert (held.record.lost_submissions, held.record.earlier_buyers) == (0, ())


def test_late_recorded_purchase_does_not_replace_another_tasks_request(
    sandbox: Sandbox, journal: BucketJournal
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    late = submission(None).obtain(VIDEO)
    other = submission(journal).obtain(a_video(owner="dag/another/task/-1"))
    for _ in range(2):
        assert submission(journal).record_purchase(MINE, late.request_id).request_id == late.request_id
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.request_id == other.request_id
    assert held.record.earlier_request_ids == (late.request_id,)
    assert (bought_by(journal, OWNER), bought_by(journal, "dag/another/task/-1")) == (1, 1)


def test_a_paid_record_stays_paid(sandbox: Sandbox, journal: BucketJournal) -> None:
    bought = submission(journal).obtain(VIDEO)
    amend(journal, VIDEO.fingerprint, bought.request_id, as_paid, LOG)
    assert amend(journal, VIDEO.fingerprint, "another", as_paid, LOG) is None
    held = journal.read(VIDEO.fingerprint)
    assert held is not None
    assert held.record.succeeded_once
