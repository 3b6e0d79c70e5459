# SPDX-License-Identifier: Apache-2.0
"""The limit in USD of a single request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanBudgetError, WanError, WanInputError
from airflow_provider_wan.utils.params import RequestRef, given_or_none, mapping_of
from airflow_provider_wan.utils.task import TaskRequest

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.model_api.schema import LazyModel
    from airflow_provider_wan.model_api.video_spec import VideoSpec


def number_of(given: Any, *, name: str) -> float | None:
    """Read a number, also as text that a template rendered; None if nothing is given.

    :raises WanInputError: it is not a number.
    """
    from airflow_provider_wan.model_api import bodies, coercion

    if given_or_none(given) is None:
        return None
    number = bodies.number_of(coercion.plain_number(given))
    if number is None:
        raise WanInputError(f"{name}={str(given)[:80]!r} is not a number. Nothing was bought.")
    return float(number)


def prices_of(given: Any) -> float | dict[str, float] | None:
    """Read ``price_usd``: the price of a request in USD, or a mapping of prices by combination of inputs.

    :raises WanInputError: a price is not a number.
    """
    if not isinstance(given, Mapping) and not str(given).lstrip().startswith("{"):
        return number_of(given, name="price_usd")
    prices = {key: number_of(price, name="price_usd") for key, price in mapping_of(given, name="price_usd").items()}
    return {key: price for key, price in prices.items() if price is not None}


def learn_price(task: TaskRequest, journal: Journal | None, request: RequestRef, cost_usd: float | None) -> None:
    """Store the real cost of a request next to its journal, for later plans and limits. Best effort."""
    from airflow_provider_wan.batch.prices import PriceBook
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.model_api.schema import LazyModel

    if not (cost_usd and request.model_id and request.inputs and isinstance(journal, BucketJournal)):
        return
    try:
        model = LazyModel.of(task.hook.model(request.model_id))
        book = PriceBook(task.hook, journal, model, task.log, owner=request.owner or "")
        book.learn(book.key_of(request.inputs), cost_usd, request.request_id)
    except WanError as error:
        task.log.warning("The cost of request %s was not stored as a price: %s", request.request_id, error)


def with_limit(
    spec: VideoSpec,
    task: TaskRequest,
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
    if not limit > 0:
        raise WanInputError(f"max_cost_usd={limit:g} must be more than 0, in USD. Nothing was bought.")
    given = prices_of(price_usd)

    def make_inputs() -> Mapping[str, Any]:
        price, source = _price_of(spec.validate(), task, model, given, journal)
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
        task.log.info("A request of %s costs %g USD (%s); max_cost_usd is %g.", spec.model_id, price, source, limit)
        return spec.make_inputs()

    return replace(spec, make_inputs=make_inputs)


def _price_of(
    inputs: Mapping[str, Any],
    task: TaskRequest,
    model: LazyModel,
    given: Any,
    journal: str | None,
) -> tuple[float | None, str]:
    """Return the price of a request and how it is known: given, learned from a real cost, or the page's base price."""
    from airflow_provider_wan.batch.prices import PriceBook, PriceSource

    book = PriceBook(task.hook, task.open_journal(journal) if journal else None, model, task.log, given=given)
    key = book.key_of(inputs)
    book.refresh(key)
    if book.price_of(key).usd is None:
        book.page = task.hook.get_model(model.model_id)  # raises: an outage is not an unknown price
    price = book.price_of(key)
    return price.usd, {
        PriceSource.GIVEN: "as price_usd says",
        PriceSource.LEARNED: "the real cost of an earlier request",
    }.get(price.source, "the base price of the model's page; the real cost can differ")
