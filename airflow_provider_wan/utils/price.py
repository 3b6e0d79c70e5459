# SPDX-License-Identifier: Apache-2.0
"""The limit in USD of a single request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanBudgetError, WanInputError
from airflow_provider_wan.utils.params import given_or_none, mapping_of
from airflow_provider_wan.utils.task import TaskRequest

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.inputs import LazyModel
    from airflow_provider_wan.model_api.video_spec import VideoSpec


def number_of(given: Any, *, name: str) -> float | None:
    """Read an amount in USD, also as text that a template rendered.

    :raises WanInputError: it is not a number above 0.
    """
    given = given_or_none(given)
    if given is None:
        return None
    try:
        amount = float(given)
    except (TypeError, ValueError):
        amount = 0.0
    if not 0 < amount < 1e6 or isinstance(given, bool):
        raise WanInputError(f"{name}={str(given)[:80]!r} must be more than 0, in USD. Nothing was bought.")
    return amount


def with_limit(
    spec: VideoSpec,
    task: TaskRequest,
    hook: WanHook,
    model: LazyModel,
    *,
    max_cost_usd: Any,
    price_usd: Any,
    journal: str | None,
) -> VideoSpec:
    """Return the video spec, made to refuse the purchase at the last moment if its price is above a limit.

    :param max_cost_usd: the limit; None: no limit.
    :param price_usd: the price of a request, or a mapping of prices by combination of inputs.
    :param journal: ``gs://bucket/prefix``, next to which learned prices are stored.
    """
    limit = number_of(max_cost_usd, name="max_cost_usd")
    if limit is None:
        return spec
    is_mapping = isinstance(price_usd, Mapping) or str(price_usd).lstrip().startswith("{")
    given: Any = (
        mapping_of(price_usd, name="price_usd") if is_mapping else number_of(price_usd, name="price_usd")
    )

    def make_inputs() -> Mapping[str, Any]:
        price, source = _price_of(spec.validate(), task, hook, model, given, journal)
        if price is None:
            raise WanBudgetError(
                f"max_cost_usd={limit:g} can't be kept: the price of a request of {spec.model_id} is not known. "
                "Nothing was bought. Set price_usd."
            )
        if price > limit:
            raise WanBudgetError(
                f"A request of {spec.model_id} with these inputs costs {price:g} USD ({source}), and max_cost_usd is "
                f"{limit:g}. Nothing was bought."
            )
        task.log.info(
            "A request of %s costs %g USD (%s); max_cost_usd is %g.", spec.model_id, price, source, limit
        )
        return spec.make_inputs()

    return replace(spec, make_inputs=make_inputs)


def _price_of(
    inputs: Mapping[str, Any],
    task: TaskRequest,
    hook: WanHook,
    model: LazyModel,
    given: Any,
    journal: str | None,
) -> tuple[float | None, str]:
    """Return the price of a request and how it is known: given, learned from a real cost, or the page's base price."""
    from airflow_provider_wan.batch.budget import BudgetLimits
    from airflow_provider_wan.batch.prices import PriceBook, check_given, combination_of, given_price
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.model_api.inputs import clip_seconds

    check_given(given)
    combination = combination_of(model.known, inputs)
    price = given_price(given, combination)
    if price is not None:
        return price, "as price_usd says"
    if journal:
        operator = task.operator
        client = storage_client(operator.gcp_conn_id, operator.impersonation_chain)
        limits = BudgetLimits()
        book = PriceBook(hook, client, journal, model, task.log, given=given, limits=limits, owner=task.owner)
        learned = book.refresh(json.dumps(combination, sort_keys=True, default=str)) or {}
        if learned.get("price_usd"):
            return float(learned["price_usd"]), "the real cost of an earlier request"
    base = hook.get_model(model.model_id).price_of(clip_seconds(model.known, combination))
    return base, "the base price of the model's page; the real cost can differ"
