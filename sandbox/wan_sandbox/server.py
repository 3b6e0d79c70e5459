# SPDX-License-Identifier: Apache-2.0
"""Starts and stops a sandbox: in an event loop (:func:`serve`), or in a thread of a test (:class:`Sandbox`)."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from wan_sandbox.bucket.app import bucket_app
from wan_sandbox.bucket.faults import BUCKET_FAULTS
from wan_sandbox.control.faults import FaultBook
from wan_sandbox.control.guard import control_guard
from wan_sandbox.runcomfy.api import Api
from wan_sandbox.runcomfy.api_faults import API_FAULTS
from wan_sandbox.runcomfy.control import Control
from wan_sandbox.runcomfy.media import Media
from wan_sandbox.runcomfy.media_faults import MEDIA_FAULTS
from wan_sandbox.runcomfy.world import World
from wan_sandbox.settings import Settings

#: A submit may contain an image as a ``data:`` URI; RunComfy accepts requests of at most this size.
_MAX_BODY_BYTES = 64 << 20
_PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy")


class ControlError(Exception):
    """A control route refused a change; the message says why."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses and token of a running sandbox.

    :param url: of the Model API, the media and the control.
    :param bucket_url: of the bucket.
    :param token: of the account ``default``.
    """

    url: str
    bucket_url: str
    token: str

    def env(self) -> dict[str, str]:
        """Return the environment variables that point Airflow and the Google clients at the sandbox."""
        connection = {
            "conn_type": "wan",
            "host": self.url,
            "password": self.token,
            "extra": {
                "account_host": self.url,
                "download_hosts": [self.url],
                "allow_private_images": True,
            },
        }
        env = {
            "AIRFLOW_CONN_WAN_DEFAULT": json.dumps(connection),
            "STORAGE_EMULATOR_HOST": self.bucket_url,
            "GOOGLE_CLOUD_PROJECT": "sandbox",
        }
        if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXY_NAMES):
            before = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
            env["NO_PROXY"] = ",".join(filter(None, [before, "127.0.0.1,localhost"]))
        return env


def api_app(world: World) -> web.Application:
    """Build the application of the API's port: calls, media and control."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    Api(world).add_routes(app)
    Media(world).add_routes(app)
    Control(world).add_routes(app)
    return app


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[Addresses]:
    """Run the API and the bucket in this event loop until the block ends.

    :raises OSError: a port is taken.
    :raises ValueError: a setting or a fault rule cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="wan-sandbox-", ignore_cleanup_errors=True) as folder:
        faults = FaultBook(settings.seed)
        faults.register((*API_FAULTS, *MEDIA_FAULTS, *BUCKET_FAULTS))
        world = World(settings, Path(folder), faults)
        runners: list[web.AppRunner] = []
        try:
            url = await _listen(runners, api_app(world), settings, settings.port)
            storage = bucket_app(faults, buckets=settings.buckets)
            bucket_url = await _listen(runners, storage, settings, settings.bucket_port)
            yield Addresses(url, bucket_url, settings.token)
        finally:
            for runner in runners:
                await runner.cleanup()
            await world.close()


@web.middleware
async def _let_clients_leave(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Ignore clients that disconnect: tests kill them on purpose."""
    try:
        return await handler(request)
    except ConnectionError:
        return web.Response()  # never arrives


async def _listen(runners: list[web.AppRunner], app: web.Application, settings: Settings, port: int) -> str:
    host = settings.host
    app.middlewares.extend((_let_clients_leave, control_guard((host, *settings.control_hosts))))
    # Uploads to the bucket are stored as they come, gzip or not.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, auto_decompress=False)
    await runner.setup()
    runners.append(runner)
    site = web.TCPSite(runner, host, port, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    shown = "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def call(url: str, body: Any = None, *, method: str | None = None, timeout_s: float = 30) -> Any:
    """Call a control route and return its JSON; never through a proxy.

    :raises ControlError: the route refused the call; the message says why.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")
        raise ControlError(f"{url} answered HTTP {error.code}: {said}") from None


class Sandbox:
    """A sandbox in its own thread, for tests; use it as a context manager.

    :param settings: the fields of :class:`~wan_sandbox.settings.Settings`.

    .. code-block:: python

        with Sandbox(speed=600, buckets=("videos",)) as sandbox:
            os.environ.update(sandbox.env())
            ...
            assert len(sandbox.ledger()["purchases"]) == 1
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self._addresses: Addresses | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="wan-sandbox", daemon=True)

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Sandbox:
        """Start the sandbox and wait until it answers.

        :raises OSError: a port is taken.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop the sandbox and wait until everything is closed."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def addresses(self) -> Addresses:
        """The addresses of the running sandbox."""
        if self._addresses is None:
            raise RuntimeError("the sandbox was not started")
        return self._addresses

    @property
    def url(self) -> str:
        """Address of the Model API, the media and the control."""
        return self.addresses.url

    @property
    def bucket_url(self) -> str:
        """Address of the bucket."""
        return self.addresses.bucket_url

    @property
    def token(self) -> str:
        """The API token of the account ``default``."""
        return self.addresses.token

    def env(self) -> dict[str, str]:
        """Return the environment variables that point Airflow and the Google clients here."""
        return self.addresses.env()

    def control(self, path: str, json: Any = None, *, method: str | None = None) -> Any:
        """Call the control: ``control("account", {"balance_usd": 0})`` is ``POST /_sandbox/account``."""
        return call(f"{self.url}/_sandbox/{path}", json, method=method)

    def bucket_control(self, path: str, json: Any = None, *, method: str | None = None) -> Any:
        """Call the control of the bucket: ``bucket_control("objects?bucket=videos")``."""
        return call(f"{self.bucket_url}/_sandbox/{path}", json, method=method)

    def ledger(self) -> dict[str, Any]:
        """Return the ledger: calls, purchases, charges, cancellations and refusals."""
        book: dict[str, Any] = self.control("ledger")
        return book

    def add_fault(self, call: str, fault: str, **rule: Any) -> str:
        """Add a fault rule; keywords other than rate, count, skip and request_id are parameters of the fault.

        :returns: the id of the rule.
        """
        return str(self.control("faults", {"call": call, "fault": fault, **rule})["id"])

    def clear_faults(self) -> None:
        """Remove all fault rules."""
        self.control("faults", method="DELETE")

    def reset(self) -> None:
        """Delete requests, ledger, accounts, faults and objects: restore the initial state."""
        self.control("reset", {})
        call(f"{self.bucket_url}/_sandbox/reset", {})

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:  # handed to the thread that starts it
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self.settings) as self._addresses:
            self._ready.set()
            await self._stop.wait()
