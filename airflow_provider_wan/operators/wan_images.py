# SPDX-License-Identifier: Apache-2.0
"""Prepare the images of a dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator

from airflow_provider_wan.exceptions import WanInputError, WanRefusedError
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.images import TooSmall, image_sources
from airflow_provider_wan.utils.params import (
    DEFAULT_MODEL_ID,
    flag_of,
    given_or_none,
    mapping_of,
    mask_signatures,
    model_of,
)
from airflow_provider_wan.utils.task import bucket_journal

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.images.dataset import DatasetReader
    from airflow_provider_wan.images.preparation import Findings, Preparation
    from airflow_provider_wan.images.rows import Row
    from airflow_provider_wan.images.source import ImageSources
    from airflow_provider_wan.model_api.schema import LazyModel

_FINGERPRINT = re.compile("[0-9a-f]{64}")
_LOG_EVERY = 1000
#: The default of ``[core] max_map_length``.
_USUAL_MAP_LENGTH = 1024


class WanPrepareImagesOperator(BaseOperator):
    """Check all images of a dataset, fix what can be fixed, and write the usable ones into chunk manifests.

    Returns the ``gs://`` addresses of the chunk manifests, ready for ``expand``: JSON lines with ``source``,
    ``staged_uri``, ``width``, ``height``, ``size_bytes``, ``sha256``, ``changes``, ``identity``, and the row's own
    ``inputs`` and ``variation``. The XCom ``summary`` has the counts and the address of the report.

    An image that the model takes as it is stays where it is. Of any other a copy goes to ``staging``, named by the
    source's content and the options of its preparation: a second run finds it, and neither reads nor writes.
    Nothing is bought.

    With ``dry_run`` it returns a plan instead, from the images' headers and earlier preparations, and writes
    nothing: ``model_id``, ``images``, ``usable_as_they_are``, ``fixable``, ``unusable``, ``by_rule``,
    ``prepared_before``, ``headers_only``, ``bought_before``, ``repeated``, ``videos_to_buy``, ``price_usd``
    (the highest), ``expected_cost_usd``, ``price_source`` (``learned`` from real costs next to ``journal``, or only the
    ``base`` price of the model's page), ``pricing_note`` of that page, ``prices`` by combination of inputs, and
    ``problems`` (the first of them). ``headers_only`` counts the images whose pixels were not
    read: a file that is cut off behind its header counts as usable, and is refused before its purchase. Both name the
    objects passed over under a prefix: ``passed_over``, ``passed_over_by_kind`` and ``passed_over_first``.

    A column of a manifest that is named after another image field of the model takes an image like ``image``; the
    prepared row has it in ``images``.

    :param dataset: ``gs://bucket/prefix/`` (its images), the address of a manifest (``.csv``, ``.jsonl`` or
        ``.parquet``, in a bucket or on disk, with columns ``image``, the model's inputs and ``variation``), a
        list of ``gs://`` and ``https://`` addresses or of rows, or a list of all of these. (templated)
    :param staging: ``gs://bucket/prefix`` of the prepared copies. (templated)
    :param manifests: ``gs://bucket/prefix`` of chunk manifests and report; None (default): below ``staging``, by DAG,
        run and task. (templated)
    :param chunk_size: rows in a chunk manifest, default 100.
    :param inputs: inputs of the model for rows without their own. (templated)
    :param variation: the same for the variation, see ``WanSubmitOperator``. (templated)
    :param passthrough: further columns of manifests, which are carried along.
    :param suffixes: which objects of a prefix are images; None (default): all usual suffixes of images, and objects
        whose content type is an image's.
    :param background: the colour behind transparent parts, a colour name or ``#rrggbb``; default white. (templated)
    :param too_small: ``upscale`` (default) enlarges a small image up to 8 times, ``reject`` refuses it.
    :param on_invalid: ``fail`` (default, without retry) if any row can't be used, or ``skip``: leave such rows out, as
        long as their share is at most ``tolerated_share``. The report is written in either case, and prepared images
        are kept.
    :param tolerated_share: with ``skip``, default 0.1. If no row can be used at all, the task fails.
    :param on_empty: what to do if there is no image at all: ``fail`` (default, without retry), or ``skip`` the task
        and what comes after it, as for a day of a partitioned dataset without images.
    :param dry_run: whether only to plan, default False; also a word such as ``"true"`` or ``"on"`` from a template;
        any other word is refused. (templated)
    :param journal: the journal of earlier runs: the plan counts earlier purchases. Use the
        same ``inputs`` and ``variation`` as the submitting task. (templated)
    :param skip_landed: whether to leave out rows whose video has landed by ``journal``, without a look at their images:
        a rerun of a dataset that is complete prepares nothing, returns no chunk, and maps no task. Use the same
        ``inputs`` and ``variation`` as the submitting task. Default False: the batch tells them apart, and makes a
        video again that is missing in the bucket. Also a word, as for ``dry_run``. (templated)
    :param workers: threads, default 8. At most as many images are decoded at once as there are cores, and 256 MiB of
        files are in memory.
    :param model_id: the model whose rules apply, as its page at RunComfy states them; default
        ``wan-ai/wan-2-2/image-to-video``. (templated)
    :param image_field: the input that takes the images of the column ``image``; None (default): found from the model's
        schema. (templated)
    :param schema: as in ``WanSubmitOperator``, where the model's page is wrong. (templated)
    :param require_schema: as there, default False. (templated)
    :param wan_conn_id: for the price, and for whether private addresses may be read; None: without both. (templated)
    :param gcp_conn_id: None (default): Application Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)

    Raises :class:`WanInputError` without retry, and :class:`WanStorageError` for Airflow to retry.
    """

    template_fields: Sequence[str] = (
        "dataset", "staging", "manifests", "inputs", "variation", "background", "dry_run", "journal", "skip_landed",
        "model_id", "image_field", "schema", "require_schema", "wan_conn_id", "gcp_conn_id", "impersonation_chain",
    )  # fmt: skip
    template_fields_renderers: ClassVar[dict[str, str]] = dict.fromkeys(("dataset", "inputs", "schema"), "json")
    ui_color = "#efe4fb"

    def __init__(
        self,
        *,
        dataset: str | Sequence[str | Mapping[str, Any]] | Mapping[str, Any],
        staging: str,
        manifests: str | None = None,
        chunk_size: int = 100,
        inputs: Mapping[str, Any] | str | None = None,
        variation: str | None = None,
        passthrough: Sequence[str] = (),
        suffixes: Sequence[str] | None = None,
        background: str = "white",
        too_small: TooSmall = "upscale",
        on_invalid: Literal["fail", "skip"] = "fail",
        tolerated_share: float = 0.1,
        on_empty: Literal["fail", "skip"] = "fail",
        dry_run: bool | str = False,
        journal: str | None = None,
        skip_landed: bool | str = False,
        workers: int = 8,
        model_id: str = DEFAULT_MODEL_ID,
        image_field: str | None = None,
        schema: Mapping[str, Any] | str | None = None,
        require_schema: bool | str = False,
        wan_conn_id: str | None = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_invalid not in ("fail", "skip"):
            raise ValueError('on_invalid must be "fail" or "skip"')
        if on_empty not in ("fail", "skip"):
            raise ValueError('on_empty must be "fail" or "skip"')
        if not 0 <= tolerated_share <= 1:
            raise ValueError("tolerated_share must be between 0 and 1")
        if chunk_size < 1 or workers < 1:
            raise ValueError("chunk_size and workers must be at least 1")
        self.dataset = dataset
        self.staging = staging
        self.manifests = manifests
        self.chunk_size = chunk_size
        self.inputs = inputs
        self.variation = variation
        self.passthrough = passthrough
        self.suffixes = suffixes
        self.background = background
        self.too_small: TooSmall = too_small
        self.on_invalid = on_invalid
        self.tolerated_share = tolerated_share
        self.on_empty = on_empty
        self.dry_run = dry_run  # replaces an Airflow method that Airflow 3 does not call
        self.journal = journal
        self.skip_landed = skip_landed
        self.workers = workers
        self.model_id = model_id
        self.image_field = image_field
        self.schema = schema
        self.require_schema = require_schema
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain

    def __setattr__(self, key: str, value: Any) -> None:
        """Mask signatures in a rendered template before Airflow stores it."""
        if key in ("dataset", "inputs"):
            mask_signatures(value)
        super().__setattr__(key, value)

    def execute(self, context: Any) -> Any:
        """Prepare the dataset, or plan it."""
        from airflow_provider_wan.hooks.wan import WanHook
        from airflow_provider_wan.images.preparation import Preparation

        with as_airflow_errors(context):
            is_dry_run = flag_of(self.dry_run, name="dry_run")
            conn_id = given_or_none(self.wan_conn_id)
            hook = WanHook(conn_id) if conn_id else None
            sources = image_sources(self, hook, model_of(self, hook), workers=self.workers)
            reader = self._reader(sources)
            preparation = Preparation(sources, workers=self.workers)
            if is_dry_run:
                return self._plan(reader, preparation, sources.model, hook)
            return self._prepare(context, sources, reader, preparation)

    # -- preparing -----------------------------------------------------------------------------------------

    def _prepare(
        self, context: Any, sources: ImageSources, reader: DatasetReader, preparation: Preparation
    ) -> list[str]:
        from airflow_provider_wan.images.preparation import Findings, Manifests, Unusable

        found = Findings()
        written = Manifests(sources.client, self._manifests_uri(context), chunk_size=self.chunk_size)
        landed = _Landed(self._landed(), sources)
        for result in preparation.run(landed.without(reader.rows(self.dataset))):
            found.add(result)
            if isinstance(result, Unusable):
                for problem in result.problems:
                    written.report(problem)
            else:
                written.add(result.row.as_prepared())
            if found.total % _LOG_EVERY == 0:
                self.log.info("%d images so far, %d of them can't be used.", found.total, found.unusable)
        if landed.left_out:
            self.log.info("%d images are left out: their videos have landed before.", landed.left_out)
        if not found.total and not landed.left_out and self.on_empty == "skip":
            raise AirflowSkipException(f"There is no image in {self.dataset!s:.200}: nothing is prepared.")
        report = written.finish()
        self._log_findings(found, "fixed")
        summary = {**found.as_dict(), **landed.as_dict(), "chunks": len(written.chunks), "report": report}
        context["ti"].xcom_push(key="summary", value={**summary, **reader.passed_over.as_dict()})
        self._check_share(found, report)
        if len(written.chunks) > _USUAL_MAP_LENGTH:
            self.log.warning(
                "%d chunks are more than Airflow maps a task over by default ([core] max_map_length, %d). A larger "
                "chunk_size gives fewer.",
                len(written.chunks),
                _USUAL_MAP_LENGTH,
            )
        return written.chunks

    def _journal(self) -> BucketJournal | None:
        uri = given_or_none(self.journal)
        if uri is None:
            return None
        return bucket_journal(uri, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain)

    def _landed(self) -> frozenset[bytes]:
        """Return the fingerprints of the rows to leave out; 100,000 of them take 10 MB."""
        from airflow_provider_wan.durable.record import QUARANTINE, Stage

        if not flag_of(self.skip_landed, name="skip_landed"):
            return frozenset()
        journal = self._journal()
        if journal is None:
            raise WanInputError("skip_landed needs the journal= of the submitting task.")
        return frozenset(
            bytes.fromhex(summary.fingerprint)
            for summary in journal.listing()
            if summary.stage is Stage.LANDED
            and f"/{QUARANTINE}/" not in (summary.uri or "")  # the batch may buy a rejected video again
            and _FINGERPRINT.fullmatch(summary.fingerprint)
        )

    def _check_share(self, found: Findings, report: str) -> None:
        """Fail if more images are unusable than ``tolerated_share``.

        :raises WanInputError: more are.
        """
        if not found.unusable:
            return
        share = found.unusable / found.total
        what = f"{found.unusable} of {found.total} images ({share:.1%}) can't be used; see {report}."
        if found.unusable == found.total:
            raise WanInputError(f"{what} No usable image is left.")
        if self.on_invalid == "fail":
            raise WanInputError(
                f'{what} Prepared images are kept. Remove the others from the dataset, or use on_invalid="skip".'
            )
        if share > self.tolerated_share:
            raise WanInputError(f"{what} tolerated_share is {self.tolerated_share:.1%}. Prepared images are kept.")
        self.log.warning("%s They are skipped.", what)

    def _manifests_uri(self, context: Any) -> str:
        given = given_or_none(self.manifests)
        if given is not None:
            return str(given)
        ti = context["ti"]
        parts = [ti.dag_id, ti.run_id, ti.task_id]
        if ti.map_index is not None and ti.map_index >= 0:
            parts.append(str(ti.map_index))
        return "/".join((self.staging.rstrip("/"), "manifests", *(_safe(part) for part in parts)))

    # -- planning ------------------------------------------------------------------------------------------

    def _plan(
        self, reader: DatasetReader, preparation: Preparation, model: LazyModel, hook: WanHook | None
    ) -> dict[str, Any]:
        from airflow_provider_wan.batch.prices import PriceBook
        from airflow_provider_wan.images.preparation import Findings, Usable

        journal = self._journal()
        found = Findings(_bought(journal))
        prices, to_buy = PriceBook(hook, journal, model, self.log), Counter[str]()
        for result in preparation.plan(reader.rows(self.dataset)):
            if found.add(result) and isinstance(result, Usable):
                to_buy[prices.key_of(result.row.inputs)] += 1
        price = prices.refreshed_summary(to_buy)
        headers_only = found.fit + found.fixed - found.prepared_before
        self._log_findings(found, "fixable")
        plan = {
            "model_id": self.model_id,
            **found.as_dict(),
            "headers_only": headers_only,
            "bought_before": found.bought_before,
            "repeated": found.repeated,
            "videos_to_buy": found.to_buy,
            "expected_cost_usd": price.pop("cost_usd"),
            **price,
            "problems": found.problems,
            **reader.passed_over.as_dict(),
        }
        self.log.info(
            "%d videos of model %s would be bought, for %s. %d images were judged by their header alone: a file that "
            "is cut off behind it is refused before its purchase.",
            found.to_buy,
            self.model_id,
            "an unknown price"
            if plan["expected_cost_usd"] is None
            else f"{plan['expected_cost_usd']} USD (price: {plan['price_source']})",
            headers_only,
        )
        return plan

    # -- both ----------------------------------------------------------------------------------------------

    def _reader(self, sources: ImageSources) -> DatasetReader:
        from airflow_provider_wan.images.dataset import DatasetReader

        columns = sources.columns(
            defaults=mapping_of(self.inputs, name="inputs"),
            variation=given_or_none(self.variation),
            passthrough=self.passthrough,
            needs_image=True,
        )
        suffixes = None if self.suffixes is None else tuple(suffix.lower() for suffix in self.suffixes)
        may_be_empty = self.on_empty == "skip"
        return DatasetReader(lambda: sources.client, columns, suffixes, may_be_empty)

    def _log_findings(self, found: Findings, fixed: str) -> None:
        self.log.info(
            "%d images for model %s: %d usable as they are, %d %s, %d not usable; %d of them prepared before.",
            found.total,
            self.model_id,
            found.fit,
            found.fixed,
            fixed,
            found.unusable,
            found.prepared_before,
        )
        if found.unusable:
            self.log.warning("Not usable:\n%s", found.table())
        if found.noted:
            self.log.warning("Notes on %d images:\n%s", found.noted, "\n".join(found.notes))


class _Landed:
    """Leaves out the rows whose video has landed.

    :param fingerprints: of landed videos.
    """

    def __init__(self, fingerprints: Collection[bytes], sources: ImageSources) -> None:
        self._fingerprints = fingerprints
        self._sources = sources
        self.left_out = 0

    def as_dict(self) -> dict[str, int]:
        """Return the figure for the summary, if rows can be left out."""
        return {"landed_before": self.left_out} if self._fingerprints else {}

    def without(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the other rows, in order; one that can't be identified is for the preparation to report."""
        from airflow_provider_wan.batch.plan import open_rows
        from airflow_provider_wan.images.rows import RowError

        if not self._fingerprints:
            yield from rows
            return
        for source in open_rows(rows, self._sources):
            if isinstance(source, RowError):
                yield source
                continue
            try:
                fingerprint = source.spec().fingerprint
            except (WanRefusedError, ValueError, TypeError):
                yield source.row
                continue
            if bytes.fromhex(fingerprint) in self._fingerprints:
                self.left_out += 1
            else:
                yield source.row


def _bought(journal: BucketJournal | None) -> Iterator[str]:
    """Yield the fingerprints of videos that were bought before."""
    from airflow_provider_wan.durable.record import Stage

    for summary in journal.listing() if journal else ():
        if summary.stage in (Stage.SUBMITTED, Stage.SUCCEEDED, Stage.LANDED):
            yield summary.fingerprint


def _safe(part: str) -> str:
    """Return a run id as part of an object name."""
    return "".join(c if c.isalnum() or c in "-_.+:=" else "_" for c in part).strip(".") or "_"
