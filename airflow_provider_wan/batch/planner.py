# SPDX-License-Identifier: Apache-2.0
"""Plans a batch: reads the dataset, the journal and the destination. Nothing is bought."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import Logger
from typing import TYPE_CHECKING

from airflow_provider_wan.batch.checkpoint import SavedPlan
from airflow_provider_wan.batch.plan import Item, Plan, open_rows, plan_rows
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.batch.spec import BatchSpec
from airflow_provider_wan.durable.journal import BucketJournal, RecordSummary, as_listed
from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.exceptions import WanError, WanRecordError
from airflow_provider_wan.hooks.gcs import call_limits, storage_errors
from airflow_provider_wan.images.dataset import DatasetReader
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.model_api.fingerprints import take_of
from airflow_provider_wan.model_api.inputs import InputCheck

if TYPE_CHECKING:
    from google.cloud import storage

#: A journal or a folder shared by many batches is listed up to this many names, or this many for each image. Beyond
#: that, the records or objects of this batch are read one by one.
_LIST_AT_LEAST, _LIST_PER_IMAGE = 5_000, 50
_READ_THREADS = 16
_ReadEach = Callable[[Iterable[str]], list[RecordSummary]]


class Planner:
    """Plans one batch.

    :param sources: opens source images.
    """

    def __init__(
        self,
        spec: BatchSpec,
        client: storage.Client,
        journal: BucketJournal,
        sources: ImageSources,
        log: Logger,
    ) -> None:
        self._spec = spec
        self._client = client
        self._journal = journal
        self._sources = sources
        self._log = log
        #: Validates inputs; shared by the whole batch, since it caches its verdicts.
        self.check = InputCheck(sources.model)

    def plan(self, former: Iterable[str] = ()) -> Plan:
        """Return the plan, with what the journal knows about it.

        :param former: fingerprints that this task instance asked for before.
        :raises WanInputError: the dataset can't be read.
        """
        return self._with_bucket(self._read_dataset(), former)

    def plan_again(self, saved: SavedPlan, known: Mapping[str, RecordSummary] | None) -> Plan:
        """Return the plan that was saved before a wait: the dataset may have changed since.

        :param known: what the journal has about it; None: the journal is listed.
        """
        plan = saved.plan(self._sources, self._items_now() if saved.has_gaps else {})
        if known is None:
            return self._with_bucket(plan, saved.fingerprints())
        self._add_known(plan, known, lambda names: [known[name] for name in names if name in known])
        return plan

    def _with_bucket(self, plan: Plan, former: Iterable[str]) -> Plan:
        # Destination first: a video that lands in between is then in the journal listing.
        taken = self._taken({item.object_name for item in plan.items.values()})
        self._add_known(plan, self._summaries(plan.items.keys() | set(former)), self._read_each)
        plan.on_names(self._spec.bucket_name, taken, may_replace=self._spec.if_exists == "overwrite")
        return plan

    def _items_now(self) -> Mapping[str, Item]:
        try:
            return self._read_dataset().items
        except WanError as error:
            self._log.warning("The dataset can't be read any more: %s", error)
            return {}

    def _read_dataset(self) -> Plan:
        spec = self._spec
        columns = self._sources.columns(defaults=spec.inputs, variation=spec.variation, passthrough=spec.passthrough)
        reader = DatasetReader(lambda: self._client, columns)
        return plan_rows(
            open_rows(reader.rows(spec.images), self._sources),
            model=self._sources.model,
            object_name=spec.object_name,
            columns=spec.passthrough,
        )

    # -- the journal ---------------------------------------------------------------------------------------

    def _add_known(self, plan: Plan, known: Mapping[str, RecordSummary], read_each: _ReadEach) -> None:
        """Add what the journal knows about the videos of a plan, and about earlier ones.

        :param read_each: returns the summaries of further takes, where there are any.
        """
        plan.known = {name: summary for name, summary in known.items() if name in plan.items}
        plan.former = {name: summary for name, summary in known.items() if name not in plan.items}
        self._follow_takes(plan, read_each)

    def _follow_takes(self, plan: Plan, read_each: _ReadEach) -> None:
        """Put the latest take in the place of each video that was rejected.

        That is the last one in the journal, or the next one if it may be bought. Earlier ones only count as purchases.
        """
        chains = {name: [each] for name, each in (plan.known | plan.former).items() if each.is_rejected}
        ends = {take_of(first, 2)[1]: first for first in chains}
        while ends:
            found = read_each(ends)
            for summary in found:
                chains[ends[summary.fingerprint]].append(summary)
            goes_on = [ends[summary.fingerprint] for summary in found if summary.is_rejected]
            ends = {take_of(first, len(chains[first]) + 1)[1]: first for first in goes_on}
        latest: dict[str, Item] = {}
        for first, summaries in chains.items():
            plan.former |= {summary.fingerprint: summary for summary in summaries}
            if first in plan.items:
                latest[first] = self._latest_take(plan.items[first], summaries)
        plan.replace(latest)
        for item in latest.values():
            plan.known.pop(item.takes[0].fingerprint)
            if item.fingerprint in plan.former:
                plan.known[item.fingerprint] = plan.former.pop(item.fingerprint)

    def _latest_take(self, item: Item, summaries: Sequence[RecordSummary]) -> Item:
        for number, summary in enumerate(summaries, 1):
            following = summaries[number] if number < len(summaries) else None
            is_there = following is not None and not following.has_failed
            if not summary.is_rejected or not (is_there or number <= self._spec.rebuy_rejected):
                break
            rejection = item.result_of(Outcome.REJECTED, summary)
            item = item.next_take(rejection, self._sources.model.known)
        return item

    def _summaries(self, fingerprints: Collection[str]) -> dict[str, RecordSummary]:
        """List the journal; where it is far larger than the batch, read the records of the batch instead."""
        known: dict[str, RecordSummary] = {}
        most = max(_LIST_AT_LEAST, _LIST_PER_IMAGE * len(fingerprints))
        for number, summary in enumerate(self._journal.listing()):
            if summary.fingerprint in fingerprints:
                known[summary.fingerprint] = summary
            if len(known) == len(fingerprints):
                return known
            if number >= most:
                break
        else:
            return known
        missing = [fingerprint for fingerprint in fingerprints if fingerprint not in known]
        return known | {summary.fingerprint: summary for summary in self._read_each(missing)}

    def _read_each(self, fingerprints: Iterable[str]) -> list[RecordSummary]:
        summaries = []
        for fingerprint, found in self._journal.read_each(fingerprints):
            if isinstance(found, WanRecordError):  # its own image fails when its turn comes
                summaries.append(RecordSummary(fingerprint, Stage.INTENT))
            elif found is not None and (summary := as_listed(found.record)) is not None:
                summaries.append(summary)
        return summaries

    # -- the destination -----------------------------------------------------------------------------------

    def _taken(self, names: Collection[str]) -> set[str]:
        most = max(_LIST_AT_LEAST, _LIST_PER_IMAGE * len(names))
        return names_taken(self._client, self._spec.bucket_name, names, list_at_most=most)


def names_taken(client: storage.Client, bucket_name: str, names: Collection[str], *, list_at_most: int) -> set[str]:
    """Return which of these object names are taken: by one listing, and one by one where that gets too long.

    :param client: a Cloud Storage client.
    :param bucket_name: the destination of the videos.
    :param list_at_most: entries of the listing to read; the folder may hold far more objects than the batch has.
    :raises WanStorageError: the bucket can't be read.
    """
    if not names:
        return set()
    bucket = client.bucket(bucket_name)
    first, last = min(names), max(names)
    prefix = posixpath.commonprefix((first, last))
    found: set[str] = set()
    with storage_errors(f"Listing gs://{bucket_name}/{prefix}"):
        for number, blob in enumerate(
            client.list_blobs(
                bucket,
                prefix=prefix,
                start_offset=first,
                end_offset=last + "!",  # the first name after the last one
                delimiter=None if any("/" in name[len(prefix) :] for name in names) else "/",
                fields="items(name),nextPageToken",
                **call_limits(),
            )
        ):
            if blob.name in names:
                found.add(blob.name)
            if number >= list_at_most:
                return found | _existing(bucket, [name for name in names if name > blob.name])
    return found


def _existing(bucket: storage.Bucket, names: Collection[str]) -> set[str]:
    def exists(name: str) -> bool:
        with storage_errors(f"Checking gs://{bucket.name}/{name}"):
            return bool(bucket.blob(name).exists(**call_limits()))

    with ThreadPoolExecutor(_READ_THREADS, "wan-exists") as pool:
        return {name for name, found in zip(names, pool.map(exists, names), strict=True) if found}
