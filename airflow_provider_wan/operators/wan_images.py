# SPDX-License-Identifier: Apache-2.0
"""Prepare the images of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator

from airflow_provider_wan.exceptions import WanError, WanInputError
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.images import TooSmall, image_sources
from airflow_provider_wan.utils.params import (
    DEFAULT_MODEL_ID,
    flag_of,
    given_or_none,
    mapping_of,
    mask_signatures,
)
from airflow_provider_wan.utils.task import bucket_journal

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.images.dataset_reader import DatasetReader
    from airflow_provider_wan.images.preparation import Counts, Preparation, Unusable
    from airflow_provider_wan.images.source import ImageSources

_SHOWN_PROBLEMS = 20
_TELL_EVERY = 1000
#: ``[core] max_map_length`` of an Airflow that nobody has changed it in.
_USUAL_MAP_LENGTH = 1024


class WanPrepareImagesOperator(BaseOperator):
    """Check all images of a dataset, fix what can be fixed, and write what is ready into chunk manifests.

    Returns the ``gs://`` addresses of the chunk manifests, ready for ``expand``: JSON lines with ``source``,
    ``staged_uri``, ``width``, ``height``, ``size_bytes``, ``sha256``, ``changes``, ``identity``, and the row's own
    ``inputs`` and ``variation``. The XCom ``summary`` has the counts and the address of the report.

    An image that the model takes as it is stays where it is. Of any other a copy goes to ``staging``, named by the
    source's content and what is done to it: a second run finds it there, and neither reads the source nor writes.
    Nothing is bought.

    With ``dry_run`` it returns a plan instead, from the images' headers and what earlier runs have left, and writes
    nothing: ``images``, ``usable_as_they_are``, ``fixable``, ``unusable``, ``by_rule``, ``prepared_before``,
    ``bought_before``, ``repeated``, ``videos_to_buy``, ``price_usd``, ``expected_cost_usd`` and ``problems`` (the
    first of them).

    :param dataset: ``gs://bucket/prefix/`` (its images), the address of a manifest (``.csv``, ``.jsonl``, in a bucket
        or on disk, with columns ``image``, the model's inputs and ``variation``), a list of ``gs://`` and
        ``https://`` addresses or of rows, or a list of all of these. (templated)
    :param staging: ``gs://bucket/prefix`` of the prepared copies. (templated)
    :param manifests: ``gs://bucket/prefix`` of chunk manifests and report; None (default): below ``staging``, by DAG,
        run and task. (templated)
    :param chunk_size: rows in a chunk manifest, default 100.
    :param inputs: inputs of the model for rows that do not say otherwise. (templated)
    :param variation: the same for the variation, see ``WanSubmitOperator``. (templated)
    :param passthrough: further columns of manifests, which are carried along.
    :param suffixes: which objects of a prefix are images; None (default): all usual suffixes of images.
    :param background: what transparent parts are put on, a colour name or ``#rrggbb``; default white. (templated)
    :param too_small: ``upscale`` (default) enlarges a small image up to 8 times, ``reject`` refuses it.
    :param on_invalid: ``fail`` (default, without retry) where any row can't be used, or ``skip``: leave them out, as
        long as their share is at most ``tolerated_share``. The report is written in either case, and what could be
        prepared is kept.
    :param tolerated_share: with ``skip``, default 0.1. Where no row can be used at all, the task fails.
    :param on_empty: what to do where there is no image at all: ``fail`` (default, without retry), or ``skip`` the task
        and what comes after it, as for a day of a partitioned dataset that has none.
    :param dry_run: whether only to plan, default False; also a word such as ``"true"`` or ``"on"`` from a template,
        and what is no such word is refused. (templated)
    :param journal: where the videos of earlier runs are remembered: the plan counts what is bought already. Give the
        same ``inputs`` and ``variation`` as the submitting task. (templated)
    :param workers: threads, default 8. At most as many images are decoded at once as there are cores, and 256 MiB of
        files are in memory.
    :param model_id: the model whose rules count; default ``wan-ai/wan-2-2/image-to-video``. (templated)
    :param wan_conn_id: for the price, and for whether private addresses may be read; None: without both. (templated)
    :param gcp_conn_id: None (default): Application Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)

    Raises :class:`WanInputError` without retry, and :class:`WanStorageError` for Airflow to retry.
    """

    template_fields: Sequence[str] = (
        "dataset",
        "staging",
        "manifests",
        "inputs",
        "variation",
        "background",
        "dry_run",
        "journal",
        "model_id",
        "wan_conn_id",
        "gcp_conn_id",
        "impersonation_chain",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"dataset": "json", "inputs": "json"}
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
        workers: int = 8,
        model_id: str = DEFAULT_MODEL_ID,
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
        self.dry_run = dry_run  # in place of a method of Airflow's that Airflow 3 does not call
        self.journal = journal
        self.workers = workers
        self.model_id = model_id
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain

    def __setattr__(self, key: str, value: Any) -> None:
        """Hide signatures of what a template became before Airflow keeps it."""
        if key == "dataset":
            mask_signatures(value)
        super().__setattr__(key, value)

    def execute(self, context: Any) -> Any:
        """Prepare the dataset, or plan it."""
        from airflow_provider_wan.images.preparation import Preparation

        with as_airflow_errors(context):
            is_dry_run = flag_of(self.dry_run, name="dry_run")
            hook = self._hook()
            sources = self._sources(hook)
            reader = self._reader(sources)
            preparation = Preparation(sources, self.model_id, workers=self.workers)
            if is_dry_run:
                return self._plan(reader, preparation, hook)
            return self._prepare(context, sources, reader, preparation)

    # -- preparing -----------------------------------------------------------------------------------------

    def _prepare(
        self, context: Any, sources: ImageSources, reader: DatasetReader, preparation: Preparation
    ) -> list[str]:
        from airflow_provider_wan.images.manifests import Manifests
        from airflow_provider_wan.images.preparation import Counts, Unusable

        counts, shown = Counts(), _Table()
        written = Manifests(sources.client, self._manifests_uri(context), chunk_size=self.chunk_size)
        for one in preparation.run(reader.rows(self.dataset)):
            counts.saw(one)
            if isinstance(one, Unusable):
                shown.add(one)
                for problem in one.problems:
                    written.report(problem.as_dict())
            else:
                written.add(one.row.as_dict())
            if counts.total % _TELL_EVERY == 0:
                self.log.info("%d images so far, %d of them can't be used.", counts.total, counts.unusable)
        if not counts.total and self.on_empty == "skip":
            raise AirflowSkipException(f"There is no image in {self.dataset!s:.200}: nothing is prepared.")
        report = written.finish()
        self._tell(counts, shown, "fixed")
        context["ti"].xcom_push(
            key="summary", value={**counts.as_dict(), "chunks": len(written.chunks), "report": report}
        )
        self._judge(counts, report)
        if len(written.chunks) > _USUAL_MAP_LENGTH:
            self.log.warning(
                "%d chunks are more than Airflow maps a task over by default ([core] max_map_length, %d). A larger "
                "chunk_size gives fewer.",
                len(written.chunks),
                _USUAL_MAP_LENGTH,
            )
        return written.chunks

    def _judge(self, counts: Counts, report: str) -> None:
        """Fail where more can't be used than is tolerated.

        :raises WanInputError: so it is.
        """
        if not counts.unusable:
            return
        share = counts.unusable / counts.total
        what = f"{counts.unusable} of {counts.total} images ({share:.1%}) can't be used; see {report}."
        if counts.unusable == counts.total:
            raise WanInputError(f"{what} There is nothing to go on with.")
        if self.on_invalid == "fail":
            raise WanInputError(
                f'{what} What could be prepared is kept. Take them out of the dataset, or use on_invalid="skip".'
            )
        if share > self.tolerated_share:
            raise WanInputError(
                f"{what} Tolerated are {self.tolerated_share:.1%} (tolerated_share). What could be prepared is kept."
            )
        self.log.warning("%s They are left out.", what)

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

    def _plan(self, reader: DatasetReader, preparation: Preparation, hook: WanHook | None) -> dict[str, Any]:
        from airflow_provider_wan.images.preparation import Counts, Unusable, Wishes

        counts, shown = Counts(), _Table()
        wishes = Wishes(self._bought())
        for one in preparation.look(reader.rows(self.dataset)):
            counts.saw(one)
            if isinstance(one, Unusable):
                shown.add(one)
            else:
                wishes.take(one.fingerprint, counts)
        price = self._price(hook)
        self._tell(counts, shown, "fixable")
        plan = {
            **counts.as_dict(),
            "bought_before": counts.bought_before,
            "repeated": counts.repeated,
            "videos_to_buy": counts.to_buy,
            "price_usd": price,
            "expected_cost_usd": None if price is None else round(price * counts.to_buy, 6),
            "problems": shown.rows,
        }
        self.log.info(
            "%d videos would be bought, for %s.",
            counts.to_buy,
            "a price that is not known"
            if price is None
            else f"{plan['expected_cost_usd']} USD ({price} USD each)",
        )
        return plan

    def _bought(self) -> Iterator[str]:
        """Give the fingerprints of what needs no purchase any more."""
        from airflow_provider_wan.durable.journal import BucketJournal
        from airflow_provider_wan.durable.record import Stage

        uri = given_or_none(self.journal)
        if uri is None:
            return
        journal = bucket_journal(
            uri, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain
        )
        assert isinstance(journal, BucketJournal)
        for fingerprint, stage in journal.stages():
            if stage in (Stage.SUBMITTED, Stage.SUCCEEDED, Stage.LANDED):
                yield fingerprint

    def _price(self, hook: WanHook | None) -> float | None:
        """Ask what one video costs."""
        if hook is None:
            return None
        from airflow_provider_wan.model_api.inputs import clip_seconds

        try:
            model = hook.get_model(self.model_id)
        except WanError as error:
            self.log.warning("What a video costs is not known: %s", error)
            return None
        return model.price_of(clip_seconds(self.model_id, mapping_of(self.inputs, name="inputs")))

    # -- both ----------------------------------------------------------------------------------------------

    def _hook(self) -> WanHook | None:
        from airflow_provider_wan.hooks.wan import WanHook

        conn_id = given_or_none(self.wan_conn_id)
        return WanHook(conn_id) if conn_id else None

    def _sources(self, hook: WanHook | None) -> ImageSources:
        return image_sources(
            self.model_id,
            log=self.log,
            allow_private=hook.settings.allow_private_images if hook else False,
            gcp_conn_id=self.gcp_conn_id,
            impersonation_chain=self.impersonation_chain,
            staging=self.staging,
            background=self.background,
            too_small=self.too_small,
            workers=self.workers,
        )

    def _reader(self, sources: ImageSources) -> DatasetReader:
        from airflow_provider_wan.images.dataset import Columns
        from airflow_provider_wan.images.dataset_reader import IMAGE_SUFFIXES, DatasetReader
        from airflow_provider_wan.model_api.inputs import load_schema

        schema = load_schema(self.model_id)
        columns = Columns(
            inputs=tuple(name for name in schema.fields if name != sources.input_name) if schema else None,
            defaults=mapping_of(self.inputs, name="inputs"),
            variation=given_or_none(self.variation),
            passthrough=tuple(self.passthrough),
        )
        suffixes = IMAGE_SUFFIXES if self.suffixes is None else tuple(one.lower() for one in self.suffixes)
        may_be_empty = self.on_empty == "skip"
        return DatasetReader(lambda: sources.client, columns, suffixes, may_be_empty)

    def _tell(self, counts: Counts, shown: _Table, fixed: str) -> None:
        self.log.info(
            "%d images: %d usable as they are, %d %s, %d not usable; %d of them prepared before.",
            counts.total,
            counts.fit,
            counts.fixed,
            fixed,
            counts.unusable,
            counts.prepared_before,
        )
        if counts.unusable:
            self.log.warning("Not usable:\n%s", shown.text(counts.unusable))


class _Table:
    """The first problems, for people."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, one: Unusable) -> None:
        for problem in one.problems:
            if len(self.rows) < _SHOWN_PROBLEMS:
                self.rows.append(
                    {name: problem.as_dict()[name] for name in ("image", "rule", "value", "message")}
                )

    def text(self, total: int) -> str:
        lines = [("image", "rule", "value", "what")]
        lines += [
            (row["image"], row["rule"], "" if row["value"] is None else str(row["value"]), row["message"])
            for row in self.rows
        ]
        widths = [min(60, max(len(line[column]) for line in lines)) for column in range(3)]
        text = "\n".join(
            "  ".join(
                (*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3][:200])
            )
            for line in lines
        )
        return text if total <= _SHOWN_PROBLEMS else f"{text}\n... and more, {total} in all: see the report"


def _safe(part: str) -> str:
    """Make a run id part of an object's name."""
    return "".join(c if c.isalnum() or c in "-_.+:=" else "_" for c in part).strip(".") or "_"
