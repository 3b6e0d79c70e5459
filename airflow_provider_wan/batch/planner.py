# SPDX-License-Identifier: Apache-2.0
"""What a batch is to do, and the plan of it: images, journal and price are asked, and nothing is bought."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.batch.budget import Limits
from airflow_provider_wan.batch.destination import names_taken
from airflow_provider_wan.batch.plan import InputCheck, Item, Plan, plan_rows
from airflow_provider_wan.batch.results import MaxFailures
from airflow_provider_wan.batch.saved_plan import SavedPlan
from airflow_provider_wan.batch.sources import open_rows
from airflow_provider_wan.batch.values import BatchLimits
from airflow_provider_wan.durable.decide import OnUnknownSubmission
from airflow_provider_wan.durable.journal import BucketJournal, RecordSummary, as_listed
from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.exceptions import WanError, WanRecordError
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.images.dataset import Columns
from airflow_provider_wan.images.dataset_reader import DatasetReader
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.landing.landing import IfExists
from airflow_provider_wan.model_api.inputs import clip_seconds, load_schema
from airflow_provider_wan.model_api.values import ModelInfo

if TYPE_CHECKING:
    from google.cloud import storage

#: A journal of many batches is listed up to this many records, or so many for each image; beyond that the records
#: of the wanted images are read one by one.
_LIST_AT_LEAST, _LIST_PER_IMAGE = 5_000, 50
_READ_THREADS = 16


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What a batch is to do.

    :param images: whatever :class:`~airflow_provider_wan.images.dataset_reader.DatasetReader` reads.
    :param inputs: the inputs that all rows share, less what rows say themselves.
    :param object_name: see :func:`~airflow_provider_wan.batch.plan.plan_rows`.
    :param journal: ``gs://bucket/prefix``.
    """

    images: Any
    bucket_name: str
    object_name: str
    journal: str
    model_id: str
    pace: BatchLimits
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    price_usd: float | None = None
    max_failures: MaxFailures = field(default_factory=lambda: MaxFailures(count=0))
    on_unknown_submission: OnUnknownSubmission = "fail"
    resolve: Mapping[str, str] = field(default_factory=dict)
    if_exists: IfExists = "skip"
    max_size_bytes: int = 2 * 1024**3


