# SPDX-License-Identifier: Apache-2.0
"""Prepare the rows of a dataset, or plan it: each row is ready, or says why it cannot be used.

Rows stream: a few per worker are in progress, and results are yielded in the dataset's order.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_wan.exceptions import WanDownloadError, WanError, WanInputError, WanStorageError
from airflow_provider_wan.hooks.gcs import (
    TIMEOUT_S,
    check_object_name,
    retry_policy,
    split_gs_uri,
    storage_errors,
)
from airflow_provider_wan.images.check import check, explain
from airflow_provider_wan.images.codecs import BrokenRule, UnusableImageError
from airflow_provider_wan.images.dataset import DatasetRow, PreparedRow, RowError
from airflow_provider_wan.images.dataset_reader import Row
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.prepare import fits_as_it_is
from airflow_provider_wan.images.readers import ImageReader
from airflow_provider_wan.images.source import (
    ImageSource,
    ImageSources,
    InputCheck,
    PlacedImage,
    needs_copy,
    usable_cores,
)
from airflow_provider_wan.model_api.fingerprints import canonical_url
from airflow_provider_wan.model_api.video_spec import make_video_spec

if TYPE_CHECKING:
    from google.cloud import storage

_SPOOLED_BYTES = 1024 * 1024
_CONTENT_TYPE = "application/x-ndjson"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one row can't be used.

    :param image: address of the image, without signature; the row's place if it names no image.
    :param row: the row's place in the dataset.
    :param rule: the rule that it breaks: one of the model (``max_side_px``...), or ``row``, ``inputs``, ``address``,
        ``reachable``, ``image``, ``decodable``.
    :param value: the image's or row's value.
    :param limit: what the rule allows.
    :param message: value and limit in a sentence.
    """

    image: str
    row: str
    rule: str
    value: str | float | None
    limit: str | float | None
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values: one line of the report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that can't be used, with all its problems."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A row that was prepared.

    :param is_fit: whether all its images are sent as they are.
    :param was_prepared: whether earlier runs prepared all of them.
    :param notes: remarks about the source images.
    """

    row: PreparedRow
    is_fit: bool
    was_prepared: bool
    notes: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        """Address of the first image."""
        return self.row.source


@dataclass(frozen=True, slots=True)
class Planned:
    """A row as it was found, before anything is done to it.

    :param is_fit: whether all its images are sent as they are; else they can be fixed.
    :param was_prepared: whether earlier runs have fixed or passed all of them already.
    :param notes: remarks about the source images.
    :param inputs: its inputs, on which the price depends.
    """

    image: str
    fingerprint: str
    is_fit: bool
    was_prepared: bool
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)


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

    def run(self, rows: Iterable[Row]) -> Iterator[Ready | Unusable]:
        """Prepare each row.

        :raises WanStorageError: a bucket cannot be reached, or not be used, which concerns all images.
        """
        return self._each(rows, self._prepare)

    def plan(self, rows: Iterable[Row]) -> Iterator[Planned | Unusable]:
        """Inspect the header of each row's image, and earlier preparations of it; nothing is written."""
        return self._each(rows, self._plan)

    def _each(self, rows: Iterable[Row], function: Any) -> Iterator[Any]:
        for row, result in map_in_order(function, rows, workers=self._workers):
            if isinstance(result, WanStorageError):
                raise result
            if isinstance(result, Exception):
                yield _unusable(row, "image", str(result))
            else:
                yield result

    def _prepare(self, row: Row) -> Ready | Unusable:
        source = self._open(row)
        if isinstance(source, Unusable):
            return source
        assert isinstance(row, DatasetRow)
        inputs = dict(row.inputs)
        images: dict[str, Any] = {}
        done: list[PreparedRow] = []
        notes: list[str] = []
        problems: list[Problem] = []
        was_prepared = True
        for placed in source.placed:
            if self._model.rules_of(placed.input_name) is None:  # a video or audio: nothing to prepare
                _add(inputs, placed, placed.image.address)
                continue
            prepared = placed.image.prepared
            if prepared is None:
                try:
                    prepared, was_before, about = self._prepared(placed)
                except (WanInputError, WanDownloadError) as error:
                    problems += _refused(row, error, placed).problems
                    continue
                was_prepared = was_prepared and was_before
                notes += about
            done.append(prepared)
            if not placed.is_source:
                _add(images, placed, prepared)
        if problems:
            return Unusable(tuple(problems))
        if not done:
            return _unusable(row, "row", "there is no image")
        first = replace(
            done[0],
            inputs=inputs,
            variation=row.variation,
            passthrough=dict(row.passthrough),
            input_name=None if source.image else next(iter(images)),
            images={
                name: tuple(image) if isinstance(image, list) else image for name, image in images.items()
            },
        )
        is_fit = not any(image.changes for image in done)
        return Ready(first, is_fit, was_prepared, tuple(notes))

    def _prepared(self, placed: PlacedImage) -> tuple[PreparedRow, bool, tuple[str, ...]]:
        """Prepare one image; return it, whether an earlier run had prepared it, and the notes about it."""
        reader = self._reader(placed)
        staged, was_prepared = self._sources.prepare(reader, self._sources.recipe(placed.input_name))
        prepared = PreparedRow(
            source=reader.address,
            staged_uri=self._sources.address_of(reader, staged),
            width=staged.width,
            height=staged.height,
            size_bytes=staged.size_bytes,
            sha256=staged.sha256,
            changes=staged.changes,
            identity=reader.identity,
        )
        return prepared, was_prepared, staged.notes

    def _plan(self, row: Row) -> Planned | Unusable:
        source = self._open(row)
        if isinstance(source, Unusable):
            return source
        assert isinstance(row, DatasetRow)
        is_fit, was_prepared, notes = True, True, list[str]()
        problems: list[Problem] = []
        for placed in source.placed:
            if self._model.rules_of(placed.input_name) is None:
                continue
            try:
                fits, was_before, about = self._planned(placed)
            except (WanInputError, WanDownloadError) as error:
                problems += _refused(row, error, placed).problems
                continue
            is_fit, was_prepared = is_fit and fits, was_prepared and was_before
            notes += about
        if problems:
            return Unusable(tuple(problems))
        spec = make_video_spec(
            self._model.model_id,
            row.inputs,
            image=source.image,
            more_images=source.more_images,
            variation=row.variation,
        )
        return Planned(source.shown, spec.fingerprint, is_fit, was_prepared, tuple(notes), row.inputs)

    def _planned(self, placed: PlacedImage) -> tuple[bool, bool, tuple[str, ...]]:
        """Inspect one image; return whether it is sent as it is, whether it was prepared before, and notes about it.

        :raises UnusableImageError: it breaks a rule that can't be fixed.
        """
        if placed.image.prepared is not None:
            return not placed.image.prepared.changes, True, ()
        reader, recipe = self._reader(placed), self._sources.recipe(placed.input_name)
        found = self._sources.find_prepared(reader, recipe)
        if found is not None:
            return not found.changes, True, ()
        facts = inspect(reader)
        broken = check(facts, recipe.rules, too_small=recipe.too_small)
        if hopeless := tuple(rule for rule in broken if not rule.fixable):
            raise UnusableImageError(explain(facts, hopeless), hopeless)
        return fits_as_it_is(facts, recipe.rules) and not needs_copy(reader), False, facts.notes

    def _reader(self, placed: PlacedImage) -> ImageReader:
        assert placed.image.address is not None
        return self._sources.reader_of(placed.image.address, placed.image.known)

    def _open(self, row: Row) -> ImageSource | Unusable:
        """Identify the images of a row, and check its inputs."""
        if isinstance(row, RowError):
            return _unusable(row, "row", row.message)
        try:
            source = self._sources.open(row)
        except WanInputError as error:
            return _unusable(row, "address", str(error))
        problem = self._inputs.problem(row.inputs, source.fields)
        return source if problem is None else _unusable(row, "inputs", str(problem))


