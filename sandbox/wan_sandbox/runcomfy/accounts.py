# SPDX-License-Identifier: Apache-2.0
"""Accounts: tokens, money, and how much an account may do at the same time and a second."""

from __future__ import annotations

import math
import time

from wan_sandbox.runcomfy.generations import Lane


class RateLimit:
    """So many calls a second, with a burst of one second's worth.

    :param per_second: None is no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self.per_second = per_second
        self._left = max(1.0, per_second or 0)
        self._at = time.monotonic()

    def take(self) -> int | None:
        """Count one call; None if it may pass, else the whole seconds to wait."""
        if self.per_second is None:
            return None
        now = time.monotonic()
        self._left = min(max(1.0, self.per_second), self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return None
        return max(1, math.ceil((1 - self._left) / self.per_second))


class Account:
    """A customer of the sandbox.

    :param name: how the control and the ledger call it.
    :param balance_micro: its money, in millionths of a USD.
    :param lane: where its generations wait and run.
    """

    def __init__(
        self,
        name: str,
        *,
        balance_micro: int,
        lane: Lane,
        requests_per_second: float | None = None,
        submits_per_second: float | None = None,
    ) -> None:
        self.name = name
        self.balance_micro = balance_micro
        #: Promised to generations that are not over yet.
        self.reserved_micro = 0
        self.lane = lane
        self.is_active = True
        self.requests = RateLimit(requests_per_second)
        self.submits = RateLimit(submits_per_second)

    def can_pay(self, price_micro: int) -> bool:
        """Return whether the unreserved balance is enough."""
        return self.balance_micro - self.reserved_micro >= price_micro

    def settle(self, price_micro: int, *, charged: bool) -> None:
        """End a promise: take the money, or leave it."""
        self.reserved_micro -= price_micro
        if charged:
            self.balance_micro -= price_micro

    def to_json(self) -> dict[str, object]:
        """Return it as the control route shows it."""
        return {
            "account": self.name,
            "balance_usd": self.balance_micro / 1e6,
            "reserved_usd": self.reserved_micro / 1e6,
            "concurrency": self.lane.concurrency,
            "requests_per_second": self.requests.per_second,
            "submits_per_second": self.submits.per_second,
            "active": self.is_active,
        }