class Planner:
    """Plans one batch.

    :param sources: opens source images.
    """

    def __init__(
        self,
        spec: BatchSpec,
        hook: WanHook,
        client: storage.Client,
        journal: BucketJournal,
        sources: ImageSources,
        log: Logger,
    ) -> None:
        self._spec = spec
        self._hook = hook
        self._client = client
        self._journal = journal
        self._sources = sources
        self._log = log
        self._model: ModelInfo | None = None
        #: Validates inputs; for all who do that for this batch, since it remembers what it has seen.
        self.check = InputCheck(spec.model_id, sources.input_name)

    def plan(self, former: Iterable[str] = ()) -> Plan:
        """Tell what is wanted, and what the journal knows of it.

        :param former: fingerprints of what the task instance has wanted before.
        :raises WanInputError: what is wanted can't be read.
        """
        plan = self._wanted()
        # In this order: what lands in between is then known to the journal, whoever lands it.
        taken = self._taken({item.object_name for item in plan.items.values()})
        self._look_up(plan, former)
        plan.on_names(self._spec.bucket_name, taken, may_replace=self._spec.if_exists == "overwrite")
        return plan

    def plan_again(self, noted: SavedPlan) -> Plan:
        """Tell what was wanted before a wait, whatever the dataset is by now, and what the journal knows of it now."""
        plan = noted.plan(self._sources, self._wanted_now() if noted.has_gaps else {})
        names = {one: plan.items[one].object_name for one in noted.missing if one in plan.items}
        taken = self._taken(set(names.values()))
        self._look_up(plan, noted.fingerprints())
        missing = {one for one, name in names.items() if name not in taken}
        plan.there = set(plan.landed_in(self._spec.bucket_name)) - missing
        return plan

    def _wanted_now(self) -> Mapping[str, Item]:
        try:
            return self._wanted().items
        except WanError as error:
            self._log.warning("The dataset can't be read any more: %s", error)
            return {}

    def _wanted(self) -> Plan:
        spec = self._spec
        schema = load_schema(spec.model_id)
        known_inputs = None if schema is None else set(schema.fields) - {self._sources.input_name}
        columns = Columns(
            inputs=known_inputs,
            defaults=spec.inputs,
            variation=spec.variation,
            passthrough=spec.passthrough,
        )
        reader = DatasetReader(lambda: self._client, columns)
        return plan_rows(
            open_rows(reader.rows(spec.images), self._sources),
            model_id=spec.model_id,
            image_field=self._sources.input_name,
            object_name=spec.object_name,
            columns=spec.passthrough,
        )

    def _look_up(self, plan: Plan, former: Iterable[str]) -> None:
        known = self._listed(plan.items.keys() | set(former))
        plan.known = {one: listed for one, listed in known.items() if one in plan.items}
        plan.former = {one: listed for one, listed in known.items() if one not in plan.items}

    def _taken(self, names: Collection[str]) -> set[str]:
        most = max(_LIST_AT_LEAST, _LIST_PER_IMAGE * len(names))
        return names_taken(self._client, self._spec.bucket_name, names, list_at_most=most)

    def _listed(self, wanted: Collection[str]) -> dict[str, RecordSummary]:
        """List the journal; where it is far larger than the batch, read what is wanted instead."""
        known: dict[str, RecordSummary] = {}
        most = max(_LIST_AT_LEAST, _LIST_PER_IMAGE * len(wanted))
        for number, listed in enumerate(self._journal.listing()):
            if listed.fingerprint in wanted:
                known[listed.fingerprint] = listed
            if len(known) == len(wanted):
                return known
            if number >= most:
                break
        else:
            return known
        missing = [one for one in wanted if one not in known]
        with ThreadPoolExecutor(_READ_THREADS, "wan-read") as pool:
            read_again = pool.map(self._read, missing)
            known.update((listed.fingerprint, listed) for listed in read_again if listed is not None)
        return known

    def _read(self, fingerprint: str) -> RecordSummary | None:
        try:
            held = self._journal.read(fingerprint)
        except WanRecordError:  # something stands there, and ends its own image when that comes to its turn
            return RecordSummary(fingerprint, Stage.INTENT)
        return None if held is None else as_listed(held.record)

    def find_price(self) -> float | None:
        """Find out what is charged for a request, or for a second of it, in USD; None where that is not known and no
        limit needs it.

        :raises WanError: a limit needs it, and the model's page can't be read.
        """
        spec = self._spec
        if spec.price_usd is not None:
            return spec.price_usd
        try:
            self._model = self._hook.get_model(spec.model_id)
        except WanError as error:
            if spec.limits.max_cost_usd is not None:
                raise
            self._log.info("What a request costs is not known: %s", error)
            return None
        return self._model.base_price_usd or None

    def price_of(self, plan: Plan) -> float | None:
        """Give what a request of this plan costs at most, in USD; None where that is not known.

        Where a second has a price, the longest clip counts for all: no limit is passed because a row is longer.
        """
        if self._model is None:
            return self._spec.price_usd
        seconds = self._longest_clip_s(plan) if self._model.is_priced_by_the_second else None
        return self._model.price_of(seconds) or None

    def _longest_clip_s(self, plan: Plan) -> float | None:
        model_id = self._spec.model_id
        wanted = (item.inputs for item in plan.to_do() if self.check.problem(item) is None)
        lengths = {clip_seconds(model_id, inputs) for inputs in wanted} or {clip_seconds(model_id, {})}
        return None if None in lengths else max(filter(None, lengths))
