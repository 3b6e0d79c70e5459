# SPDX-License-Identifier: Apache-2.0
"""Prepare the rows of a dataset, or plan it: each row is ready, or says why it cannot be used.

Rows stream: a few per worker are in progress, and results are yielded in the dataset's order.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_wan.exceptions import WanDownloadError, WanError, WanInputError, WanStorageError
from airflow_provider_wan.hooks.gcs import check_object_name, split_gs_uri, storage_errors, upload
from airflow_provider_wan.images.codecs import BrokenRule, UnusableImageError
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.prepare import check, explain, fits_as_it_is
from airflow_provider_wan.images.rows import DatasetRow, PreparedImage, Row, RowError, RowImage
from airflow_provider_wan.images.source import ImageSource, ImageSources, usable_cores
from airflow_provider_wan.model_api.fingerprints import canonical_url
from airflow_provider_wan.model_api.inputs import InputCheck
from airflow_provider_wan.model_api.schema import ImageRules

if TYPE_CHECKING:
    from google.cloud import storage

_SPOOLED_BYTES = 1024 * 1024
#: So many problems, and notes, are kept to be shown.
_SHOWN = 20
_CONTENT_TYPE = "application/x-ndjson"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that can't be used.

    :param problems: why, as lines of the report: ``image`` (its address without signature; the row's place if it names
        no image), ``row`` (its place in the dataset), ``rule`` (one of the model, such as ``max_side_px``, or ``row``,
        ``inputs``, ``address``, ``reachable``, ``image``, ``decodable``), ``value`` of the image or row, ``limit``
        that the rule sets, and ``message``.
    """

    problems: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Usable:
    """A row that can be used.

    :param row: the row; its images are prepared, or in a plan only identified.
    :param is_fit: whether all its images are sent as they are; else they were fixed, or can be.
    :param was_prepared: whether earlier runs prepared all of them.
    :param notes: remarks about the source images.
    :param fingerprint: of its video; empty outside a plan.
    """

    row: DatasetRow
    is_fit: bool
    was_prepared: bool
    notes: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class _UsableImage:
    """The same of one image."""

    image: RowImage
    is_fit: bool
    was_prepared: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, image: RowImage, prepared: PreparedImage) -> _UsableImage:
        image = replace(image, prepared=prepared)
        return cls(image, not prepared.changes, not prepared.is_new, prepared.notes)


class Preparation:
    """Prepares the rows of a dataset, or only inspects them.

    :param sources: opens the images; its staging prefix takes the copies.
    :param workers: threads; each spends most of its time waiting for the network.
    """

    def __init__(self, sources: ImageSources, *, workers: int) -> None:
        self._sources = sources
        self._workers = workers
        self._inputs = InputCheck(sources.model, is_partial=True)
        self._model = model = sources.model.known
        if not model.images:
            raise WanInputError(
                f"No images can be prepared for model {model.model_id}: it takes none, or its page, which states its "
                "rules for images, can't be read. image_field= or schema= helps."
            )

    def run(self, rows: Iterable[Row]) -> Iterator[Usable | Unusable]:
        """Prepare each row.

        :raises WanStorageError: a bucket cannot be reached, or not be used, which concerns all images.
        """
        return self._each(rows, self._prepare)

    def plan(self, rows: Iterable[Row]) -> Iterator[Usable | Unusable]:
        """Inspect the header of each row's image, and earlier preparations of it; nothing is written."""
        return self._each(rows, self._plan)

    def _each(self, rows: Iterable[Row], function: Callable[[Row], Usable | Unusable]) -> Iterator[Usable | Unusable]:
        for row, result in map_in_order(function, rows, workers=self._workers):
            if isinstance(result, WanStorageError):
                raise result
            yield _unusable(row, "image", result) if isinstance(result, WanError) else result

    def _prepare(self, row: Row) -> Usable | Unusable:
        source = self._open(row)
        return source if isinstance(source, Unusable) else self._of_images(source, self._prepare_image)

    def _plan(self, row: Row) -> Usable | Unusable:
        source = self._open(row)
        if isinstance(source, Unusable):
            return source
        result = self._of_images(source, self._plan_image)
        if isinstance(result, Unusable):
            return result
        return replace(result, fingerprint=source.spec().fingerprint)

    def _open(self, row: Row) -> ImageSource | Unusable:
        """Identify the images of a row, and check its inputs."""
        if isinstance(row, RowError):
            return _unusable(row, "row", row.message)
        try:
            source = self._sources.open(row)
        except WanInputError as error:
            return _unusable(row, "address", error)
        problem = self._inputs.problem(row.inputs, source.fields)
        return source if problem is None else _unusable(row, "inputs", problem)

    def _of_images(
        self, source: ImageSource, function: Callable[[RowImage, ImageRules], _UsableImage]
    ) -> Usable | Unusable:
        """Apply a function to each image of a row, and collect the results or all problems."""
        row = source.row
        images, done, problems = list[RowImage](), list[_UsableImage](), list[dict[str, Any]]()
        for image in source.images:
            rules = self._model.rules_of(image.input_name or "")
            if rules is None:  # a video or audio: nothing to prepare
                images.append(image)
                continue
            try:
                done.append(function(image, rules))
                images.append(done[-1].image)
            except UnusableImageError as error:
                problems += [_problem(row, rule, image) for rule in error.broken]
            except WanInputError as error:
                problems += _unusable(row, "image", error, image).problems
            except WanDownloadError as error:
                problems += _unusable(row, "reachable", error, image).problems
        if problems:
            return Unusable(tuple(problems))
        if not done:
            return _unusable(row, "row", "there is no image")
        return Usable(
            replace(row, images=tuple(images)),
            is_fit=all(each.is_fit for each in done),
            was_prepared=all(each.was_prepared for each in done),
            notes=tuple(note for each in done for note in each.notes),
        )

    def _prepare_image(self, image: RowImage, rules: ImageRules) -> _UsableImage:
        prepared = image.prepared or self._sources.prepare(self._sources.reader_of(image), rules)
        return _UsableImage.of(image, prepared)

    def _plan_image(self, image: RowImage, rules: ImageRules) -> _UsableImage:
        if image.prepared is not None:
            return _UsableImage.of(image, image.prepared)
        reader = self._sources.reader_of(image)
        found = self._sources.find_prepared(reader, rules)
        if found is not None:
            return _UsableImage.of(image, found)
        facts = inspect(reader)
        broken = check(facts, rules, too_small=self._sources.options.too_small)
        if hopeless := tuple(rule for rule in broken if not rule.fixable):
            raise UnusableImageError(explain(facts, hopeless), hopeless)
        is_fit = fits_as_it_is(facts, rules) and not reader.needs_copy
        return _UsableImage(image, is_fit, was_prepared=False, notes=facts.notes)


