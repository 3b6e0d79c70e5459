# SPDX-License-Identifier: Apache-2.0
"""Routes to change fault rules at run time: ``/_sandbox/faults`` on both ports."""

from __future__ import annotations

import json

from aiohttp import web

from wan_sandbox.control.faults import FaultBook, FaultError


def add_fault_routes(app: web.Application, faults: FaultBook) -> None:
    """Serve ``GET, POST, DELETE /_sandbox/faults[/{id}]`` and ``GET /_sandbox/fault-kinds``."""

    async def list_rules(request: web.Request) -> web.Response:
        return web.json_response({"faults": [rule.to_json() for rule in faults.rules()]})

    async def list_kinds(request: web.Request) -> web.Response:
        kinds = [
            {"fault": kind.name, "calls": kind.calls, "params": sorted(kind.params), "about": kind.about}
            for named in faults.kinds.values()
            for kind in named
        ]
        return web.json_response({"kinds": kinds})

    async def add_rule(request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.text())
            if not isinstance(body, dict):
                raise FaultError("a fault rule is a JSON object")
            rule = faults.add_json(body)
        except ValueError as error:  # also a FaultError
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(rule.to_json(), status=201)

    async def remove_rule(request: web.Request) -> web.Response:
        rule_id = request.match_info["rule_id"]
        if not faults.remove(rule_id):
            return web.json_response({"error": f"there is no fault {rule_id!r}"}, status=404)
        return web.json_response({"removed": rule_id})

    async def remove_all(request: web.Request) -> web.Response:
        faults.clear()
        return web.json_response({"removed": "all"})

    app.router.add_get("/_sandbox/faults", list_rules)
    app.router.add_get("/_sandbox/fault-kinds", list_kinds)
    app.router.add_post("/_sandbox/faults", add_rule)
    app.router.add_delete("/_sandbox/faults", remove_all)
    app.router.add_delete("/_sandbox/faults/{rule_id}", remove_rule)
