# SPDX-License-Identifier: Apache-2.0
"""The record of one request: what a later try needs to pick it up, and where its video came from.

One schema and one writer, for the journal in a bucket, for Airflow's task state store, and for the JSON
file beside each video (one flat object, so that a table can be loaded from many of them as they are).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api.calls import check_request_id

SCHEMA = 1


class Stage(StrEnum):
    """How far a request has come, as far as the record knows."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LANDED = "landed"


@dataclass(frozen=True, slots=True)
class LandedVideo:
    """One video in a bucket.

    :param crc32c: base64, as Cloud Storage gives it.
    :param generation: the object's generation at landing.
    """

    uri: str
    bucket: str
    object_name: str
    size_bytes: int
    crc32c: str
    generation: int
    content_type: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one request.

    :param fingerprint: sha256 of what was asked for; see ``model_api.inputs.fingerprint``.
    :param inputs: the inputs as sent, except that signed addresses stand without their signature.
    :param image: address of the source image, without signature.
    :param stage: how far it has come.
    :param claim: who wrote the intent: a new random word for each attempt at a POST, so that a writer
        whose acknowledgement was lost recognises its own writing.
    :param lost_submissions: how many submits before this one went out and were sent again though nobody ever
        got an answer to them.
    :param succeeded_once: whether anybody ever saw that it had succeeded, or had ended and its result was gone:
        then it was paid for, as far as can be told.
    :param watchers: task instances that count on this request; one that is killed cancels it only when
        it is the only one.
    :param earlier_request_ids: requests of the same fingerprint that came to nothing, oldest first.
    :param earlier_buyers: the task instances that made the purchases before this one, those whose answer was lost
        included, oldest first.
    :param videos: what has landed.
    """

    fingerprint: str
    model_id: str
    stage: Stage
    inputs: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    variation: str | None = None
    request_id: str | None = None
    claim: str = ""
    claimed_at: str | None = None
    submitted_at: str | None = None
    created_at: str | None = None
    finished_at: str | None = None
    landed_at: str | None = None
    cost_usd: float | None = None
    error: str | None = None
    lost_submissions: int = 0
    succeeded_once: bool = False
    watchers: tuple[str, ...] = ()
    earlier_request_ids: tuple[str, ...] = ()
    earlier_buyers: tuple[str, ...] = ()
    videos: tuple[LandedVideo, ...] = ()

    def to_json(self) -> str:
        """Write it as one line of JSON."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))
        try:
            text.encode()
        except UnicodeEncodeError:  # half a character in a prompt: readable JSON can't hold it, escaped can
            text = json.dumps(self.as_dict(), separators=(",", ":"))
        return text

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain JSON values."""
        plain = asdict(self)
        plain["watchers"] = list(self.watchers)
        plain["earlier_request_ids"] = list(self.earlier_request_ids)
        plain["earlier_buyers"] = list(self.earlier_buyers)
        plain["videos"] = [asdict(video) for video in self.videos]
        return {"schema": SCHEMA, **plain, "stage": str(self.stage)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Record:
        """Read what :meth:`as_dict` wrote; fields of a later version are passed over.

        :raises ValueError: it is not a record.
        """
        known = {f.name for f in fields(cls)}
        try:
            values = {key: value for key, value in plain.items() if key in known}
            values["stage"] = Stage(values["stage"])
            for name in ("watchers", "earlier_request_ids", "earlier_buyers"):
                values[name] = tuple(values.get(name) or ())
            values["videos"] = tuple(_video(one) for one in values.get("videos") or ())
            record = cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record: {error!r}") from error
        record._check()
        return record

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: it is not a record.
        """
        plain = json.loads(text)
        if not isinstance(plain, dict):
            raise ValueError("not a record: not a JSON object")
        return cls.from_dict(plain)

    def _check(self) -> None:
        """Refuse what could make somebody buy, or adopt, by mistake."""
        if not isinstance(self.fingerprint, str):
            raise ValueError("not a record: its fingerprint is no text")
        if self.request_id is not None:
            try:
                check_request_id(self.request_id)
            except WanInputError as error:
                raise ValueError(f"not a record: {error}") from error
        if (self.request_id is None) != (self.stage is Stage.INTENT):
            raise ValueError(f"not a record: {self.stage} with request id {self.request_id}")
        for moment in (self.claimed_at, self.submitted_at):
            if moment is not None and not isinstance(moment, str):
                raise ValueError(f"not a record: {moment!r} is no moment")
            if moment is not None:
                datetime.fromisoformat(moment)
        if not isinstance(self.lost_submissions, int):
            raise ValueError("not a record: lost_submissions is no number")

    def watched_by(self, watcher: str | None) -> Record:
        """Give this record with one more watcher."""
        if watcher is None or watcher in self.watchers:
            return self
        return replace(self, watchers=(*self.watchers, watcher))

    @property
    def buyer(self) -> str:
        """The task instance that made the latest purchase; empty where it was none."""
        return self.watchers[0] if self.watchers else ""

    def as_new_intent(self, intent: Record) -> Record:
        """Give the intent for another request, keeping what came before."""
        earlier = self.earlier_request_ids + ((self.request_id,) if self.request_id else ())
        lost = self.lost_submissions + (self.request_id is None)
        buyers = (*self.earlier_buyers, self.buyer)
        return replace(intent, earlier_request_ids=earlier, lost_submissions=lost, earlier_buyers=buyers)


def _video(plain: Mapping[str, Any]) -> LandedVideo:
    return LandedVideo(**{f.name: plain[f.name] for f in fields(LandedVideo)})


def new_claim() -> str:
    """Make a word that no other attempt has."""
    return uuid4().hex


def utc_text(at: datetime | None = None) -> str:
    """Write a moment as ISO 8601 in UTC with whole milliseconds; now by default."""
    return (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
