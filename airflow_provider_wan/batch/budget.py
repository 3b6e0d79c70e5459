# SPDX-License-Identifier: Apache-2.0
"""What a batch may still buy. Counts in millionths of a dollar, so that three times 0.1 is 0.3."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanBudgetError, WanInputError

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task instance may buy.

    :param max_cost_usd: in USD; None: no limit.
    :param max_requests: how many requests; None: no limit.
    :param index: of a mapped whole: which part this is, from 0; in Airflow the map index.
    :param of: of how many parts; the two limits are for all of them together.
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
                f"share_of={self.of}, but this is mapped task {self.index} of more. Give the number of chunks as "
                "share_of."
            )

    def part(self, price_usd: float | None) -> Limits:
        """Give what is for this task instance alone, such that all parts together make the whole exactly.

        Money is divided by requests that it can pay: a tenth of a dollar for each of a hundred tasks buys nothing.

        :param price_usd: of one request, if it is known.
        """
        requests = None if self.max_requests is None else _part(self.max_requests, self.index, self.of)
        if self.max_cost_usd is None:
            return Limits(None, requests)
        whole, price = round(self.max_cost_usd * _MICRO), round((price_usd or 0.0) * _MICRO)
        if not price:
            return Limits(_part(whole, self.index, self.of) / _MICRO, requests)
        payable = whole // price if self.max_requests is None else min(whole // price, self.max_requests)
        micro = _part(payable, self.index, self.of) * price
        if self.index == self.of - 1:
            micro += whole - payable * price
        return Limits(micro / _MICRO, requests)


def _part(whole: int, index: int, of: int) -> int:
    return whole * (index + 1) // of - whole * index // of


class Budget:
    """Allows purchases one by one, and remembers what they cost. Safe to use from threads.

    Every purchase counts with the price until its real cost is known. A real cost above the price raises the price of
    what is bought after it.

    :param limits: how far to go.
    :param price_usd: of one request; None: not known.
    :raises WanBudgetError: there is a limit in money, and no price to hold it with.
    :raises WanInputError: the price is none.
    """

    def __init__(self, limits: Limits, price_usd: float | None) -> None:
        if limits.max_cost_usd is not None and price_usd is None:
            raise WanBudgetError(
                "max_cost_usd can't be kept: what a request costs is not known, for the model's page states no "
                "price. Nothing was bought. Give price_usd, or limit the number with max_requests."
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
        self._latest: dict[str, int] = {}
        self._reserved: set[str] = set()
        self._spent = 0
        self._count = 0
        self._known = 0
        self._known_count = 0

    def bought_before(self, fingerprint: str, *, purchases: int, cost_usd: float | None) -> None:
        """Count what this task instance has bought earlier.

        :param purchases: requests for this fingerprint, failed ones included.
        :param cost_usd: of the latest, if it is known.
        """
        with self._lock:
            self._count += purchases
            self._spent += self._price * purchases
            self._latest[fingerprint] = self._price
        if cost_usd is not None:
            self.settle(fingerprint, cost_usd)

    def reserve(self, fingerprint: str) -> None:
        """Allow one purchase and count it; again for the same one, before it is made, changes nothing.

        :raises WanBudgetError: it would pass a limit.
        """
        with self._lock:
            if fingerprint in self._reserved:
                return
            why = self._why_not()
            if why:
                raise WanBudgetError(why)
            self._reserved.add(fingerprint)
            self._count += 1
            self._spent += self._price

    def made(self, fingerprint: str) -> None:
        """The reserved purchase was made, or may have been."""
        with self._lock:
            if fingerprint in self._reserved:
                self._reserved.discard(fingerprint)
                self._latest[fingerprint] = self._price

    def release(self, fingerprint: str) -> None:
        """The reserved purchase was not made."""
        with self._lock:
            if fingerprint in self._reserved:
                self._reserved.discard(fingerprint)
                self._count -= 1
                self._spent -= self._price

    def settle(self, fingerprint: str, cost_usd: float) -> None:
        """Count the latest purchase of a fingerprint with its real cost; what others have bought is passed over."""
        cost = round(cost_usd * _MICRO)
        with self._lock:
            if fingerprint not in self._latest:
                return
            self._spent += cost - self._latest.pop(fingerprint)
            self._known += cost
            self._known_count += 1
            if self._limit is not None:
                self._price = max(self._price, cost)

    def why_not(self) -> str | None:
        """Say which limit another purchase would pass; None: it may be made."""
        with self._lock:
            return self._why_not()

    def _why_not(self) -> str | None:
        if self._max_requests is not None and self._count >= self._max_requests:
            return f"max_requests={self._limits.max_requests}{self._share(self._max_requests)} is reached."
        if self._limit is not None and self._spent + self._price > self._limit:
            return (
                f"max_cost_usd={self._limits.max_cost_usd:g}{self._share(self._limit / _MICRO)} would be passed: "
                f"{self._spent / _MICRO:.2f} USD are spent or promised, and the next request costs "
                f"{self._price / _MICRO:g}."
            )
        return None

    def _share(self, mine: float) -> str:
        return f" (of which {mine:g} is this mapped task's share)" if self._limits.of > 1 else ""

    @property
    def bought(self) -> int:
        """How many requests were bought, or are being bought, failed ones included."""
        return self._count

    @property
    def known_cost_usd(self) -> float:
        """What is known to have been charged."""
        return self._known / _MICRO

    @property
    def unpriced(self) -> int:
        """Of how many purchases the real cost is not known."""
        return self._count - self._known_count

    @property
    def spent_usd(self) -> float:
        """What was spent, with the price where the real cost is not known."""
        return self._spent / _MICRO
