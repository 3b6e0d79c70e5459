# SPDX-License-Identifier: Apache-2.0
"""Block web pages from the control routes: a page open in a browser can send requests to this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def control_guard(hosts: Collection[str] = ()) -> Middleware:
    """Return a middleware that answers 403 to calls of ``/_sandbox/`` that a web page could have sent.

    ``Host`` must be an IP address, ``localhost`` or one of ``hosts``, which excludes a domain that an
    attacker points at this machine (DNS rebinding). ``Origin``, if present, must be this server's own.

    :param hosts: further names by which this server is called.
    """
    names = {"localhost", *(host.lower() for host in hosts)}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/_sandbox/"):
            problem = _problem(request, names)
            if problem:
                return web.json_response({"error": problem}, status=403)
        return await handler(request)

    return check


def _problem(request: web.Request, names: Collection[str]) -> str:
    """Return why a call is refused, or an empty string."""
    host = _hostname(f"//{request.host}")
    if host not in names and not _is_address(host):
        return f"the Host {host!r} is not a name of this sandbox; allow it with --control-host"
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() != f"{request.scheme}://{request.host}".lower():
        return f"control routes cannot be called from the web page {origin[:200]!r}"
    return ""


def _hostname(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