def _add(values: dict[str, Any], placed: PlacedImage, value: Any) -> None:
    """Add what belongs to an image to the values by input; a list for an input that was given a list."""
    if placed.is_listed:
        values.setdefault(placed.input_name, []).append(value)
    else:
        values[placed.input_name] = value


@dataclass(slots=True)
class Counts:
    """The result of a preparation or of a plan, in numbers.

    :param fit: usable as they are.
    :param fixed: usable once fixed.
    :param unusable: not usable.
    :param prepared_before: of ``fit`` and ``fixed``: those that an earlier run has prepared.
    :param bought_before: of them: those whose video was bought before.
    :param repeated: of them: those that ask for the same video as an earlier row.
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

    def add(self, result: Ready | Planned | Unusable) -> None:
        """Count one row."""
        if isinstance(result, Unusable):
            self.unusable += 1
            self.by_rule.update({problem.rule for problem in result.problems})
            return
        self.fit += result.is_fit
        self.fixed += not result.is_fit
        self.prepared_before += result.was_prepared

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "images": self.total,
            "usable_as_they_are": self.fit,
            "fixable": self.fixed,
            "unusable": self.unusable,
            "prepared_before": self.prepared_before,
            "by_rule": dict(sorted(self.by_rule.items())),
        }


class Purchases:
    """Which videos of a dataset would be bought: each once, and none that was bought before.

    :param bought: fingerprints that were bought before.
    """

    def __init__(self, bought: Iterable[str]) -> None:
        self._bought: Collection[int] = {_short(fingerprint) for fingerprint in bought}
        self._counted: set[int] = set()

    def add(self, fingerprint: str, counts: Counts) -> bool:
        """Count one video; return whether it would be bought."""
        short = _short(fingerprint)
        if short in self._counted:
            counts.repeated += 1
            return False
        self._counted.add(short)
        counts.bought_before += short in self._bought
        return short not in self._bought


def _short(fingerprint: str) -> int:
    """Shorten a fingerprint for counting: a hundred thousand whole ones would take 15 MB."""
    return int(fingerprint[:15], 16)


def _refused(row: DatasetRow, error: WanInputError | WanDownloadError, placed: PlacedImage) -> Unusable:
    if isinstance(error, UnusableImageError):
        return Unusable(tuple(_problem(row, rule, placed) for rule in error.broken))
    rule = "reachable" if isinstance(error, WanDownloadError) else "image"
    return Unusable((_problem(row, BrokenRule(rule, None, None, str(error), fixable=False), placed),))


def _unusable(row: Row, rule: str, message: str) -> Unusable:
    return Unusable((_problem(row, BrokenRule(rule, None, None, message, fixable=False)),))


def _problem(row: Row, broken: BrokenRule, placed: PlacedImage | None = None) -> Problem:
    address = placed.image.address if placed else row.image if isinstance(row, DatasetRow) else None
    image = canonical_url(address) if address else row.where
    message = (
        broken.message if placed is None or placed.is_source else f"{placed.input_name}: {broken.message}"
    )
    return Problem(image, row.where, broken.rule, broken.value, broken.limit, message)


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
        size = self._report.tell()
        self._report.seek(0)
        uri = self._write("report.jsonl", self._report, size)
        self._report.close()
        return uri

    def _write_chunk(self) -> None:
        body = "".join(self._lines).encode("utf-8", "backslashreplace")
        self._lines.clear()
        self.chunks.append(self._write(f"chunk-{len(self.chunks):05}.jsonl", io.BytesIO(body), len(body)))

    def _write(self, name: str, file: Any, size: int) -> str:
        uri = f"gs://{self._bucket}/{self._prefix}{name}"
        with storage_errors(f"Writing {uri}"):
            self._client.bucket(self._bucket).blob(self._prefix + name).upload_from_file(
                file,
                size=size,
                content_type=_CONTENT_TYPE,
                checksum="crc32c",
                timeout=TIMEOUT_S,
                retry=retry_policy(),
            )
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
