# SPDX-License-Identifier: Apache-2.0
"""The ledger: calls, purchases, charges, cancels and refusals.

It also keeps each ``Retry-After`` that was sent, and records the calls that came earlier.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from wan_sandbox.runcomfy.generations import Generation

#: Largest difference between the clocks of a client and this machine, in seconds.
_TOLERANCE_S = 0.005


class Ledger:
    """The ledger of one sandbox."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.submits: list[dict[str, Any]] = []
        self.cancels: list[dict[str, Any]] = []
        self.refusals: list[dict[str, Any]] = []
        self.faults: Counter[str] = Counter()
        self.token_leaked: list[dict[str, Any]] = []
        self.too_early: list[dict[str, Any]] = []
        #: (call, request) -> (real time before which it must not be made again, the header)
        self._not_before: dict[tuple[str, str], tuple[float, str]] = {}

    def see_submit(self, *, inputs: Mapping[str, Any], model_id: str, image: str | None) -> dict[str, Any]:
        """Record a POST; its outcome is filled in later."""
        entry = {
            "at": time.time(),
            "account": None,
            "model_id": model_id,
            "img_url": str(image or "")[:2000],
            "prompt": str(inputs.get("prompt", ""))[:2000],
            "outcome": "seen",
            "request_id": None,
        }
        self.submits.append(entry)
        return entry

    def see_cancel(self, generation: Generation, outcome: str) -> None:
        """Record a cancel and its outcome."""
        entry = {"at": time.time(), "request_id": generation.request_id, "account": generation.account}
        self.cancels.append({**entry, "outcome": outcome, "state": str(generation.phase)})

    def see_refusal(self, *, call: str, account: str | None, status: int, code: int | None) -> None:
        """Record a refused call, with status and code."""
        entry = {"at": time.time(), "call": call, "account": account, "status": status, "code": code}
        self.refusals.append(entry)

    def see_leaked_token(self, *, path: str, where: str) -> None:
        """Record that a token was sent to a public link; the token itself is not stored."""
        self.token_leaked.append({"at": time.time(), "path": path, "where": where})

    def tell_to_wait(self, call: str, about: str, header: str) -> None:
        """Keep a ``Retry-After`` that was sent."""
        until = _until(header)
        if until is not None:
            self._not_before[(call, about)] = (until, header)

    def check_waited(self, call: str, about: str) -> None:
        """Record a call that comes sooner than its last answer allowed."""
        if not self._not_before:
            return
        waiting = self._not_before.pop((call, about), None)
        early_s = waiting[0] - time.time() if waiting else 0.0
        if waiting and early_s > _TOLERANCE_S:
            entry = {"at": time.time(), "call": call, "request_id": about, "retry_after": waiting[1]}
            self.too_early.append({**entry, "early_s": early_s})

    def to_json(self, generations: Iterable[Generation], *, with_entries: bool = True) -> dict[str, Any]:
        """Return the whole ledger, or with ``with_entries=False`` only its sums."""
        generations = list(generations)
        sums: dict[str, Any] = {
            "submits_seen": len(self.submits),
            "purchases_count": len(generations),
            "charged_usd": sum(generation.charged_micro for generation in generations) / 1e6,
            "states": dict(Counter(str(generation.phase) for generation in generations)),
            "calls": dict(self.calls),
            "faults": dict(self.faults),
        }
        if not with_entries:
            return sums
        return {
            **sums,
            "purchases": [generation.to_json() for generation in generations],
            "submits": self.submits,
            "cancels": self.cancels,
            "refusals": self.refusals,
            "token_leaked": self.token_leaked,
            "too_early": self.too_early,
        }


def _until(header: str) -> float | None:
    """Parse a Retry-After into a moment; None if it is invalid."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return time.time() + int(text[:12])
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
