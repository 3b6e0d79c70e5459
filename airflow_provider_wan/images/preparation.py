# SPDX-License-Identifier: Apache-2.0
"""A dataset made ready, or looked at before that: each row prepared, or told why it can't be used.

Rows stream: a few a worker are under way, and what is done is given on in the dataset's order.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError, WanStorageError
from airflow_provider_wan.images.check import check
from airflow_provider_wan.images.dataset import DatasetRow, RowError
from airflow_provider_wan.images.dataset_reader import Row
from airflow_provider_wan.images.many import map_in_order
from airflow_provider_wan.images.origins import BucketOrigin, Origin
from airflow_provider_wan.images.prepare import fits_as_it_is
from airflow_provider_wan.images.rows import PreparedRow
from airflow_provider_wan.images.source import ImageSources, look, needs_copy
from airflow_provider_wan.model_api.inputs import canonical_url, load_schema, validate_inputs
from airflow_provider_wan.model_api.video_spec import SourceImage, make_video_spec

#: Fills in for inputs that a dataset's rows need not have: whoever submits them gives the rest.
_FILLING = "x"
_SEEN_INPUTS = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one row can't be used.

    :param image: address of the image, without signature; the row's place where there is none.
    :param row: the row's place in the dataset.
    :param rule: what it breaks: a rule of the model (``max_side_px``...), or ``row``, ``inputs``, ``address``,
        ``reachable``, ``image``, ``decodable``.
    :param value: what it has.
    :param limit: what is allowed.
    :param message: both in a sentence.
    """

    image: str
    row: str
    rule: str
    value: str | int | None
    limit: str | int | None
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain JSON values: one line of the report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that can't be used, with all that is wrong with it."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A row that was prepared.

    :param was_there: whether an earlier run had done it.
    """

    row: PreparedRow
    was_there: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """A row as it was found, before anything is done to it.

    :param is_fit: whether it is sent as it is; else it can be fixed.
    :param was_prepared: whether an earlier run has fixed or passed it already.
    """

    fingerprint: str
    is_fit: bool
    was_prepared: bool


class Preparation:
    """Prepares the rows of a dataset, or only looks at them.

    :param sources: opens the images; its staging prefix takes the copies.
    :param model_id: the model.
    :param workers: threads; most of the time of each is waiting for the network.
    """

    def __init__(self, sources: ImageSources, model_id: str, *, workers: int) -> None:
        self._sources = sources
        self._model_id = model_id
        self._workers = workers
        self._check_inputs = functools.lru_cache(_SEEN_INPUTS)(self._checked)
        _ = sources.recipe  # refuses a model of whose images nothing is known

    def run(self, rows: Iterable[Row]) -> Iterator[Ready | Unusable]:
        """Prepare each row.

        :raises WanStorageError: a bucket is out, or not allowed: that is no fault of one image.
        """
        return self._each(rows, self._prepare)

    def look(self, rows: Iterable[Row]) -> Iterator[Looked | Unusable]:
        """Look at each row's header, and at what earlier runs have left; nothing is written."""
        return self._each(rows, self._look)

    def _each(self, rows: Iterable[Row], function: Any) -> Iterator[Any]:
        for row, result in map_in_order(function, rows, workers=self._workers):
            if isinstance(result, WanStorageError):
                raise result
            if isinstance(result, Exception):
                yield _unusable(row, "image", None, str(result))
            else:
                yield result

    def _prepare(self, row: Row) -> Ready | Unusable:
        wrong = self._wrong(row)
        if wrong is not None:
            return wrong
        assert isinstance(row, DatasetRow)
        if row.prepared is not None:
            return Ready(replace(row.prepared, inputs=dict(row.inputs), variation=row.variation), True)
        origin = self._open(row)
        if isinstance(origin, Unusable):
            return origin
        try:
            staged, was_there = self._sources.prepare(origin)
        except WanDownloadError as error:
            return _unusable(row, "reachable", None, str(error))
        except WanInputError as error:
            return self._diagnosed(row, origin, error)
        return Ready(
            PreparedRow(
                source=origin.address,
                staged_uri=self._sources.address_of(origin, staged),
                width=staged.width,
                height=staged.height,
                size_bytes=staged.size_bytes,
                sha256=staged.sha256,
                changes=staged.changes,
                identity=origin.identity,
                inputs=dict(row.inputs),
                variation=row.variation,
                passthrough=dict(row.passthrough),
            ),
            was_there,
        )

    def _look(self, row: Row) -> Looked | Unusable:
        wrong = self._wrong(row)
        if wrong is not None:
            return wrong
        assert isinstance(row, DatasetRow)
        if row.prepared is not None:
            return Looked(self._fingerprint(row, row.prepared.identity), not row.prepared.changes, True)
        origin = self._open(row)
        if isinstance(origin, Unusable):
            return origin
        rules = self._sources.recipe.rules
        try:
            found = self._found_before(origin)
            if found is not None:
                return Looked(self._fingerprint(row, origin.identity), not found, True)
            facts = look(origin)
        except WanDownloadError as error:
            return _unusable(row, "reachable", None, str(error))
        except WanInputError as error:
            return _unusable(row, "image", None, str(error))
        broken = check(facts, rules, too_small=self._sources.recipe.too_small)
        hopeless = [rule for rule in broken if not rule.fixable]
        if hopeless:
            return Unusable(
                tuple(_problem(row, rule.rule, rule.value, rule.message, rule.limit) for rule in hopeless)
            )
        is_fit = fits_as_it_is(facts, rules) and not needs_copy(origin)
        return Looked(self._fingerprint(row, origin.identity), is_fit, False)

    def _wrong(self, row: Row) -> Unusable | None:
        """Say what is wrong with a row before its image is looked for."""
        if isinstance(row, RowError):
            return _unusable(row, "row", None, row.message)
        wrong = self._check_inputs(json.dumps(dict(row.inputs), sort_keys=True, default=str))
        return None if wrong is None else _unusable(row, "inputs", None, wrong)

    def _open(self, row: DatasetRow) -> Origin | Unusable:
        try:
            origin = self._sources.origin_of(row.image, row.known)
            if isinstance(origin, BucketOrigin):
                _ = origin.identity  # of a composite object it has to be read, and that can fail
            return origin
        except WanInputError as error:
            return _unusable(row, "address", None, str(error))

    def _checked(self, inputs: str) -> str | None:
        """Say what is wrong with the inputs that a row has; those it has not may still come."""
        schema = load_schema(self._model_id)
        filling = dict.fromkeys(schema.required, _FILLING) if schema else {}
        image = {self._sources.input_name: "https://storage.googleapis.com/image"}
        try:
            validate_inputs(self._model_id, {**filling, **json.loads(inputs), **image})
        except WanInputError as error:
            return str(error)
        return None

    def _fingerprint(self, row: DatasetRow, identity: str | None) -> str:
        image = SourceImage(self._sources.input_name, canonical_url(row.image), identity)
        inputs = {name: value for name, value in row.inputs.items() if name != image.input_name}
        spec = make_video_spec(self._model_id, inputs, image=image, variation=row.variation, validate=False)
        return spec.fingerprint

    def _found_before(self, origin: Origin) -> tuple[str, ...] | None:
        """Give what an earlier run has changed, None where there was none."""
        staging, identity = self._sources.staging, origin.identity
        if staging is None or identity is None:
            return None
        found = staging.find(self._sources.recipe.key(identity), copy=needs_copy(origin))
        return found.changes if found is not None else None

    def _diagnosed(self, row: DatasetRow, origin: Origin, error: WanInputError) -> Unusable:
        """Name the rule behind a refusal: a second look at the header tells."""
        rules = self._sources.recipe.rules
        try:
            facts = look(origin)
        except (WanInputError, WanDownloadError):
            return _unusable(row, "image", None, str(error))
        hopeless = [
            rule for rule in check(facts, rules, too_small=self._sources.recipe.too_small) if not rule.fixable
        ]
        if not hopeless:
            return _unusable(row, "decodable", facts.format, str(error))
        return Unusable(
            tuple(_problem(row, rule.rule, rule.value, rule.message, rule.limit) for rule in hopeless)
        )


