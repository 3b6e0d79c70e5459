# SPDX-License-Identifier: Apache-2.0
"""The record of one request: the facts that a later try needs to continue with it, and the origin of its video.

The journal in a bucket, Airflow's task state store and the JSON object next to each video share this schema. It is one
flat JSON object, so that a table can be loaded from many records.
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
from airflow_provider_wan.model_api.values import check_request_id

SCHEMA = 1
#: The folder for videos that a check has rejected, beside the accepted ones.
QUARANTINE = "_rejected"
_OPTIONAL = ("facts", "verdict")


class Stage(StrEnum):
    """The last known state of a request."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LANDED = "landed"


@dataclass(frozen=True, slots=True)
class LandedVideo:
    """One video in a bucket.

    :param crc32c: base64, as in Cloud Storage.
    :param generation: the object's generation at landing.
    :param facts: width, height, duration and more, as ``landing.probe.VideoFacts`` describes them; None: not read.
    :param verdict: ``status`` (``good`` or ``bad``), ``reasons`` and ``detail`` of its checks; None: not checked.
    """

    uri: str
    bucket: str
    object_name: str
    size_bytes: int
    crc32c: str
    generation: int
    content_type: str
    request_id: str
    facts: Mapping[str, Any] | None = field(default=None, hash=False)
    verdict: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def is_bad(self) -> bool:
        """Whether a check found something wrong."""
        return self.verdict is not None and self.verdict.get("status") == "bad"

    @property
    def is_rejected(self) -> bool:
        """Whether it is in quarantine."""
        return self.object_name.split("/")[-2:-1] == [QUARANTINE]

    def as_dict(self) -> dict[str, Any]:
        """Return the video as JSON values, without facts and verdict where there are none."""
        plain = asdict(self)
        return {key: value for key, value in plain.items() if key not in _OPTIONAL or value is not None}


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one request.

    :param fingerprint: sha256 of the video spec; see ``model_api.fingerprints``.
    :param inputs: the inputs as sent, with addresses without their signatures.
    :param image: address of the source image, without signature.
    :param claim: a random id for each attempt at a POST, so that a writer whose acknowledgement was lost recognises
        its own intent.
    :param lost_submissions: submits before this one that were sent again although their outcome was never known.
    :param succeeded_once: whether it was ever seen succeeded, or ended with its result gone: it was paid for.
    :param watchers: the owners: task instances that depend on this request. A killed one cancels it only if it is
        the only one.
    :param earlier_request_ids: failed, cancelled or vanished requests of the same fingerprint, oldest first.
    :param earlier_buyers: the task instances that made the purchases before this one, including those whose answer
        was lost, oldest first.
    :param videos: the landed videos.
    :param taken_over: whether a person named the request with ``request=``: another task may have submitted it.
    :param digital_source_type: how the videos were made, as a term of IPTC's vocabulary; set when they land.
    :param extra: keys of a later version, kept when the record is rewritten.
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
    taken_over: bool = False
    digital_source_type: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        text = json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate can only be written escaped
            text = json.dumps(self.as_dict(), separators=(",", ":"))
        return text

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        plain = asdict(self)
        extra = plain.pop("extra")
        if not plain["taken_over"]:
            del plain["taken_over"]
        if plain["digital_source_type"] is None:
            del plain["digital_source_type"]
        plain["watchers"] = list(self.watchers)
        plain["earlier_request_ids"] = list(self.earlier_request_ids)
        plain["earlier_buyers"] = list(self.earlier_buyers)
        plain["videos"] = [video.as_dict() for video in self.videos]
        return {"schema": SCHEMA, **plain, "stage": str(self.stage), **extra}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Record:
        """Read what :meth:`as_dict` wrote; keys of a later version are kept in ``extra``.

        :raises ValueError: the text is not a record.
        """
        known = {f.name for f in fields(cls)} - {"extra"}
        try:
            values = {key: value for key, value in plain.items() if key in known}
            values["extra"] = {
                key: value for key, value in plain.items() if key not in known and (key, value) != ("schema", SCHEMA)
            }
            values["stage"] = Stage(values["stage"])
            for name in ("watchers", "earlier_request_ids", "earlier_buyers"):
                values[name] = tuple(values.get(name) or ())
            values["videos"] = tuple(_video(video) for video in values.get("videos") or ())
            record = cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record: {error!r}") from error
        record._check()
        return record

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: the text is not a record.
        """
        plain = json.loads(text)
        if not isinstance(plain, dict):
            raise ValueError("not a record: not a JSON object")
        return cls.from_dict(plain)

    def _check(self) -> None:
        """Refuse values that could cause a wrong purchase or adoption."""
        if not isinstance(self.fingerprint, str):
            raise ValueError("not a record: its fingerprint is not a string")
        if self.request_id is not None:
            try:
                check_request_id(self.request_id)
            except WanInputError as error:
                raise ValueError(f"not a record: {error}") from error
        if (self.request_id is None) != (self.stage is Stage.INTENT):
            raise ValueError(f"not a record: {self.stage} with request id {self.request_id}")
        for moment in (self.claimed_at, self.submitted_at):
            if moment is not None and not isinstance(moment, str):
                raise ValueError(f"not a record: {moment!r} is not a time")
            if moment is not None:
                datetime.fromisoformat(moment)
        if not isinstance(self.lost_submissions, int):
            raise ValueError("not a record: lost_submissions is not a number")

    def with_owner(self, owner: str | None) -> Record:
        """Return this record with one more owner."""
        if owner is None or owner in self.watchers:
            return self
        return replace(self, watchers=(*self.watchers, owner))

    def is_needed_by_others(self, *owners: str) -> bool:
        """Return whether another task than these may depend on the request, so that it must not be cancelled."""
        return self.taken_over or bool(set(self.watchers) - set(owners))

    @property
    def is_bad(self) -> bool:
        """Whether a check found something wrong with one of its videos."""
        return any(video.is_bad for video in self.videos)

    @property
    def verdict(self) -> str | None:
        """``bad`` if one of its videos is, else ``good``; None if none was checked."""
        if all(video.verdict is None for video in self.videos):
            return None
        return "bad" if self.is_bad else "good"

    @property
    def reasons(self) -> tuple[str, ...]:
        """The names of the checks that found something wrong."""
        verdicts = [video.verdict or {} for video in self.videos]
        return tuple(dict.fromkeys(reason for verdict in verdicts for reason in verdict.get("reasons") or ()))

    @property
    def defects(self) -> str | None:
        """What the checks found wrong, in words."""
        return "; ".join(str((video.verdict or {}).get("detail")) for video in self.videos if video.is_bad) or None

    @property
    def is_rejected(self) -> bool:
        """Whether all its videos are in quarantine."""
        return bool(self.videos) and all(video.is_rejected for video in self.videos)

    @property
    def buyer(self) -> str:
        """The task instance that made the latest purchase; empty if unknown."""
        return self.watchers[0] if self.watchers else ""

    def as_not_bought(self) -> Record | None:
        """Return the record before this claim, or None if there was none."""
        if not self.earlier_request_ids:
            return None
        return replace(
            self,
            stage=Stage.FAILED,
            request_id=self.earlier_request_ids[-1],
            earlier_request_ids=self.earlier_request_ids[:-1],
            earlier_buyers=self.earlier_buyers[:-1],
            watchers=self.earlier_buyers[-1:],
        )

    def with_earlier(self, request_id: str, buyer: str) -> Record:
        """Return this record with one more purchase in its history."""
        return replace(
            self,
            earlier_request_ids=(*self.earlier_request_ids, request_id),
            earlier_buyers=(*self.earlier_buyers, buyer),
        )

    def as_new_intent(self, intent: Record) -> Record:
        """Return an intent for another request that keeps the history of this one."""
        earlier = self.earlier_request_ids + ((self.request_id,) if self.request_id else ())
        lost = self.lost_submissions + (self.request_id is None)
        buyers = (*self.earlier_buyers, self.buyer)
        return replace(intent, earlier_request_ids=earlier, lost_submissions=lost, earlier_buyers=buyers)


def _video(plain: Mapping[str, Any]) -> LandedVideo:
    names = [each.name for each in fields(LandedVideo)]
    values: dict[str, Any] = {name: plain.get(name) if name in _OPTIONAL else plain[name] for name in names}
    return LandedVideo(**values)


def new_claim() -> str:
    """Return a new random id for one attempt."""
    return uuid4().hex


def utc_text() -> str:
    """Return the time now as ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
