# SPDX-License-Identifier: Apache-2.0
"""The state of one sandbox: accounts, generations, faults and the ledger."""

from __future__ import annotations

import math
import random
import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wan_sandbox.control.faults import FaultBook, parse_rule
from wan_sandbox.runcomfy.accounts import Account, RateLimit
from wan_sandbox.runcomfy.api_faults import error_value
from wan_sandbox.runcomfy.catalog import Model
from wan_sandbox.runcomfy.clip import Clip, clip_of
from wan_sandbox.runcomfy.clock import Clock
from wan_sandbox.runcomfy.generations import Generation, Lane, Phase
from wan_sandbox.runcomfy.ledger import Ledger
from wan_sandbox.runcomfy.models import catalog
from wan_sandbox.runcomfy.pictures import Picture, PictureDesk
from wan_sandbox.runcomfy.prices import Prices
from wan_sandbox.runcomfy.studio import Studio, Video, inputs_key
from wan_sandbox.settings import Settings

DEFAULT_ACCOUNT = "default"
#: Median, least and most seconds of a generation, by lines (one 1080P trace took 163 s).
_LIFELIKE_SECONDS = {480: (105.0, 60.0, 180.0), 1080: (163.0, 90.0, 300.0)}
_LIFELIKE_SPREAD = 0.25
#: Fates that never give a video.
_WITHOUT_VIDEO = frozenset({"fail", "cancelled", "stuck_queue", "stuck_running"})


