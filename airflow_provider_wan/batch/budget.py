# SPDX-License-Identifier: Apache-2.0
"""What a batch may still buy. Amounts are counted in millionths of a dollar, so that three times 0.1 is 0.3."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanBudgetError, WanInputError

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """What one task instance may buy.

    :param max_cost_usd: in USD; None: no limit.
    :param max_requests: number of requests; None: no limit.
    :param index: of a mapped task, the number of this part, from 0; in Airflow the map index.
    :param of: the number of parts; the two limits apply to all parts together.
    """

    max_cost_usd: float | None = None
    max_requests: int | None = None
    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        for name in ("max_cost_usd", "max_requests"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e12:
                raise WanInputError(f"{name}={value!r} must be 0 or more.")
        if self.of < 1:
            raise WanInputError(f"share_of={self.of} must be 1 or more: it is the number of mapped tasks.")
        if not 0 <= self.index < self.of:
            raise WanInputError(
                f"share_of={self.of}, but this is mapped task {self.index} of more. Set share_of to the number of "
                "chunks."
            )

    def part(self, price_usd: float | None) -> BudgetLimits:
        """Return the limits of this task instance alone; all parts add up to the whole exactly.

        Money is divided in units of one request: a tenth of a dollar for each of a hundred tasks buys nothing.

        :param price_usd: of one request, if known.
        """
        requests = None if self.max_requests is None else _part(self.max_requests, self.index, self.of)
        if self.max_cost_usd is None:
            return BudgetLimits(None, requests)
        whole, price = round(self.max_cost_usd * _MICRO), round((price_usd or 0.0) * _MICRO)
        if not price:
            return BudgetLimits(_part(whole, self.index, self.of) / _MICRO, requests)
        payable = whole // price if self.max_requests is None else min(whole // price, self.max_requests)
        micro = _part(payable, self.index, self.of) * price
        if self.index == self.of - 1:
            micro += whole - payable * price
        return BudgetLimits(micro / _MICRO, requests)


def _part(whole: int, index: int, of: int) -> int:
    return whole * (index + 1) // of - whole * index // of


class Budget:
    """Allows purchases one by one, and counts what they cost. Thread-safe.

    A purchase counts with the price at which it was reserved until its real cost is known. A real cost above the price
    raises the price of later purchases, and never the amount of one that is reserved already.

    :param limits: how much may be bought.
    :param price_usd: of one request; None: not known.
    :raises WanBudgetError: there is a limit in USD and no price to keep it with.
    :raises WanInputError: the price is not a positive number.
    """

    def __init__(self, limits: BudgetLimits, price_usd: float | None) -> None:
        if limits.max_cost_usd is not None and price_usd is None:
            raise WanBudgetError(
                "max_cost_usd can't be kept: the price of a request is not known, because the model's page states "
                "none. Nothing was bought. Set price_usd, or limit the number with max_requests."
            )
        if price_usd is not None and not 0 < price_usd < 1e6:
            raise WanInputError(
                f"price_usd={price_usd!r} must be more than 0: it is what one request costs, in USD."
            )
        mine = limits.part(price_usd)
        self._limits = limits
        self._limit = None if mine.max_cost_usd is None else round(mine.max_cost_usd * _MICRO)
        self._max_requests = mine.max_requests
        self._price = 0 if price_usd is None else round(price_usd * _MICRO)
        self.price_usd = price_usd
        self._lock = threading.Lock()
        #: The amount of each reservation, and of the latest purchase of each fingerprint until its cost is known.
        self._reserved: dict[str, int] = {}
        self._unsettled: dict[str, int] = {}
        self._spent = 0
        self._count = 0
        self._known = 0
        self._known_count = 0

    def bought_before(self, fingerprint: str, *, purchases: int, cost_usd: float | None) -> None:
        """Count what this task instance bought earlier.

        :param purchases: requests for this fingerprint, including failed ones.
        :param cost_usd: of the latest one, if known.
        """
        with self._lock:
            self._count += purchases
            self._spent += self._price * purchases
            self._unsettled[fingerprint] = self._price
        if cost_usd is not None:
            self.settle(fingerprint, cost_usd)

    def reserve(self, fingerprint: str) -> None:
        """Allow one purchase and count it; a second call before the purchase is made changes nothing.

        :raises WanBudgetError: it would exceed a limit.
        """
        with self._lock:
            if fingerprint in self._reserved:
                return
            why = self._why_not()
            if why:
                raise WanBudgetError(why)
            self._reserved[fingerprint] = self._price
            self._count += 1
            self._spent += self._price

    def made(self, fingerprint: str) -> None:
        """Record that the reserved purchase was made, or may have been."""
        with self._lock:
            amount = self._reserved.pop(fingerprint, None)
            if amount is not None:
                self._unsettled[fingerprint] = amount

    def release(self, fingerprint: str) -> None:
        """Record that the reserved purchase was not made."""
        with self._lock:
            amount = self._reserved.pop(fingerprint, None)
            if amount is not None:
                self._count -= 1
                self._spent -= amount

    def settle(self, fingerprint: str, cost_usd: float) -> None:
        """Count the latest purchase of a fingerprint with its real cost; purchases of others are ignored."""
        cost = round(cost_usd * _MICRO)
        with self._lock:
            amount = self._unsettled.pop(fingerprint, None)
            if amount is None:
                return
            self._spent += cost - amount
            self._known += cost
            self._known_count += 1
            if self._limit is not None:
                self._price = max(self._price, cost)

    def why_not(self) -> str | None:
        """Return which limit another purchase would exceed; None if it may be made."""
        with self._lock:
            return self._why_not()

    def _why_not(self) -> str | None:
        if self._max_requests is not None and self._count >= self._max_requests:
            return f"max_requests={self._limits.max_requests}{self._share(self._max_requests)} is reached."
        if self._limit is not None and self._spent + self._price > self._limit:
            return (
                f"max_cost_usd={self._limits.max_cost_usd:g}{self._share(self._limit / _MICRO)} would be exceeded: "
                f"{self._spent / _MICRO:.2f} USD are spent or reserved, and the next request costs "
                f"{self._price / _MICRO:g}."
            )
        return None

    def _share(self, mine: float) -> str:
        return f" (of which {mine:g} is this mapped task's share)" if self._limits.of > 1 else ""

    @property
    def bought(self) -> int:
        """How many requests were or are being bought, including failed ones."""
        return self._count

    @property
    def known_cost_usd(self) -> float:
        """The sum of the real costs that are known."""
        return self._known / _MICRO

    @property
    def unpriced(self) -> int:
        """The number of purchases whose real cost is not known."""
        return self._count - self._known_count

    @property
    def spent_usd(self) -> float:
        """What was spent; a purchase whose real cost is not known counts with its price."""
        return self._spent / _MICRO
