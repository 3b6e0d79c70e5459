# SPDX-License-Identifier: Apache-2.0
"""The files of a batch in the bucket, next to journal and videos: manifest, plan, checkpoint and status file.

The *plan* lets a batch continue after a wait with the same images even if the dataset has changed, and lets the limits
of a task instance count what an earlier plan bought. Signed addresses are secrets and are left out of it: after a wait
those rows are looked up in the dataset again.

The *checkpoint* is for continuing after a wait in the triggerer. It holds the results and failures of this try, and
what the task knew of the journal when it began to wait, so that a resume costs the same beside any journal. What other
tasks have written since is found by the claim of each purchase. Without a checkpoint nothing is lost or bought twice:
the journal is listed, and a refused image is only submitted again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from logging import Logger
from typing import Any, NamedTuple, Self
from uuid import uuid4

from airflow_provider_wan.batch.plan import Item, Plan
from airflow_provider_wan.batch.results import ImageResult
from airflow_provider_wan.durable.journal import BucketJournal, RecordSummary
from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.model_api.fingerprints import without_signatures
from airflow_provider_wan.model_api.schema import Model, ModelInfo, ModelSchema

_NOT_IN_NAMES = re.compile(r"[^\w.:+=-]+")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_NOT_SAVED = {"address": None, "known": None, "prepared": None}
#: Of the model's page, what a price needs.
_PAGE_FIELDS = ("display_name", "base_price_usd", "price_unit", "pricing_note")
_ITEM_FIELDS = ("fingerprint", "inputs", "object_name", "variation", "row", "copies")


# -- the checkpoint ----------------------------------------------------------------------------------------


def pause_after_s(times: int) -> float:
    """Return the pause after this many failures in a row, in seconds: doubled each time, up to 60 s."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(times - 1, 10))


class RetryState(NamedTuple):
    """An operation that failed and will be retried.

    :param times: failures in a row.
    :param since: when it first failed, in unix seconds.
    :param at: when to try again, in unix seconds.
    """

    times: int = 0
    since: float = 0.0
    at: float = 0.0

    def later(self, now: float, pause_s: float) -> RetryState:
        """Return the state after another failure."""
        return RetryState(self.times + 1, self.since if self.times else now, now + pause_s)


class ApiState(StrEnum):
    """Whether submits may be sent, after an answer to one was lost."""

    #: Submits are sent.
    OPEN = "open"
    #: An answer was lost: a free call is repeated until the API answers.
    ASKING = "asking"
    #: The API answers again: one submit is sent, and the others wait until it is accepted.
    TRIAL = "trial"


@dataclass(slots=True)
class Retries:
    """The operations that failed and will be retried.

    :param api: whether submits may be sent.
    :param lost_trials: trial submits in a row whose answer was lost.
    :param submits: all submits together: the API is down, or limits the rate.
    :param writes: ids of purchased requests that can't be written to the journal.
    :param images: images that can't be fetched, by fingerprint.
    :param results: requests that have finished by their status and have no result, by request id.
    :param prices: when to ask again for the clip from which the price of a combination is learned.
    """

    api: ApiState = ApiState.OPEN
    lost_trials: int = 0
    submits: RetryState = field(default_factory=RetryState)
    writes: RetryState = field(default_factory=RetryState)
    images: dict[str, RetryState] = field(default_factory=dict)
    results: dict[str, RetryState] = field(default_factory=dict)
    prices: dict[str, RetryState] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> Self:
        """Read what :meth:`as_dict` returned; missing entries count as no failure."""
        given = plain or {}
        submits, writes = (RetryState(*given.get(kind) or ()) for kind in ("submits", "writes"))
        images, results, prices = (
            {name: RetryState(*retry) for name, retry in (given.get(kind) or {}).items()}
            for kind in ("images", "results", "prices")
        )
        api = ApiState(given.get("api") or ApiState.OPEN)
        return cls(api, int(given.get("lost_trials") or 0), submits, writes, images, results, prices)