def _unusable(row: Row, rule: str, message: object, image: RowImage | None = None) -> Unusable:
    broken = BrokenRule(rule, None, None, str(message), fixable=False)
    return Unusable((_problem(row, broken, image),))


def _problem(row: Row, broken: BrokenRule, image: RowImage | None = None) -> dict[str, Any]:
    address = image.address if image else row.image if isinstance(row, DatasetRow) else None
    is_named = image is not None and not image.is_source
    return {
        "image": canonical_url(address) if address else row.where,
        "row": row.where,
        "rule": broken.rule,
        "value": broken.value,
        "limit": broken.limit,
        "message": f"{image.input_name}: {broken.message}" if image and is_named else broken.message,
    }


# -- counts ------------------------------------------------------------------------------------------------


class Findings:
    """The result of a preparation or of a plan, in numbers, with the first problems and notes.

    :param bought: fingerprints that were bought before.
    :ivar fit: rows that are usable as they are.
    :ivar fixed: usable once fixed.
    :ivar unusable: not usable.
    :ivar prepared_before: of ``fit`` and ``fixed``: those that an earlier run has prepared.
    :ivar bought_before: of them: those whose video was bought before.
    :ivar repeated: of them: those that ask for the same video as an earlier row.
    :ivar by_rule: how many rows break which rule.
    :ivar problems: the first problems, as in :class:`Unusable`, without ``row`` and ``limit``.
    :ivar notes: the first notes on usable rows, as lines of text.
    :ivar noted: how many usable rows have notes.
    """

    def __init__(self, bought: Iterable[str] = ()) -> None:
        self._bought = {_short(fingerprint) for fingerprint in bought}
        self._planned: set[int] = set()
        self.fit = self.fixed = self.unusable = self.prepared_before = self.bought_before = self.repeated = 0
        self.noted = 0
        self.by_rule: Counter[str] = Counter()
        self.problems: list[dict[str, Any]] = []
        self.notes: list[str] = []

    @property
    def total(self) -> int:
        """All rows."""
        return self.fit + self.fixed + self.unusable

    @property
    def to_buy(self) -> int:
        """Videos that would be bought: each once, and none that was bought before."""
        return self.fit + self.fixed - self.bought_before - self.repeated

    def add(self, result: Usable | Unusable) -> bool:
        """Count one row; return whether a plan would buy its video."""
        if isinstance(result, Unusable):
            self.unusable += 1
            self.by_rule.update({problem["rule"] for problem in result.problems})
            for problem in result.problems[: _SHOWN - len(self.problems)]:
                self.problems.append({name: problem[name] for name in ("image", "rule", "value", "message")})
            return False
        if result.notes:
            self.noted += 1
            if len(self.notes) < _SHOWN:
                self.notes.append(f"{result.row.images[0].shown}: {'; '.join(result.notes)}")
        self.fit += result.is_fit
        self.fixed += not result.is_fit
        self.prepared_before += result.was_prepared
        if not result.fingerprint:
            return False
        short = _short(result.fingerprint)
        if short in self._planned:
            self.repeated += 1
            return False
        self._planned.add(short)
        self.bought_before += short in self._bought
        return short not in self._bought

    def table(self) -> str:
        """Return the first problems as a table for the log."""
        lines = [("image", "rule", "value", "what")]
        for row in self.problems:
            value = "" if row["value"] is None else str(row["value"])
            lines.append((row["image"], row["rule"], value, row["message"]))
        widths = [min(60, max(len(line[column]) for line in lines)) for column in range(3)]
        text = "\n".join("  ".join((*map(str.ljust, line, widths), line[3][:200])) for line in lines)
        return text if self.unusable <= _SHOWN else f"{text}\n... and more, {self.unusable} in all: see the report"

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values."""
        return {
            "images": self.total,
            "usable_as_they_are": self.fit,
            "fixable": self.fixed,
            "unusable": self.unusable,
            "prepared_before": self.prepared_before,
            "by_rule": dict(sorted(self.by_rule.items())),
        }


def _short(fingerprint: str) -> int:
    """Shorten a fingerprint for counting: a hundred thousand whole ones would take 15 MB."""
    return int(fingerprint[:15], 16)


# -- the results in the bucket -----------------------------------------------------------------------------


class Manifests:
    """Writes prepared rows into objects of ``chunk_size`` lines each; the same rows give the same objects.

    :param uri: ``gs://bucket/prefix`` of the objects.
    """

    def __init__(self, client: storage.Client, uri: str, *, chunk_size: int) -> None:
        self._client = client
        self._bucket, prefix = split_gs_uri(uri, name="manifests")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        check_object_name(f"{self._prefix}chunk-00000.jsonl", name="manifests")
        self._chunk_size = chunk_size
        self._lines: list[str] = []
        self._report = tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES)  # noqa: SIM115 - closed by finish()
        #: Addresses of the chunks so far.
        self.chunks: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a prepared row."""
        self._lines.append(_line(row))
        if len(self._lines) >= self._chunk_size:
            self._write_chunk()

    def report(self, problem: Mapping[str, Any]) -> None:
        """Add a line to the report."""
        self._report.write(_line(problem).encode("utf-8", "backslashreplace"))

    def finish(self) -> str:
        """Write the remaining rows and the report; return the address of the report."""
        if self._lines:
            self._write_chunk()
        uri = self._write("report.jsonl", self._report, self._report.tell())
        self._report.close()
        return uri

    def _write_chunk(self) -> None:
        body = "".join(self._lines).encode("utf-8", "backslashreplace")
        self._lines.clear()
        self.chunks.append(self._write(f"chunk-{len(self.chunks):05}.jsonl", body))

    def _write(self, name: str, body: Any, size: int | None = None) -> str:
        uri = f"gs://{self._bucket}/{self._prefix}{name}"
        blob = self._client.bucket(self._bucket).blob(self._prefix + name)
        with storage_errors(f"Writing {uri}"):
            upload(blob, body, size_bytes=size, content_type=_CONTENT_TYPE)
        return uri


def _line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")) + "\n"


# -- threads -----------------------------------------------------------------------------------------------

# Threads, not processes: Pillow releases the interpreter lock while it decodes, scales and encodes, so threads keep all
# cores busy, copy nothing, and work inside an Airflow task, which may not start child processes.


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> Iterator[tuple[Item, Result | WanError]]:
    """Call a function for each item in threads; yield each item with its result, in order.

    :param function: called in a thread. An error of this provider that it raises is yielded as the item's result, so
        it does not affect the other items; any other error ends the run.
    :param items: taken as fast as results are: at most two per worker are in progress.
    :param workers: number of threads; default one per core that this process may use.
    """
    count = workers or usable_cores()
    in_progress: deque[tuple[Item, Future[Result]]] = deque()
    executor = ThreadPoolExecutor(count, thread_name_prefix="wan-images")
    try:
        for item in items:
            in_progress.append((item, executor.submit(function, item)))
            if len(in_progress) >= 2 * count:
                done, future = in_progress.popleft()
                result = _result_of(future)
                yield done, result
        while in_progress:
            done, future = in_progress.popleft()
            result = _result_of(future)
            yield done, result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _result_of(future: Future[Result]) -> Result | WanError:
    try:
        return future.result()
    except WanError as error:
        return error
