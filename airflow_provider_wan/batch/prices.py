# SPDX-License-Identifier: Apache-2.0
"""What a request of a batch costs: given, learned from a real cost, or only the base price of the model's page.

The page states a base: resolution, duration, audio and other inputs change the charge, and only the ``cost`` of a
result is reliable. So with a limit in USD and no given price, one clip of each *combination* of
price-relevant inputs is bought first, and its cost is learned before the rest is bought. Everything but free text, seed
and media is relevant.

Learned prices are objects next to the journal, ``{journal}/_prices/{hash}.json``, for all tasks and later runs. The
task that buys the first clip of a combination claims the object; the others wait for its price. For a mapped task, the
shares of a limit are computed once a run, from the first known price, and stored there too.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from logging import Logger
from typing import Any

from airflow_provider_wan.batch.budget import Budget, BudgetLimits, GivenPrice
from airflow_provider_wan.batch.plan import Item, Plan
from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.durable.record import Stage, utc_text
from airflow_provider_wan.exceptions import (
    WanBudgetError,
    WanError,
    WanInputError,
    WanNotFoundError,
    WanStorageError,
)
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.model_api.inputs import clip_seconds, coerce_inputs
from airflow_provider_wan.model_api.schema import LazyModel, Model, ModelInfo
from airflow_provider_wan.model_api.states import State

_LONGEST_WORD = 40
_MEDIA_SCHEMES = ("http://", "https://", "gs://", "data:")
_READ_THREADS = 16
_FOLDER = "_prices/"


class PriceSource(StrEnum):
    """How sure a price is."""

    #: Given as ``price_usd``.
    GIVEN = "given"
    #: It was charged for a clip of the same combination.
    LEARNED = "learned"
    #: Stated on the model's page; the charge can differ.
    BASE = "base"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one request.

    :param usd: in USD; None: not known.
    """

    usd: float | None
    source: PriceSource


class Learning(StrEnum):
    """The state of another task's request from which a price is learned."""

    LEARNED = "learned"
    #: No task is learning it: this task may buy the first clip.
    FREE = "free"
    RUNNING = "running"
    #: The clip has succeeded, but its cost has not appeared.
    NO_COST = "no_cost"


class PriceNotLearned(WanError):
    """Another task is learning the price of this combination; nothing was bought."""