@dataclass(slots=True)
class Checkpoint:
    """The state that a batch needs to continue in another process.

    :param started_at: when this try began, in unix seconds.
    :param results: results of images.
    :param known: what the journal has about the images, by fingerprint; None: it has to be listed.
    :param failures: failed requests of this try, by fingerprint.
    :param inherited: images whose request was bought by an earlier try or another task: if it fails, this try has not
        had a request of its own yet.
    :param done_before: the number of videos that were there when it began.
    :param retries: pending retries: pauses grow, and limits are reached, across waits too.
    :param unwritten: ids of purchased requests that the journal does not name, by fingerprint.
    :param shown_at: when the status file was last written, in unix seconds.
    """

    started_at: float
    results: dict[str, ImageResult] = field(default_factory=dict)
    known: dict[str, RecordSummary] | None = None
    failures: Counter[str] = field(default_factory=Counter)
    inherited: set[str] = field(default_factory=set)
    done_before: int | None = None
    retries: Retries = field(default_factory=Retries)
    unwritten: dict[str, str] = field(default_factory=dict)
    shown_at: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "started_at": self.started_at,
            "results": {name: result.as_dict() for name, result in self.results.items()},
            "known": None if self.known is None else [summary.as_dict() for summary in self.known.values()],
            "failures": dict(self.failures),
            "inherited": sorted(self.inherited),
            "done_before": self.done_before,
            "retries": self.retries.as_dict(),
            "unwritten": self.unwritten,
            "shown_at": self.shown_at,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` returned.

        :raises ValueError, KeyError, TypeError, AttributeError: the data has another form.
        """
        known = plain.get("known")
        summaries = map(RecordSummary.from_dict, known or ())
        return cls(
            float(plain["started_at"]),
            {name: ImageResult.from_dict(result) for name, result in plain["results"].items()},
            None if known is None else {summary.fingerprint: summary for summary in summaries},
            Counter(plain["failures"]),
            set(plain["inherited"]),
            int(plain["done_before"]),
            Retries.from_dict(plain.get("retries")),
            dict(plain.get("unwritten") or {}),
            float(plain.get("shown_at") or 0.0),
        )


# -- the plan ----------------------------------------------------------------------------------------------


def plan_lines(plan: Plan, owner: str, model: Model) -> Iterator[dict[str, Any]]:
    """Return a plan as plain JSON values: fingerprints to remember and the rules, then one line for each video.

    :param owner: the name of the task instance in records.
    :param model: its rules, which a batch applies to its end, whatever the model's page says by then.
    """
    former = [name for name, summary in plan.former.items() if summary.bought_by(owner)]
    yield {"former": former, "model": _model_line(model)}
    for item in plan.items.values():
        yield _item_line(item.takes[0])  # the journal has the later ones
    for result in plan.refused:
        yield {"refused": result.as_dict()}


class SavedPlan:
    """A plan that was saved.

    :param lines: as :func:`plan_lines` returned them.
    :raises ValueError, KeyError, TypeError: the lines have another form.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._model: Mapping[str, Any] | None = None
        self._former: list[str] = []
        self._refused: list[ImageResult] = []
        self._items: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            if "fingerprint" in line:
                self._items[str(line["fingerprint"])] = line
            elif "refused" in line:
                self._refused.append(ImageResult.from_dict(line["refused"]))
            else:
                self._former = [str(fingerprint) for fingerprint in line["former"]]
                self._model = line.get("model")

    @property
    def has_gaps(self) -> bool:
        """Whether there are images with signed addresses, which are not saved."""
        return any(_has_gap(line) for line in self._items.values())

    def fingerprints(self) -> set[str]:
        """Return the fingerprints of this plan and of earlier purchases."""
        return {*self._items, *self._former}

    def model(self, model_id: str, image_field: str | None) -> Model | None:
        """Return the model with the rules that were saved, None if the plan has none.

        :param image_field: the field that takes the source image, as the user says.
        """
        saved = self._model
        if saved is None or saved["model_id"] != model_id:
            return None
        schema = saved["schema"] and ModelSchema(model_id, saved["schema"])
        page = saved["page"] and ModelInfo(model_id, **saved["page"], input_schema=None, raw={})
        return Model(model_id, schema, page, image_field)

    def plan(self, sources: ImageSources, items_now: Mapping[str, Item]) -> Plan:
        """Return the plan, without what the journal knows about it.

        :param sources: opens source images.
        :param items_now: the present dataset, where images with signed addresses are looked up.
        """
        items = {}
        for fingerprint, line in self._items.items():
            source = sources.restored(line["images"], line["row"])
            item = Item(source=source, **{name: line[name] for name in _ITEM_FIELDS})
            items[fingerprint] = items_now.get(fingerprint, item) if _has_gap(line) else item
        return Plan(items, self._refused)


def _model_line(model: Model) -> dict[str, Any]:
    page, schema = model.page, model.schema
    return {
        "model_id": model.model_id,
        "schema": schema and schema.document,
        "page": page and {name: getattr(page, name) for name in _PAGE_FIELDS},
    }


def _has_gap(line: Mapping[str, Any]) -> bool:
    return any(placed["image"]["address"] is None for placed in line["images"])


def _item_line(item: Item) -> dict[str, Any]:
    line = {name: getattr(item, name) for name in _ITEM_FIELDS} | {"images": item.source.saved()}
    # Only inputs and images can hold a signature.
    given = {"inputs": item.inputs, "images": line["images"]}
    unsigned = without_signatures(given)
    if unsigned == given:
        return line
    images = [placed | {"image": _NOT_SAVED} for placed in line["images"]]
    return {**line, "inputs": unsigned["inputs"], "images": images}


# -- the objects in the bucket -----------------------------------------------------------------------------


class BatchFiles:
    """Reads and writes the objects of one batch.

    :param journal: they are beside its records, in subfolders that no listing of records includes.
    :param owner: the name of the task instance in records.
    """

    def __init__(self, journal: BucketJournal, owner: str) -> None:
        self._journal = journal
        stem = f"_notes/{hashlib.sha256(owner.encode()).hexdigest()[:24]}"
        self._checkpoint, self._status, self._plan = f"{stem}.json", f"{stem}.jsonl", f"{stem}.plan.jsonl"
        parts = (_NOT_IN_NAMES.sub("_", part) for part in owner.split("/"))
        self._manifest = f"_manifests/{'/'.join(parts)}.jsonl"

    @property
    def status_uri(self) -> str:
        """The address of the status file, which says how far each image is."""
        return self._journal.uri_of(self._status)

    def write_manifest(self, results: Iterable[ImageResult]) -> str:
        """Write the result of every image, one a line; return the address."""
        self._journal.write_lines(self._manifest, (result.to_json() for result in results))
        return self._journal.uri_of(self._manifest)

    def write_status(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the state of each image, one a line."""
        plain = (json.dumps(line, separators=(",", ":")) for line in lines)
        self._journal.write_lines(self._status, plain, retry_for_s=10.0)

    def write_plan(self, plan: Plan, owner: str, model: Model) -> None:
        """Write the plan, one video a line."""
        lines = plan_lines(plan, owner, model)
        self._journal.write_lines(self._plan, (json.dumps(line, default=str) for line in lines))

    def read_plan(self, log: Logger) -> SavedPlan | None:
        """Return the plan of this task instance; None if it is missing or unusable."""
        try:
            body, _ = self._journal.read_object(self._plan)
            return None if body is None else SavedPlan(json.loads(line) for line in body.splitlines())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("The saved plan of this task can't be used: %s", error)
            return None

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint."""
        self._journal.write_json(self._checkpoint, checkpoint.as_dict())

    def take_checkpoint(self, log: Logger) -> Checkpoint | None:
        """Return the checkpoint; None if it is missing or unusable.

        ``known`` is returned only once: Airflow repeats a resume whose scheduler was killed, and the purchases of the
        first one are in the journal alone.

        :raises WanStorageError: the checkpoint can't be marked as taken.
        """
        try:
            body, generation = self._journal.read_json(self._checkpoint)
            if body is None:
                return None
            checkpoint = Checkpoint.from_dict(body)
        except (WanError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("The checkpoint of this batch can't be used: %s", error)
            return None
        if checkpoint.known is not None:
            taken = {**body, "known": None, "taken": uuid4().hex}
            if not self._journal.write_json(self._checkpoint, taken, replaces=generation):
                checkpoint.known = None
        return checkpoint