@dataclass(slots=True)
class Counts:
    """What became of a dataset's rows, or would.

    :param fit: usable as they are.
    :param fixed: usable once fixed.
    :param unusable: not usable.
    :param prepared_before: of ``fit`` and ``fixed``: those that an earlier run has prepared.
    :param bought_before: of them: those whose video is bought already.
    :param repeated: of them: those that want the same video as a row before.
    :param by_rule: how many rows break which rule.
    """

    fit: int = 0
    fixed: int = 0
    unusable: int = 0
    prepared_before: int = 0
    bought_before: int = 0
    repeated: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """All rows."""
        return self.fit + self.fixed + self.unusable

    @property
    def to_buy(self) -> int:
        """Videos that would be bought."""
        return self.fit + self.fixed - self.bought_before - self.repeated

    def saw(self, one: Ready | Looked | Unusable) -> None:
        """Count one row."""
        if isinstance(one, Unusable):
            self.unusable += 1
            self.by_rule.update({problem.rule for problem in one.problems})
            return
        is_fit = one.is_fit if isinstance(one, Looked) else not one.row.changes
        self.fit += is_fit
        self.fixed += not is_fit
        self.prepared_before += one.was_prepared if isinstance(one, Looked) else one.was_there

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain JSON values."""
        return {
            "images": self.total,
            "usable_as_they_are": self.fit,
            "fixable": self.fixed,
            "unusable": self.unusable,
            "prepared_before": self.prepared_before,
            "by_rule": dict(sorted(self.by_rule.items())),
        }


class Wishes:
    """Which videos of a dataset would be bought: each once, and none that is bought already.

    :param bought: fingerprints that were bought before.
    """

    def __init__(self, bought: Iterable[str]) -> None:
        self._bought: Collection[int] = {_short(one) for one in bought}
        self._wanted: set[int] = set()

    def take(self, fingerprint: str, counts: Counts) -> None:
        """Count one wish."""
        short = _short(fingerprint)
        if short in self._wanted:
            counts.repeated += 1
            return
        self._wanted.add(short)
        counts.bought_before += short in self._bought


def _short(fingerprint: str) -> int:
    """A hundred thousand whole ones would take 15 MB; these are for counting only."""
    return int(fingerprint[:15], 16)


def _unusable(row: Row, rule: str, value: str | int | None, message: str) -> Unusable:
    return Unusable((_problem(row, rule, value, message, None),))


def _problem(row: Row, rule: str, value: str | int | None, message: str, limit: str | int | None) -> Problem:
    where = f"{row.origin}, line {row.line}" if row.line else row.origin
    image = canonical_url(row.image) if isinstance(row, DatasetRow) else where
    return Problem(image, where, rule, value, limit, message)
