# SPDX-License-Identifier: Apache-2.0
"""Who is told what happens in a batch, at the moment it happens: so that it is told once, whatever follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.exceptions import WanError


@dataclass(frozen=True, slots=True)
class Landed:
    """A landing that went well.

    :param took_s: from its beginning to the verified video in the bucket.
    :param is_first_seen: whether nobody had seen before that the request succeeded.
    :param running_since: when it is believed to have begun to run, in unix seconds; None: not known.
    """

    record: Record
    took_s: float
    is_first_seen: bool = True
    running_since: float | None = None


class BatchListener:
    """Is told, by one thread; this one keeps it to itself.

    A batch that goes on after a wait, in another process, does not tell again what it has told before it.
    """

    def began(self, *, adopted: int, reused: int, refused: int) -> None:
        """A try begins.

        :param adopted: requests that an earlier try has left in flight.
        :param reused: videos that are there already.
        :param refused: rows that nothing can be made of.
        """

    def obtained(self, how: Literal["submitted", "adopted", "reused"]) -> None:
        """There is a request for an image."""

    def refused(self) -> None:
        """An image breaks a rule; nothing was bought."""

    def unknown(self) -> None:
        """A submit went out, and nobody got its answer."""

    def made_nothing(self, error: WanError, cost_usd: float | None) -> None:
        """A request has failed or was cancelled; another one may follow it.

        :param cost_usd: what was charged all the same, if it is known.
        """

    def landed(self, landed: Landed) -> None:
        """A video is in the bucket."""
