# SPDX-License-Identifier: Apache-2.0
"""Read and check a connection of type ``wan``."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanAuthError, WanInputError
from airflow_provider_wan.get_provider_info import CONN_FIELDS
from airflow_provider_wan.model_api.bodies import number_of
from airflow_provider_wan.model_api.calls import ACCOUNT_HOST, API_HOST
from airflow_provider_wan.model_api.coercion import flag_of, plain_number

#: RunComfy's own storage (api-contract, Result files).
DEFAULT_DOWNLOAD_HOSTS = ("*.runcomfy.net", "*.runcomfy.com")
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_NOT_FOUND_PATIENCE_S = 60.0
_LOG = logging.getLogger(__name__)


class _Connection(Protocol):
    conn_id: str
    host: str | None
    schema: str | None
    port: int | None
    password: str | None
    extra: str | None


@dataclass(frozen=True, slots=True)
class WanSettings:
    """A connection of type ``wan``.

    :param conn_id: its id, for messages.
    :param token: the API token; never shown, not even in ``repr``.
    :param api_origin: scheme, host and port of the Model API.
    :param account_origin: the same of the account API (balance).
    :param requests_per_second: the most API calls a second this connection may make; None: no limit.
    :param timeout_s: the most that one API call may take, in seconds.
    :param download_hosts: host patterns (``*.example.com``) or whole origins (``http://127.0.0.1:8787``)
        that videos may be fetched from.
    :param allow_private_images: whether images may be fetched from private addresses, or over plain http.
    :param not_found_patience_s: for how long a request must be answered 404001 before it counts as gone.
    """

    conn_id: str
    token: str = field(repr=False)
    api_origin: str = API_HOST
    account_origin: str = ACCOUNT_HOST
    requests_per_second: float | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    download_hosts: tuple[str, ...] = DEFAULT_DOWNLOAD_HOSTS
    allow_private_images: bool = False
    not_found_patience_s: float = DEFAULT_NOT_FOUND_PATIENCE_S


def read_settings(connection: _Connection) -> WanSettings:
    """Read a connection.

    :param connection: an Airflow connection; password = token, host = API origin, the rest in its extra.
    :raises WanAuthError: there is no token.
    :raises WanInputError: a field has no valid value; the message names it.
    """
    conn_id = connection.conn_id
    token = (connection.password or "").strip()
    if not token:
        raise WanAuthError(
            f"Connection {conn_id!r} has no API token. Put the token of your RunComfy account into its password field."
        )
    if not token.isascii() or any(not 32 < ord(c) < 127 for c in token):
        raise WanAuthError(f"The API token of connection {conn_id!r} has characters that no token has.")
    extra = _extra(connection)
    rps = _number(extra, "requests_per_second", conn_id)
    return WanSettings(
        conn_id=conn_id,
        token=token,
        api_origin=_api_origin(connection),
        account_origin=_origin(str(extra.get("account_host") or ACCOUNT_HOST), "account_host", conn_id),
        requests_per_second=rps,
        timeout_s=_number(extra, "timeout", conn_id) or DEFAULT_TIMEOUT_S,
        download_hosts=_hosts(extra, "download_hosts", conn_id) or DEFAULT_DOWNLOAD_HOSTS,
        allow_private_images=_flag(extra, "allow_private_images", conn_id),
        not_found_patience_s=_number(extra, "not_found_patience", conn_id) or DEFAULT_NOT_FOUND_PATIENCE_S,
    )


def _extra(connection: _Connection) -> Mapping[str, Any]:
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise WanInputError(f"The extra of connection {connection.conn_id!r} is not a JSON object.")
    for name in extra.keys() - CONN_FIELDS.keys():
        near = difflib.get_close_matches(name, CONN_FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(CONN_FIELDS))}."
        _LOG.warning("Field %r in the extra of connection %r is not known; %s", name, connection.conn_id, hint)
    return extra


def _api_origin(connection: _Connection) -> str:
    """Return the origin of the Model API, out of host, schema and port; a field that contradicts is refused."""
    conn_id, port = connection.conn_id, connection.port
    host, schema = (connection.host or "").strip(), (connection.schema or "").strip().lower()
    if schema not in ("", "http", "https"):
        raise WanInputError(f"Field 'schema' of connection {conn_id!r} must be http or https.")
    if not host:
        if port:
            raise WanInputError(f"Connection {conn_id!r} has a port and no host. Fill in its host, or no port.")
        return API_HOST
    has_scheme = "://" in host
    origin = _origin(host if has_scheme else f"{schema or 'https'}://{host}", "host", conn_id)
    parts = urlsplit(origin)
    if schema and parts.scheme != schema:
        raise WanInputError(
            f"Fields 'host' and 'schema' of connection {conn_id!r} contradict each other: {parts.scheme} and {schema}."
        )
    if not port or port == parts.port:
        return origin
    if parts.port is not None:
        raise WanInputError(
            f"Fields 'host' and 'port' of connection {conn_id!r} contradict each other: {parts.port} and {port}."
        )
    return _origin(f"{origin}:{port}", "port", conn_id)


def _origin(text: str, name: str, conn_id: str) -> str:
    """Return an origin such as ``https://model-api.runcomfy.net``; anything more in the text is refused."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        plain = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
        is_origin = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and plain
    except ValueError:  # an unfinished bracket, a port out of range
        is_origin = False
    if not is_origin or any(c.isspace() for c in text):
        raise WanInputError(
            f"Field {name!r} of connection {conn_id!r} must be an origin, such as {API_HOST}, without "
            "path, query or credentials."
        )
    return f"{parts.scheme}://{parts.netloc}"


def _number(extra: Mapping[str, Any], name: str, conn_id: str) -> float | None:
    value = extra.get(name)
    if value in (None, ""):
        return None
    number = number_of(plain_number(value))
    if number is None or not 0 < number < 1e6:
        raise WanInputError(f"Field {name!r} of connection {conn_id!r} must be a number above 0.")
    return float(number)


def _hosts(extra: Mapping[str, Any], name: str, conn_id: str) -> tuple[str, ...]:
    value = extra.get(name) or ()
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(host, str) for host in names):
        raise WanInputError(
            f"Field {name!r} of connection {conn_id!r} must be a list of hosts, or one text with commas."
        )
    hosts = tuple(host.strip().rstrip("/").lower() for host in names if host.strip())
    for host in hosts:
        if "://" in host:
            _origin(host, name, conn_id)
        elif any(c in host for c in "/@:?# "):
            raise WanInputError(
                f"Field {name!r} of connection {conn_id!r}: {host!r} is neither a host pattern, such as "
                "*.runcomfy.net, nor a whole origin, such as http://127.0.0.1:8787."
            )
    return hosts


def _flag(extra: Mapping[str, Any], name: str, conn_id: str) -> bool:
    value = extra.get(name)
    flag = False if value in (None, "") else flag_of(value)
    if flag is None:
        raise WanInputError(f"Field {name!r} of connection {conn_id!r} must be true or false.")
    return flag
