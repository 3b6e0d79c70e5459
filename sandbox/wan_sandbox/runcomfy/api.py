# SPDX-License-Identifier: Apache-2.0
"""The calls of the Model API: accounts, answers, and the faults in between."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from wan_sandbox.control.faults import FaultRule
from wan_sandbox.control.transport import play
from wan_sandbox.runcomfy.accounts import Account
from wan_sandbox.runcomfy.api_faults import as_status_fault, error_json
from wan_sandbox.runcomfy.catalog import Model
from wan_sandbox.runcomfy.generations import Generation, Phase
from wan_sandbox.runcomfy.input_checks import check_inputs, detail
from wan_sandbox.runcomfy.pictures import BadPictureError, Picture
from wan_sandbox.runcomfy.results import cancel_json, result_json, status_json, urls
from wan_sandbox.runcomfy.world import World

_MODEL_ID = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){1,4}\Z")


class Refusal(Exception):
    """An error answer.

    :param status: HTTP status.
    :param code: the API's own code; with it the body is the API's error JSON.
    :param body: another body.
    :param retry_after_s: whole seconds for ``Retry-After``.
    """

    def __init__(
        self, status: int, code: int | None = None, *, body: Any = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code = status, code
        self.body = error_json(status, {"error_code": code} if code else {}) if body is None else body
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


@dataclass(slots=True)
class Call:
    """One call that came in.

    :param about: the request id, or the digest of the submitted body: the subject of a ``Retry-After``.
    :param subject: texts that a fault rule may be limited to.
    :param entry: of a submit in the ledger.
    :param rule: the fault that hits the call.
    """

    request: web.Request
    name: str
    about: str
    subject: Mapping[str, str] = field(default_factory=dict)
    entry: dict[str, Any] = field(default_factory=dict)
    rule: FaultRule | None = None

    @property
    def fault(self) -> str:
        """Name of the fault, or an empty text."""
        return self.rule.fault if self.rule else ""

    @property
    def origin(self) -> str:
        """The address as the client knows it, so that links work through proxies and port mappings."""
        return f"{self.request.scheme}://{self.request.host}"


Handler = Callable[[Call, Account], Awaitable[web.StreamResponse]]


class Api:
    """The handlers of the Model API, and of the balance, which has another host in real life."""

    def __init__(self, world: World) -> None:
        self._world = world

    def add_routes(self, app: web.Application) -> None:
        """Serve every call of the contract."""
        add = app.router.add_route
        add("GET", "/v1/requests/{request_id}/status", self._call("status", self._status))
        add("GET", "/v1/requests/{request_id}/result", self._call("result", self._result))
        add("POST", "/v1/requests/{request_id}/cancel", self._call("cancel", self._cancel))
        add("GET", "/v1/models", self._call("models", self._models))
        add("GET", "/v1/models/categories", self._call("models", self._categories))
        add("POST", "/v1/models/{model_id:.+}", self._call("submit", self._submit))
        add("GET", "/v1/models/{model_id:.+}", self._call("model", self._model))
        add("GET", "/prod/v2/balance", self._call("balance", self._balance))

    def _call(self, name: str, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a handler in what all calls share: ledger, faults, account and limits."""
        world = self._world

        async def serve(request: web.Request) -> web.StreamResponse:
            ledger = world.ledger
            ledger.calls[name] += 1
            call = await self._read(request, name)
            ledger.check_waited(name, call.about)
            rule = call.rule = world.faults.pick(name, request.match_info.get("request_id"), call.subject)
            if rule is None:
                answer = await self._answer(call, handler)
            else:
                ledger.faults[f"{name}:{rule.fault}"] += 1
                answer = await play(
                    request,
                    as_status_fault(rule),
                    lambda: self._answer(call, handler),
                    error_json=error_json,
                )
            if "Retry-After" in answer.headers:
                ledger.tell_to_wait(name, call.about, answer.headers["Retry-After"])
            return answer

        return serve

    async def _read(self, request: web.Request, name: str) -> Call:
        """Return the subject of a call: the request id, or the digest of the submitted body."""
        request_id = request.match_info.get("request_id")
        if request_id is not None:
            generation = self._world.generations.get(request_id)
            subject = generation.subject() if generation and self._world.faults.has_rules else {}
            return Call(request, name, request_id, subject)
        if name != "submit":
            return Call(request, name, request.path_qs)
        raw = await request.read()
        model_id = request.match_info["model_id"]
        inputs, model = _json_object(raw) or {}, self._world.catalog.find(model_id)
        image = next((url for _, url in model.images(inputs)), None) if model else None
        entry = self._world.ledger.see_submit(inputs=inputs, model_id=model_id, image=image)
        subject = {"prompt": entry["prompt"], "img_url": entry["img_url"]}
        return Call(request, name, hashlib.sha256(raw).hexdigest(), subject, entry=entry)

    async def _answer(self, call: Call, handler: Handler) -> web.StreamResponse:
        account: Account | None = None
        try:
            account = self._account_of(call.request)
            call.entry["account"] = account.name
            self._limit(account, call.name)
            return await handler(call, account)
        except Refusal as no:
            name = account.name if account else None
            self._world.ledger.see_refusal(call=call.name, account=name, status=no.status, code=no.code)
            call.entry["outcome"] = f"refused {no.status}"
            return web.json_response(no.body, status=no.status, headers=no.headers)

    def _account_of(self, request: web.Request) -> Account:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        account = self._world.tokens.get(token.strip()) if scheme.lower() == "bearer" else None
        if account is None or not account.is_active:
            raise Refusal(400, 400004)  # a bad token can arrive as HTTP 400
        return account

    def _limit(self, account: Account, name: str) -> None:
        wait_s = account.requests.take()
        if wait_s is None and name == "submit":
            wait_s = account.submits.take()
        if wait_s is not None:
            raise Refusal(429, body={"message": "Too many requests"}, retry_after_s=wait_s)

    def _generation(self, request: web.Request, account: Account) -> Generation:
        generation = self._world.generations.get(request.match_info["request_id"])
        if generation is None:
            raise Refusal(404, 404001)
        if generation.account != account.name:
            raise Refusal(403, 403001)
        account.lane.advance()
        if generation.vanished:
            raise Refusal(404, 404001)
        return generation

    async def _submit(self, call: Call, account: Account) -> web.StreamResponse:
        world, model_id = self._world, call.request.match_info["model_id"]
        model = world.catalog.find(model_id) if _MODEL_ID.match(model_id) else None
        if model is None:
            raise Refusal(400, 400001)
        inputs = _json_object(await call.request.read())
        if inputs is None:
            raise Refusal(422, body={"detail": [detail("", "Input should be a valid JSON object", "json")]})
        problems = check_inputs(inputs, model.schema) if model.schema else []
        if problems:
            raise Refusal(422, body={"detail": problems})
        pictures = await self._look_at(model, inputs)
        # No await from here on: the balance is checked and reserved in one step.
        account.lane.advance()
        if not account.can_pay(world.price_micro(model, inputs)):
            raise Refusal(400, 400002)
        generation = world.buy(account, model, inputs, pictures)
        call.entry.update(outcome="accepted", request_id=generation.request_id)
        return self._submitted(call, generation)

    async def _look_at(self, model: Model, inputs: Mapping[str, Any]) -> list[Picture]:
        if not self._world.settings.check_images:
            return []
        pictures = []
        for name, url in model.images(inputs):
            try:
                pictures.append(await self._world.pictures.look_at(url, model.image_rules[name]))
            except BadPictureError as bad:
                raise Refusal(422, body={"detail": [detail(name, str(bad), "image")]}) from bad
        return pictures

    def _submitted(self, call: Call, generation: Generation) -> web.StreamResponse:
        body: dict[str, Any] = {"request_id": generation.request_id}
        body |= urls(call.origin, generation.request_id, call.rule)
        if call.fault == "no_id":
            body = {"message": "accepted"}
        elif call.rule is not None and call.fault == "bad_id":
            body["request_id"] = call.rule.params.get("id", "../../../v1/models")
        return web.json_response(body, status=202 if call.fault == "accepted_202" else 200)

    async def _status(self, call: Call, account: Account) -> web.StreamResponse:
        generation = self._generation(call.request, account)
        generation.status_calls += 1
        self._notice(generation)
        return web.json_response(status_json(self._world, call.origin, generation, call.rule))

    async def _result(self, call: Call, account: Account) -> web.StreamResponse:
        generation = self._generation(call.request, account)
        generation.result_calls += 1
        self._notice(generation)
        early = call.fault == "early_400005" or self._world.settings.early_result == "400005"
        if call.fault == "not_ready" or (early and not generation.phase.is_over):
            raise Refusal(400, 400005)
        if generation.phase.is_over and generation.fate == "vanish":
            if generation.results_told >= int(generation.fate_params.get("after_results", 0)):
                generation.vanished = True
                raise Refusal(404, 404001)
            generation.results_told += 1
        with_cost = call.request.query.get("include_cost", "").lower() == "true"
        body = result_json(self._world, call.origin, generation, with_cost=with_cost, rule=call.rule)
        return web.json_response(body)

    def _notice(self, generation: Generation) -> None:
        if generation.noticed_at is None and generation.phase.is_over:
            generation.noticed_at = time.time()

    async def _cancel(self, call: Call, account: Account) -> web.StreamResponse:
        generation = self._generation(call.request, account)
        refuses = call.fault == "not_cancellable"
        before = generation.phase is Phase.CANCELLED
        cancelled = before or (not refuses and self._world.cancel(generation))
        outcome = "already_cancelled" if before else "cancelled" if cancelled else "not_cancellable"
        self._world.ledger.see_cancel(generation, outcome)
        return web.json_response(cancel_json(generation, cancelled=cancelled, rule=call.rule), status=202)

    async def _model(self, call: Call, account: Account) -> web.StreamResponse:
        model = self._world.catalog.find(call.request.match_info["model_id"])
        if model is None:
            raise Refusal(400, 400001)
        return web.json_response(self._page(model))

    async def _models(self, call: Call, account: Account) -> web.StreamResponse:
        query = call.request.query
        found = self._world.catalog.search(text=query.get("search", ""), category=query.get("category", ""))
        try:
            first, count = int(query.get("offset", "0")), int(query.get("limit", "20"))
        except ValueError:
            raise Refusal(422, body={"detail": [detail("limit", "Input should be an integer", "int")]}) from None
        with_schema = query.get("include_schema", "").lower() == "true"
        shown = found[max(0, first) : max(0, first) + count]
        pages = [self._page(model, with_schema=with_schema) for model in shown]
        return web.json_response({"models": pages, "total": len(found)})

    async def _categories(self, call: Call, account: Account) -> web.StreamResponse:
        return web.json_response({"categories": self._world.catalog.categories()})

    def _page(self, model: Model, *, with_schema: bool = True) -> dict[str, Any]:
        prices = self._world.prices
        return model.to_json(
            price_usd=prices.base_usd(model),
            price_unit=self._world.settings.price_unit,
            is_base=prices.is_by_inputs(model),
            with_schema=with_schema,
        )

    async def _balance(self, call: Call, account: Account) -> web.StreamResponse:
        account.lane.advance()
        micro = account.balance_micro
        return web.json_response({"balance_usd": micro / 1e6, "balance_microdollars": micro, "currency": "USD"})


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
