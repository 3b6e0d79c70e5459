# SPDX-License-Identifier: Apache-2.0
"""How much a batch may still spend. Amounts are counted in millionths of a dollar, so that three times 0.1 is 0.3."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from airflow_provider_wan.exceptions import WanBudgetError, WanInputError

GivenPrice = float | Mapping[str, float] | None

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """The limits of one task instance.

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

    A purchase counts with the price at which it was reserved until its real cost is known.

    :param limits: how much may be bought; of a mapped task, the limit in USD is the whole until :meth:`set_share`.
    """

    def __init__(self, limits: BudgetLimits) -> None:
        self._limits = limits
        self._limit = None if limits.max_cost_usd is None else round(limits.max_cost_usd * _MICRO)
        self._max_requests = limits.part(None).max_requests
        #: Whether the limit in USD is the share of this task.
        self.has_share = limits.of == 1
        self._lock = threading.Lock()
        #: The amount of each reservation, and of the latest purchase of each fingerprint until its cost is known.
        self._reserved: dict[str, int] = {}
        self._unsettled: dict[str, int] = {}
        self._spent = 0
        self._count = 0
        self._known_count = 0

    def set_share(self, limits: BudgetLimits, price_usd: float, learning_usd: float, *, is_first: bool) -> None:
        """Reduce the limit in USD to the share of this task.

        :param price_usd: of one request, from which the shares were computed.
        :param learning_usd: the amount that the task that set the shares had spent before.
        :param is_first: whether this is that task.
        """
        assert limits.max_cost_usd is not None
        rest = replace(limits, max_cost_usd=max(0.0, limits.max_cost_usd - learning_usd))
        share = (rest.part(price_usd).max_cost_usd or 0.0) + (learning_usd if is_first else 0.0)
        with self._lock:
            self._limit = round(share * _MICRO)
            self.has_share = True

    def bought_before(self, fingerprint: str, *, purchases: int, cost_usd: float | None, price_usd: float) -> None:
        """Count earlier purchases of this task instance.

        :param purchases: requests for this fingerprint, including failed ones.
        :param cost_usd: of the latest one, if known.
        :param price_usd: of those whose cost is not known.
        """
        amount = round(price_usd * _MICRO)
        with self._lock:
            self._count += purchases
            self._spent += amount * purchases
            self._unsettled[fingerprint] = amount
        if cost_usd is not None:
            self.settle(fingerprint, cost_usd)

    def reserve(self, fingerprint: str, price_usd: float) -> None:
        """Allow one purchase and count it; a second call before the purchase is made changes nothing.

        :raises WanBudgetError: it would exceed a limit.
        """
        amount = round(price_usd * _MICRO)
        with self._lock:
            if fingerprint in self._reserved:
                return
            why = self._why_not(amount)
            if why:
                raise WanBudgetError(why)
            self._reserved[fingerprint] = amount
            self._count += 1
            self._spent += amount

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
            self._known_count += 1

    def why_not(self, price_usd: float) -> str | None:
        """Return which limit a purchase at this price would exceed; None if it may be made."""
        with self._lock:
            return self._why_not(round(price_usd * _MICRO))

    def may_fit_later(self, price_usd: float) -> bool:
        """Return whether a purchase at this price is within the limits if no reserved purchase is made."""
        with self._lock:
            count, spent = len(self._reserved), sum(self._reserved.values())
            return self._why_not(round(price_usd * _MICRO) - spent, fewer=count) is None

    def _why_not(self, amount: int, *, fewer: int = 0) -> str | None:
        if self._max_requests is not None and self._count - fewer >= self._max_requests:
            return f"max_requests={self._limits.max_requests}{self._share(self._max_requests)} is reached."
        if self._limit is not None and self._spent + amount > self._limit:
            return (
                f"max_cost_usd={self._limits.max_cost_usd:g}{self._share(self._limit / _MICRO)} would be exceeded: "
                f"{self._spent / _MICRO:.2f} USD are spent or reserved, and the next request costs "
                f"{amount / _MICRO:g}."
            )
        return None

    def _share(self, mine: float) -> str:
        is_part = self._limits.of > 1 and self.has_share
        return f" (of which {mine:g} is this mapped task's share)" if is_part else ""

    @property
    def bought(self) -> int:
        """How many requests were or are being bought, including failed ones."""
        return self._count

    @property
    def unpriced(self) -> int:
        """The number of purchases whose real cost is not known."""
        return self._count - self._known_count

    @property
    def spent_usd(self) -> float:
        """The amount spent so far in USD; a purchase whose real cost is not known counts with its price."""
        return self._spent / _MICRO
