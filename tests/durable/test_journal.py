# SPDX-License-Identifier: Apache-2.0
"""The journal keeps records, refuses a write based on an outdated version, and recognizes its own writes."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_wan.durable.journal import (
    BucketJournal,
    RecordConflict,
    TaskStateJournal,
    VersionedRecord,
)
from airflow_provider_wan.durable.record import Record, Stage, new_claim
from airflow_provider_wan.exceptions import WanInputError, WanStorageError
from tests.durable.submission_support import JOURNAL, StoreInMemory, bucket_journal
from tests.sandboxes import Bucket

FINGERPRINT = "ab" * 32
NAME = f"_journal/{FINGERPRINT}.json"


def intent(**changes: Any) -> Record:
    return replace(Record(FINGERPRINT, "some/model", Stage.INTENT, claim=new_claim()), **changes)


def submitted(record: Record, request_id: str = "req-1") -> Record:
    return replace(record, stage=Stage.SUBMITTED, request_id=request_id)


@pytest.fixture
def journal(bucket: Bucket) -> BucketJournal:
    return bucket_journal()


def test_a_record_is_written_replaced_and_deleted(journal: BucketJournal, bucket: Bucket) -> None:
    assert journal.read(FINGERPRINT) is None
    claimed = journal.write(intent(), replaces=None)
    bought = journal.write(submitted(claimed.record), replaces=claimed)
    assert journal.read(FINGERPRINT) == bought
    assert json.loads(bucket.read(NAME))["request_id"] == "req-1"

    journal.forget(claimed)
    assert journal.read(FINGERPRINT) == bought, "it was replaced since, so it is not the one to forget"
    journal.forget(bought)
    assert journal.read(FINGERPRINT) is None


def test_body_and_metadata_are_always_written_together(journal: BucketJournal, bucket: Bucket) -> None:
    claimed = journal.write(intent(), replaces=None)
    journal.write(replace(submitted(claimed.record), cost_usd=0.2), replaces=claimed)
    shown = bucket.objects()[NAME]
    assert shown["metadata"].items() >= {"stage": "submitted", "request_id": "req-1", "cost_usd": "0.2"}.items()
    assert shown["metageneration"] == 1
    assert "bucket.update" not in bucket.calls()
    assert "bucket.patch" not in bucket.calls()


def test_a_second_writer_gets_a_conflict(journal: BucketJournal) -> None:
    claimed = journal.write(intent(), replaces=None)
    with pytest.raises(RecordConflict):
        bucket_journal().write(intent(), replaces=None)
    journal.write(submitted(claimed.record), replaces=claimed)
    with pytest.raises(RecordConflict):
        bucket_journal().write(submitted(claimed.record, "req-2"), replaces=claimed)


def test_a_deleted_record_can_not_be_replaced(journal: BucketJournal, bucket: Bucket) -> None:
    claimed = journal.write(intent(), replaces=None)
    bucket.client.bucket("videos").blob(NAME).delete()
    with pytest.raises(RecordConflict):
        journal.write(submitted(claimed.record), replaces=claimed)


@pytest.mark.parametrize("replacing", [False, True])
def test_a_writer_whose_acknowledgement_was_lost_recognises_its_record(
    journal: BucketJournal, bucket: Bucket, replacing: bool
) -> None:
    before = journal.write(intent(), replaces=None) if replacing else None
    record = submitted(before.record) if before else intent()
    bucket.sandbox.add_fault("bucket.upload", "lost_ack", count=1)
    held = journal.write(record, replaces=before)
    assert held == journal.read(FINGERPRINT)
    assert held.record == record
    assert bucket.objects()[NAME]["writes"] == 1 + replacing


@pytest.mark.parametrize("fault", ["quota", "reset", "status"])
def test_a_short_outage_is_retried(journal: BucketJournal, bucket: Bucket, fault: str) -> None:
    bucket.sandbox.add_fault("bucket.upload", fault, count=1)
    held = journal.write(intent(), replaces=None)
    bucket.sandbox.add_fault("bucket.get", fault, count=1)
    assert journal.read(FINGERPRINT) == held


def test_the_limit_of_one_update_a_second_is_retried(journal: BucketJournal, bucket: Bucket) -> None:
    bucket.sandbox.bucket_control("shape", {"write_interval_s": 1})
    claimed = journal.write(intent(), replaces=None)
    held = journal.write(submitted(claimed.record), replaces=claimed)
    assert journal.read(FINGERPRINT) == held
    statuses = bucket.sandbox.bucket_control("calls")["statuses"]
    assert any("429" in status for status in statuses), statuses


def test_a_refusing_bucket_is_named_with_the_role_that_is_needed(journal: BucketJournal, bucket: Bucket) -> None:
    bucket.sandbox.add_fault("bucket.*", "forbidden")
    with pytest.raises(WanStorageError, match=f"{JOURNAL}/{FINGERPRINT}.json.*storage.objectUser") as read:
        journal.read(FINGERPRINT)
    assert not read.value.retry_helps, "only a person can help"
    with pytest.raises(WanStorageError, match="Writing"):
        journal.write(intent(), replaces=None)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"{}", b'{"stage": "submitted", "fingerprint": "x", "model_id": "m"}', b"\xff\xfe"],
)
def test_an_unreadable_record_stops_every_purchase(journal: BucketJournal, bucket: Bucket, body: bytes) -> None:
    bucket.put(NAME, body)
    with pytest.raises(WanStorageError, match="Nothing is bought while it exists"):
        journal.read(FINGERPRINT)


def test_a_record_under_the_name_of_another_is_refused(journal: BucketJournal, bucket: Bucket) -> None:
    journal.write(submitted(intent()), replaces=None)
    other = "cd" * 32
    bucket.put(f"_journal/{other}.json", bucket.read(NAME))
    with pytest.raises(WanStorageError, match=FINGERPRINT):
        journal.read(other)


def test_one_of_many_concurrent_claims_succeeds(bucket: Bucket) -> None:
    together = threading.Barrier(8)
    won: list[VersionedRecord] = []
    lost: list[Exception] = []

    def claim() -> None:
        journal = bucket_journal()
        together.wait()
        try:
            won.append(journal.write(intent(), replaces=None))
        except RecordConflict as error:
            lost.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert bucket_journal().read(FINGERPRINT) == won[0]


def test_the_age_of_a_claim_is_by_the_buckets_clock(journal: BucketJournal, bucket: Bucket) -> None:
    claimed = journal.write(intent(claimed_at="1999-01-01T00:00:00.000+00:00"), replaces=None)
    assert -1 <= journal.age_s(claimed) < 60, "whatever the writer's clock says"
    journal.write(submitted(claimed.record), replaces=claimed)
    assert journal.age_s(claimed) == 0, "another version is another age"
    bucket.sandbox.add_fault("bucket.*", "status", status=503)
    assert journal.age_s(claimed) == 0, "in doubt it is young"


def test_a_listing_shows_stages_without_reading_records(journal: BucketJournal, bucket: Bucket) -> None:
    journal.write(submitted(intent()), replaces=None)
    bucket.put("_journal/notes.txt", b"hello")
    bucket.put("_journal/deeper/x.json", b"{}", stage="landed")
    bucket.put("_journalist.json", b"{}", stage="landed")
    many = {"bucket": "videos", "prefix": "_journal/", "suffix": ".json", "count": 2300, "text": "{}"}
    bucket.sandbox.bucket_control("seed", {**many, "metadata": {"stage": "landed"}})

    reads = bucket.calls().get("bucket.get", 0)
    stages = {each.fingerprint: each.stage for each in journal.listing()}
    assert stages.pop(FINGERPRINT) is Stage.SUBMITTED
    assert len(stages) == 2300
    assert set(stages.values()) == {Stage.LANDED}
    assert bucket.calls().get("bucket.get", 0) == reads


@pytest.mark.parametrize("uri", ["gs://videos", "gs://videos/", "gs://videos/a/b/", "gs://videos/ü x/%2F?#"])
def test_any_prefix_works(bucket: Bucket, uri: str) -> None:
    journal = bucket_journal(uri)
    held = journal.write(intent(), replaces=None)
    assert bucket_journal(uri).read(FINGERPRINT) == held
    assert [each.fingerprint for each in journal.listing()] == [FINGERPRINT]


@pytest.mark.parametrize(
    "uri",
    ["videos/x", "s3://videos/x", "gs://", "gs:///x", "gs://videos/../x", "gs://videos/a\nb", "gs://V!/x"],
)
def test_an_invalid_journal_address_is_named(bucket: Bucket, uri: str) -> None:
    with pytest.raises(WanInputError, match="journal="):
        bucket_journal(uri)


# -- Airflow's task state store ----------------------------------------------------------------------------


@pytest.fixture
def store() -> StoreInMemory:
    return StoreInMemory()


def test_a_tasks_record_survives_its_tries(store: StoreInMemory) -> None:
    claimed = TaskStateJournal(store).write(intent(), replaces=None)
    bought = TaskStateJournal(store).write(submitted(claimed.record), replaces=claimed)
    assert TaskStateJournal(store).read(FINGERPRINT) == bought
    TaskStateJournal(store).forget(claimed)
    assert TaskStateJournal(store).read(FINGERPRINT) == bought
    TaskStateJournal(store).forget(bought)
    assert TaskStateJournal(store).read(FINGERPRINT) is None


def test_a_process_that_was_cleared_does_not_overwrite_its_successor(store: StoreInMemory) -> None:
    old = TaskStateJournal(store).write(intent(), replaces=None)
    new = TaskStateJournal(store).write(intent(), replaces=old)
    with pytest.raises(RecordConflict):
        TaskStateJournal(store).write(submitted(old.record), replaces=old)
    with pytest.raises(RecordConflict):
        TaskStateJournal(store).write(intent(), replaces=None)
    assert TaskStateJournal(store).read(FINGERPRINT) == new


@pytest.mark.parametrize("value", [42, "req-1", [], {}, {"stage": "landed"}])
def test_an_unreadable_record_in_the_store_stops_every_purchase(store: StoreInMemory, value: Any) -> None:
    store.set(TaskStateJournal.KEY, value)
    with pytest.raises(WanStorageError, match="Nothing is bought while it exists"):
        TaskStateJournal(store).read(FINGERPRINT)


def test_a_store_that_is_out_is_a_storage_error(store: StoreInMemory) -> None:
    journal = TaskStateJournal(store)
    held = journal.write(intent(), replaces=None)
    store.trouble = ConnectionError("the API server is restarting")
    with pytest.raises(WanStorageError, match="API server is restarting"):
        journal.read(FINGERPRINT)
    with pytest.raises(WanStorageError):
        journal.write(submitted(held.record), replaces=held)
    with pytest.raises(WanStorageError):
        journal.forget(held)


def test_inputs_that_are_too_large_for_the_store_are_left_out(store: StoreInMemory) -> None:
    journal = TaskStateJournal(store)
    held = journal.write(intent(inputs={"text": "x" * 70_000}), replaces=None)
    assert len(store.values[TaskStateJournal.KEY]) < 65_536
    journal.write(submitted(held.record), replaces=held)


def test_a_young_claim_never_counts_as_old_by_a_workers_clock(store: StoreInMemory) -> None:
    journal = TaskStateJournal(store)
    held = journal.write(intent(claimed_at="2999-01-01T00:00:00.000+00:00"), replaces=None)
    assert journal.age_s(held) == 0
    long_ago = VersionedRecord(replace(held.record, claimed_at="1999-01-01T00:00:00.000+00:00"))
    assert journal.age_s(long_ago) > 1e6