def combination_of(model: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the price-relevant inputs, defaults included: all but free text, seed and media."""
    media = {rules.field for rules in model.images} | set(model.schema.media_fields if model.schema else ())
    given = {**model.defaults, **coerce_inputs(model, inputs)}
    return {name: value for name, value in sorted(given.items()) if _is_relevant(name, value, media)}


def _is_relevant(name: str, value: Any, media: set[str]) -> bool:
    if name in media or name == "seed" or name.endswith("prompt"):
        return False
    if isinstance(value, list):
        return all(_is_relevant(name, item, media) for item in value)
    if not isinstance(value, str):
        return True
    return len(value) <= _LONGEST_WORD and not value.lower().startswith(_MEDIA_SCHEMES)


def given_price(given: GivenPrice, combination: Mapping[str, Any]) -> float | None:
    """Return the given price of a combination: of the entry that names most of its inputs.

    :param given: a price, or prices by inputs such as ``{"resolution=1080P, duration=5": 0.5, "": 0.1}``.
    """
    if given is None or isinstance(given, int | float):
        return given
    best: tuple[int, float] | None = None
    for key, price in given.items():
        pairs = [pair.partition("=") for pair in key.split(",") if pair.strip()]
        if all(str(combination.get(name.strip())) == value.strip() for name, _, value in pairs):
            best = max(best or (-1, 0.0), (len(pairs), float(price)))
    return None if best is None else best[1]


def check_given(given: GivenPrice) -> None:
    """Check ``price_usd``.

    :raises WanInputError: a price is not a positive number.
    """
    for price in given.values() if isinstance(given, Mapping) else [given]:
        if price is not None and not (isinstance(price, int | float) and 0 < price < 1e6):
            raise WanInputError(f"price_usd={price!r} must be more than 0: it is what one request costs, in USD.")


class PriceBook:
    """The prices of one batch. Thread-safe; the methods that make calls say so.

    :param hook: reads pages and results; None: only a plan is made, from a page that was read.
    :param journal: where learned prices are; None: none are known.
    :param given: ``price_usd``.
    :param owner: the name of this task instance in records.
    """

    def __init__(
        self,
        hook: WanHook | None,
        journal: BucketJournal | None,
        model: LazyModel,
        log: Logger,
        *,
        given: GivenPrice = None,
        limits: BudgetLimits | None = None,
        owner: str = "",
    ) -> None:
        check_given(given)
        self._hook = hook
        self._journal = journal
        self._model = model
        self._model_id = model.model_id
        self._log = log
        self._given = given
        self._limits = limits or BudgetLimits()
        self._owner = owner
        self._lock = threading.Lock()
        self._keys: dict[str, str] = {}
        self._learned: dict[str, float] = {}
        self._requests: dict[str, str] = {}
        self.page: ModelInfo | None = None

    # -- prices --------------------------------------------------------------------------------------------

    def load_page(self) -> None:
        """Read the model's page, unless one price is given for all. Makes a call.

        :raises WanError: a limit in USD needs the page, and it can't be read.
        :raises WanBudgetError: a limit in USD needs a price, and the page states none.
        """
        if isinstance(self._given, int | float):
            return
        must_know = self._limits.max_cost_usd is not None and self._given is None
        try:
            model = self._model.known
            if model.unread is not None:
                raise model.unread
            self.page = model.page
            if self.page is None and self._hook is not None:
                self.page = self._hook.get_model(self._model_id)
        except WanError as error:
            if must_know:
                raise
            self._log.info("The price of a request is not known: %s", error)
        if must_know and not (self.page and self.page.base_price_usd):
            raise self._no_price()

    def _no_price(self) -> WanBudgetError:
        return WanBudgetError(
            "max_cost_usd can't be kept: the price of a request is not known, because the model's page states none. "
            "Nothing was bought. Set price_usd, or limit the number with max_requests."
        )

    @property
    def model(self) -> Model:
        """The model of the batch. The first use may make a call."""
        return self._model.known

    def key_of(self, given: Mapping[str, Any]) -> str:
        """Return the name of the combination of some inputs."""
        inputs = json.dumps(given, sort_keys=True, default=str)
        key = self._keys.get(inputs)
        if key is None:
            combination = combination_of(self._model.known, given)
            key = self._keys[inputs] = json.dumps(combination, sort_keys=True, default=str)
        return key

    def price_of(self, key: str) -> Price:
        """Return the price of a combination. A real cost above a given price counts from then on."""
        combination = json.loads(key)
        given, learned = given_price(self._given, combination), self._learned.get(key)
        if given is not None:
            return Price(max(given, learned or 0.0), PriceSource.GIVEN)
        if learned is not None:
            return Price(learned, PriceSource.LEARNED)
        base = self.page and self.page.price_of(clip_seconds(self._model.known, combination))
        return Price(base, PriceSource.BASE) if base else Price(None, PriceSource.UNKNOWN)

    def usd_of(self, key: str) -> float:
        """Return the price of a combination in USD, 0 where it is not known and no limit needs it."""
        return self.price_of(key).usd or 0.0

    def must_learn(self, key: str) -> bool:
        """Return whether one clip of the combination has to be bought before the others."""
        if self._limits.max_cost_usd is None:
            return False
        return self.price_of(key).source in (PriceSource.BASE, PriceSource.UNKNOWN)

    def load(self, plan: Plan, items: Iterable[Item]) -> None:
        """Read the learned prices of a plan, and learn from its records. Makes calls.

        :param items: those that may be bought.
        :raises WanBudgetError: there is a limit in USD, and a combination has no price at all.
        """
        if isinstance(self._given, int | float):
            return
        keys = {self.key_of(item.inputs) for item in items}
        with ThreadPoolExecutor(_READ_THREADS, "wan-price") as pool:
            list(pool.map(self.refresh, keys))
        self._learn_from_records(plan)
        if self._limits.max_cost_usd is not None and any(self.price_of(key).usd is None for key in keys):
            raise self._no_price()

    def _learn_from_records(self, plan: Plan) -> None:
        """Learn the highest cost of each combination in the journal."""
        highest: dict[str, tuple[float, str | None]] = {}
        for fingerprint, known in plan.known.items():
            if known.stage in (Stage.LANDED, Stage.SUCCEEDED) and known.cost_usd:
                key = self.key_of(plan.items[fingerprint].inputs)
                highest[key] = max(highest.get(key, (0.0, None)), (known.cost_usd, known.request_id), key=_cost)
        for key, (cost_usd, request_id) in highest.items():
            self.learn(key, cost_usd, request_id)

    def learn(self, key: str, cost_usd: float | None, request_id: str | None = None) -> None:
        """Learn from the real cost of a clip that succeeded. Makes calls. A clip that was not charged is ignored.

        :param request_id: the request that was charged.
        """
        with self._lock:
            if not cost_usd or cost_usd <= self._learned.get(key, 0.0):
                return
            self._learned[key] = cost_usd
        if isinstance(self._given, int | float):
            return
        body = {"model_id": self._model_id, "inputs": json.loads(key), "price_usd": cost_usd}
        body |= {"request_id": request_id, "learned_at": utc_text()}
        try:
            found, generation = self._read(self._name(key))
            body["owner"] = (found or {}).get("owner") or self._owner
            if found is None or float(found.get("price_usd") or 0.0) < cost_usd:
                self._write(self._name(key), body, generation)
        except (WanStorageError, ValueError) as error:
            self._log.warning("A learned price could not be written: %s", error)
            return
        self._log.info("A clip with %s costs %g USD.", key, cost_usd)

    def refresh(self, key: str) -> Mapping[str, Any] | None:
        """Read the object of a combination, and learn its price. Makes a call."""
        try:
            body, _ = self._read(self._name(key))
        except (WanStorageError, ValueError) as error:
            self._log.warning("A learned price can't be read: %s", error)
            return None
        if body is not None and body.get("price_usd"):
            with self._lock:
                self._learned[key] = max(float(body["price_usd"]), self._learned.get(key, 0.0))
        return body

    # -- learning ------------------------------------------------------------------------------------------

    def claim(self, key: str, *, may_take_over: bool) -> None:
        """Claim a combination before its first clip is bought. Makes calls.

        :param may_take_over: whether the request of another task is known to give no price.
        :raises PriceNotLearned: another task has claimed it.
        """
        for _ in range(3):
            body, generation = self._read(self._name(key))
            if body is not None and body.get("price_usd"):
                self.refresh(key)
                return
            if body is not None and body.get("owner") != self._owner and not may_take_over:
                raise PriceNotLearned("Another task buys the first clip of this combination.")
            if self._write(self._name(key), self._claim(key), generation):
                return
        raise PriceNotLearned("Other tasks keep claiming this combination.")

    def _claim(self, key: str, request_id: str | None = None) -> dict[str, Any]:
        body = {"model_id": self._model_id, "inputs": json.loads(key), "owner": self._owner}
        return body | {"request_id": request_id, "claimed_at": utc_text()}

    def on_first_clip(self, key: str, request_id: str) -> None:
        """Record the request from which the price is learned, so that every task can read its cost. Makes calls."""
        self._requests[key] = request_id
        try:
            body, generation = self._read(self._name(key))
            if body is not None and not body.get("price_usd") and body.get("owner") == self._owner:
                self._write(self._name(key), self._claim(key, request_id), generation)
        except (WanStorageError, ValueError) as error:
            self._log.warning("The first clip of a combination could not be noted: %s", error)

    def check(self, key: str) -> Learning:
        """Return the state of the clip from which a price is learned. Makes calls.

        :raises WanError: there is no answer.
        """
        body = self.refresh(key)
        if not self.must_learn(key):
            return Learning.LEARNED
        request_id = self._requests.get(key) or (body or {}).get("request_id")
        if request_id is None:
            if body is None or body.get("owner") == self._owner or self._is_old(body.get("claimed_at")):
                return Learning.FREE
            return Learning.RUNNING
        assert self._hook is not None
        try:
            result = self._hook.get_result(request_id)
        except WanNotFoundError:
            return self._forget(key)
        if result.state is State.SUCCEEDED and result.cost_usd:
            self.learn(key, result.cost_usd, request_id)
            return Learning.LEARNED
        if result.state is State.SUCCEEDED and result.cost_usd is None:
            return Learning.NO_COST
        return self._forget(key) if result.state.is_terminal else Learning.RUNNING

    def _is_old(self, claimed_at: Any) -> bool:
        """Return whether a claim without a request is surely of a task that was killed before its submit."""
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(str(claimed_at))
        except (TypeError, ValueError):
            return True
        assert self._hook is not None
        return age.total_seconds() > _CLAIM_SUBMITS * self._hook.submit_takes_at_most_s

    def _forget(self, key: str) -> Learning:
        self._requests.pop(key, None)
        return Learning.FREE

    # -- shares of a limit ---------------------------------------------------------------------------------

    def apply_share(self, budget: Budget, key: str) -> None:
        """Set the share of a mapped task in the limit in USD. Makes calls, once.

        The first task that knows a price computes and stores the shares, so that all parts add up to the whole.
        The clip that gave the price in this run counts for the task that bought it, and is deducted from the whole.
        """
        limits = self._limits
        if limits.of == 1 or limits.max_cost_usd is None or budget.has_share:
            return
        run = self._owner.rpartition("/")[0]
        name = f"{_FOLDER}share-{_hash(run, limits.max_cost_usd, limits.max_requests, limits.of)}.json"
        cut, _ = self._read(name)
        if cut is None and not self.must_learn(key):
            learned = self._read(self._name(key))[0] or {}
            learner, _, index = str(learned.get("owner")).rpartition("/")
            is_learned_now = learner == run and self.price_of(key).source is PriceSource.LEARNED
            cut = {
                "price_usd": self.usd_of(key),
                "index": int(index) if is_learned_now else -1,
                "spent_usd": learned["price_usd"] if is_learned_now else 0.0,
            }
            if not self._write(name, cut, 0):
                cut, _ = self._read(name)
        if cut is not None:
            budget.set_share(limits, cut["price_usd"], cut["spent_usd"], is_first=cut["index"] == limits.index)

    # -- objects -------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return f"{_FOLDER}{_hash(self._model_id, key)}.json"

    def _read(self, name: str) -> tuple[dict[str, Any] | None, int]:
        return self._journal.read_json(name) if self._journal else (None, 0)

    def _write(self, name: str, body: Mapping[str, Any], generation: int) -> bool:
        return self._journal is None or self._journal.write_json(name, body, replaces=generation)

    # -- what a plan shows ---------------------------------------------------------------------------------

    def refreshed_summary(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Read the page and the learned prices of these combinations, and return their :meth:`summary`. Makes calls."""
        self.load_page()
        with ThreadPoolExecutor(_READ_THREADS, "wan-price") as pool:
            list(pool.map(self.refresh, counts))
        return self.summary(counts)

    def summary(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Return the price of so many requests of each combination, and how sure it is."""
        prices = {key: self.price_of(key) for key in counts or {self.key_of({}): 0}}
        known = [price.usd for price in prices.values() if price.usd is not None]
        is_known = len(known) == len(prices)
        total = sum(self.usd_of(key) * count for key, count in counts.items())
        return {
            "price_usd": max(known) if is_known else None,
            "cost_usd": round(total, 6) if is_known else None,
            "price_source": min((price.source for price in prices.values()), key=_SURE.index),
            "pricing_note": self.page.pricing_note if self.page else None,
            "prices": [
                {
                    "inputs": json.loads(key),
                    "count": count,
                    "price_usd": prices[key].usd,
                    "source": prices[key].source,
                }
                for key, count in list(counts.items())[:20]
            ],
        }


#: From the least sure price to the surest.
_SURE = (PriceSource.UNKNOWN, PriceSource.BASE, PriceSource.LEARNED, PriceSource.GIVEN)
#: A claim without a request is taken over after the time of this many submits: checks of journal and API, a wait for
#: the rate limit and the submit itself come after the claim.
_CLAIM_SUBMITS = 4


def _cost(charged: tuple[float, str | None]) -> float:
    return charged[0]


def _hash(*parts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]