class World:
    """The state of one sandbox.

    :param settings: how it behaves.
    :param folder: for images and videos; the caller removes it.
    :param faults: the rules, which the bucket shares; it knows all kinds of faults.
    """

    def __init__(self, settings: Settings, folder: Path, faults: FaultBook) -> None:
        self.settings = settings
        self.secret = secrets.token_bytes(32)
        self.catalog = catalog(settings.models)
        keeps_images = settings.video_bytes is None
        self.pictures = PictureDesk(folder, keep=keeps_images)
        self.studio = Studio(folder, padded_bytes=settings.video_bytes)
        self.faults = faults
        self.reset()

    def reset(self) -> None:
        """Restore the initial state, with the initial fault rules."""
        self.clock = Clock(self.settings.speed)
        self.ledger = Ledger()
        self.generations: dict[str, Generation] = {}
        self.accounts: dict[str, Account] = {}
        self.tokens = {self.settings.token: self.account(DEFAULT_ACCOUNT)}
        base_micro = round(self.settings.price_usd * 1e6)
        self.prices = Prices(base_micro, by_inputs=self.settings.price_by_inputs, unit=self.settings.price_unit)
        self.generation_seconds = self.settings.generation_seconds
        self.faults.clear()
        for rule in self.settings.faults:
            self.faults.add_json(parse_rule(rule) if isinstance(rule, str) else rule)

    async def close(self) -> None:
        """Stop the threads."""
        await self.pictures.close()
        self.studio.close()

    def account(self, name: str) -> Account:
        """Return an account; a new one starts with the balance and limits of the settings."""
        if name not in self.accounts:
            lane = Lane(self.clock, concurrency=self.settings.concurrency, on_finish=self._on_time_over)
            self.accounts[name] = Account(
                name,
                balance_micro=round(self.settings.balance_usd * 1e6),
                lane=lane,
                requests_per_second=self.settings.requests_per_second,
                submits_per_second=self.settings.submits_per_second,
            )
        return self.accounts[name]

    def change_account(self, name: str, changes: Mapping[str, Any]) -> Account:
        """Change an account at run time; keys as in :meth:`Account.to_json`.

        :raises ValueError: a value is no number, or out of range.
        """
        account = self.account(name)
        account.lane.advance()
        if "balance_usd" in changes:
            account.balance_micro = round(float(changes["balance_usd"]) * 1e6)
        if "concurrency" in changes:
            if int(changes["concurrency"]) < 1:
                raise ValueError("concurrency must be 1 or more")
            account.lane.concurrency = int(changes["concurrency"])
            account.lane.advance()
        if "requests_per_second" in changes:
            account.requests = RateLimit(_rate(changes["requests_per_second"]))
        if "submits_per_second" in changes:
            account.submits = RateLimit(_rate(changes["submits_per_second"]))
        if "active" in changes:
            account.is_active = bool(changes["active"])
        return account

    def up_to_date(self) -> None:
        """Advance every lane to the present."""
        for account in self.accounts.values():
            account.lane.advance()

    def price_micro(self, model: Model, inputs: Mapping[str, Any]) -> int:
        """Return what a request costs, in millionths of a USD."""
        return self.prices.of(model, clip_of(model.model_id, inputs, model.schema))

    def buy(self, account: Account, model: Model, inputs: dict[str, Any], pictures: Sequence[Picture]) -> Generation:
        """Accept a request. It is charged unless it is cancelled in the queue or fails.

        :param pictures: its images, if they were fetched.
        """
        clip = clip_of(model.model_id, inputs, model.schema)
        generation = Generation(
            request_id=str(uuid.uuid4()),
            account=account.name,
            model_id=model.model_id,
            inputs=inputs,
            seconds=self._seconds(clip),
            submitted_at=time.time(),
            price_micro=self.prices.of(model, clip),
            clip=clip,
            img_url=next((url for _, url in model.images(inputs)), None),
            output_shape=model.output_shape,
            video_key=inputs_key(model, inputs, [picture.sha256 for picture in pictures]),
            image_path=pictures[0].path if pictures else None,
        )
        self._choose_fate(generation)
        account.reserved_micro += generation.price_micro
        self.generations[generation.request_id] = generation
        if self.studio.encodes and generation.fate not in _WITHOUT_VIDEO:
            self._order_video(generation)
        account.lane.add(generation)
        return generation

    def _seconds(self, clip: Clip) -> float:
        median, least, most = _LIFELIKE_SECONDS[480 if clip.lines <= 480 else 1080]
        spread = self.settings.spread
        if self.generation_seconds is not None:
            median, least, most = self.generation_seconds, 0.0, math.inf
            spread = spread or 0.0
        spread = _LIFELIKE_SPREAD if spread is None else spread
        # By purchase, not by one stream of random numbers: a run can be repeated whatever else is asked.
        chance = random.Random(self.settings.seed * 1_000_003 + len(self.generations))
        return min(most, max(least, median * math.exp(chance.gauss(0, spread)))) if spread else median

    def _choose_fate(self, generation: Generation) -> None:
        rule = self.faults.pick("generation", None, generation.subject())
        if rule is None:
            return
        self.ledger.faults[f"generation:{rule.fault}"] += 1
        generation.fate, generation.fate_params = rule.fault, dict(rule.params)
        if rule.fault == "slow":
            seconds = generation.seconds * float(rule.params.get("factor", 10))
            generation.seconds = float(rule.params.get("seconds", seconds))
        if rule.fault == "vanish" and rule.params.get("when") == "submitted":
            generation.vanished = True

    def _order_video(self, generation: Generation) -> None:
        def on_done(worked: bool) -> None:
            generation.video_ready = True
            if not worked:
                generation.fate, generation.fate_params = "fail", {"error": "the sandbox could not encode"}
            if self.generations.get(generation.request_id) is not generation:
                return  # the sandbox was reset since
            self.accounts[generation.account].lane.advance()
            if generation.time_is_over and not generation.phase.is_over:
                self.conclude(generation, time.time())

        generation.video_ready = False
        self.studio.order(
            _video_key(generation, 0),
            image=generation.image_path,
            clip=generation.clip,
            on_done=on_done,
        )

    def _on_time_over(self, generation: Generation, moment: float) -> None:
        generation.time_is_over = True
        if generation.video_ready:
            self.conclude(generation, self.clock.wall_time(moment))

    def conclude(self, generation: Generation, at: float) -> None:
        """End a generation according to its fate, and charge it."""
        params = generation.fate_params
        charged = True
        match generation.fate:
            case "fail":
                generation.phase, charged = Phase.FAILED, bool(params.get("charged", False))
                generation.error = error_value(params)
            case "cancelled":
                generation.phase, charged = Phase.CANCELLED, False
            case _:
                generation.phase = Phase.SUCCEEDED
        self._settle(generation, at, charged=charged)

    def cancel(self, generation: Generation) -> bool:
        """Cancel a queued generation; False for any other."""
        account = self.accounts[generation.account]
        if not account.lane.cancel(generation):
            return False
        self._settle(generation, time.time(), charged=False)
        return True

    def _settle(self, generation: Generation, at: float, *, charged: bool) -> None:
        generation.finished_at = at
        generation.charged_micro = generation.price_micro if charged else 0
        self.accounts[generation.account].settle(generation.price_micro, charged=charged)

    async def video(self, generation: Generation, index: int) -> Video:
        """Return the file of a generation's video.

        :param index: 0 is the first; others are other takes of the same image.
        """
        return await self.studio.video(
            _video_key(generation, index),
            label=f"{generation.request_id} {index}",
            image=generation.image_path,
            clip=generation.clip,
        )


def _video_key(generation: Generation, index: int) -> str:
    return f"{generation.video_key}-{index}"


def _rate(value: Any) -> float | None:
    rate = None if value is None else float(value)
    if rate is not None and rate <= 0:
        raise ValueError("a limit must be more than 0, or null for none")
    return rate
