# SPDX-License-Identifier: Apache-2.0
"""The settings of a sandbox, with defaults close to the real service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one sandbox; the command line and :class:`Sandbox` use the same names.

    :param host: address to listen on.
    :param port: of the API and its media; 0 takes a free one.
    :param bucket_port: of the bucket; 0 takes a free one.
    :param control_hosts: names, besides IP addresses and localhost, by which ``/_sandbox/`` may be called.
    :param speed: speed-up of generations; 60 turns a minute into a second.
    :param generation_seconds: length of a generation before ``speed``; default: lifelike, 60 to 180 s at
        480P and around 163 s at 1080P.
    :param spread: spread of the lengths (sigma of a lognormal distribution); default: 0.25, and 0 where
        ``generation_seconds`` is given.
    :param concurrency: generations of an account that run at the same time; the rest queues.
    :param balance_usd: what an account starts with, in USD.
    :param price_usd: of one clip of Wan 2.2, in USD; the other models cost in proportion.
    :param price_by_inputs: whether to charge by resolution, duration and audio; the page's price is then only a
        base. Default: no for Wan 2.2 and models of any input, yes for the others.
    :param price_unit: how the page of Wan 2.2, or of a model of any input, states the price: ``output`` or
        ``second``.
    :param token: of the account ``default``.
    :param requests_per_second: of an account, over which a call is answered with 429; default: no limit.
    :param submits_per_second: the same for submits alone.
    :param video_bytes: serve a small real MP4 that is padded to exactly this size and encode nothing.
    :param check_images: fetch each image and check it before anything is bought.
    :param link_ttl_seconds: how long a link to a video is valid; asking for the result gives a fresh one.
    :param early_result: what ``/result`` says too early: ``state`` (200 and the state) or ``400005``.
    :param models: ids of further models, which take any input.
    :param buckets: names of buckets to create at the start.
    :param faults: rules that apply from the start, as text (``call:fault[:key=value,...]``) or mappings.
    :param seed: seed of all random numbers.
    """

    host: str = "127.0.0.1"
    port: int = 0
    bucket_port: int = 0
    control_hosts: tuple[str, ...] = ()
    speed: float = 1.0
    generation_seconds: float | None = None
    spread: float | None = None
    concurrency: int = 2
    balance_usd: float = 1000.0
    price_usd: float = 0.2
    price_unit: str = "output"
    price_by_inputs: bool | None = None
    token: str = "sandbox-token"
    requests_per_second: float | None = None
    submits_per_second: float | None = None
    video_bytes: int | None = None
    check_images: bool = True
    link_ttl_seconds: float = 3600.0
    early_result: str = "state"
    models: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    faults: tuple[str | Mapping[str, Any], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "speed must be more than 0": self.speed > 0,
            "generation-seconds must be 0 or more": (self.generation_seconds or 0) >= 0,
            "spread must be 0 or more": (self.spread or 0) >= 0,
            "concurrency must be 1 or more": self.concurrency >= 1,
            "price must be 0 or more": self.price_usd >= 0,
            "price-unit must be output or second": self.price_unit in {"output", "second"},
            "early-result must be state or 400005": self.early_result in {"state", "400005"},
            "token must not be empty": bool(self.token),
        }
        for rule, holds in checks.items():
            if not holds:
                raise ValueError(rule)
