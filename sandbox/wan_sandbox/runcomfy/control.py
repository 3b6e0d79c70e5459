# SPDX-License-Identifier: Apache-2.0
"""Control routes under ``/_sandbox/``: inspect and change a sandbox at run time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from wan_sandbox.control.routes import add_fault_routes
from wan_sandbox.runcomfy.generations import Generation
from wan_sandbox.runcomfy.world import DEFAULT_ACCOUNT, World


class Control:
    """The handlers under ``/_sandbox/`` on the API's port."""

    def __init__(self, world: World) -> None:
        self._world = world

    def add_routes(self, app: web.Application) -> None:
        """Serve ledger, tokens, accounts, speed, requests, reset and faults."""
        add = app.router.add_route
        add("GET", "/_sandbox/health", self._health)
        add("GET", "/_sandbox/ledger", self._ledger)
        add("GET", "/_sandbox/account", self._show_accounts)
        add("GET", "/_sandbox/requests/{request_id}", self._show_request)
        for path, change in {
            "/_sandbox/tokens": self._tokens,
            "/_sandbox/account": self._account,
            "/_sandbox/speed": self._speed,
            "/_sandbox/price": self._price,
            "/_sandbox/requests/{request_id}": self._force,
            "/_sandbox/reset": self._reset,
        }.items():
            add("POST", path, _with_body(change))
        add_fault_routes(app, self._world.faults)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "service": "model-api", "speed": self._world.clock.speed})

    async def _ledger(self, request: web.Request) -> web.Response:
        self._world.up_to_date()
        wanted = self._world.generations.values()
        with_entries = request.query.get("summary", "") not in {"1", "true"}
        return web.json_response(self._world.ledger.to_json(wanted, with_entries=with_entries))

    async def _show_accounts(self, request: web.Request) -> web.Response:
        self._world.up_to_date()
        accounts = [account.to_json() for account in self._world.accounts.values()]
        return web.json_response({"accounts": accounts})

    async def _show_request(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request).to_json())

    def _tokens(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        """Add a token to an account, and revoke one: both at once is a rotation."""
        world = self._world
        if body.get("add"):
            world.tokens[str(body["add"])] = world.account(str(body.get("account", DEFAULT_ACCOUNT)))
        if body.get("revoke") and world.tokens.pop(str(body["revoke"]), None) is None:
            raise ValueError("the token to revoke is not known")
        return {"tokens": len(world.tokens)}

    def _account(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        return self._world.change_account(str(body.get("account", DEFAULT_ACCOUNT)), body).to_json()

    def _speed(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        """Change the speed of all generations, and the length of later ones."""
        world = self._world
        speed = float(body.get("speed", world.clock.speed))
        if not 0 < speed < math.inf:
            raise ValueError("speed must be more than 0")
        world.up_to_date()
        world.clock.set_speed(speed)
        if "generation_seconds" in body:
            seconds = body["generation_seconds"]
            world.generation_seconds = None if seconds is None else max(0.0, float(seconds))
        return {"speed": speed, "generation_seconds": world.generation_seconds}

    def _price(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        """Change the prices of later purchases."""
        self._world.prices.change(body)
        return self._world.prices.to_json()

    def _force(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        """Force a request into a state; ``error``, ``error_shape`` and ``charged`` as for the fault ``fail``."""
        generation, state = self._find(request), str(body.get("state"))
        lane = self._world.accounts[generation.account].lane
        if state == "vanished":
            generation.vanished = True
        elif generation.phase.is_over:
            raise ValueError(f"the request is {generation.phase} already")
        elif state == "stuck":
            lane.stick(generation)
        elif state in {"succeeded", "failed", "cancelled"}:
            generation.fate = {"succeeded": "", "failed": "fail", "cancelled": "cancelled"}[state]
            generation.fate_params = {name: value for name, value in body.items() if name != "state"}
            lane.finish_now(generation)
            if not generation.phase.is_over:  # its video is still being made
                self._world.conclude(generation, time.time())
        else:
            raise ValueError("state must be succeeded, failed, cancelled, stuck or vanished")
        return generation.to_json()

    def _reset(self, request: web.Request, body: Mapping[str, Any]) -> Any:
        self._world.reset()
        return {"ok": True}

    def _find(self, request: web.Request) -> Generation:
        generation = self._world.generations.get(request.match_info["request_id"])
        if generation is None:
            raise web.HTTPNotFound(text='{"error": "there is no such request"}', content_type="application/json")
        self._world.accounts[generation.account].lane.advance()
        return generation


def _with_body(
    change: Callable[[web.Request, Mapping[str, Any]], Any],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Read the JSON body of a change, and answer 400 with the reason where it cannot be made."""

    async def handle(request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.text() or "{}")
            if not isinstance(body, dict):
                raise ValueError("the body must be a JSON object")
            return web.json_response(change(request, body))
        except KeyError as missing:
            return web.json_response({"error": f"{missing} is missing"}, status=400)
        except (TypeError, ValueError) as bad:
            return web.json_response({"error": str(bad)}, status=400)

    return handle
