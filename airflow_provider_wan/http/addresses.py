# SPDX-License-Identifier: Apache-2.0
"""Which links to result files may be followed: an answer of the API is not trusted to choose a host."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanDownloadError

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:]+")


def check_link(url: str, hosts: Sequence[str], *, request_id: str) -> str:
    """Check that a link may be followed at all.

    :param hosts: host patterns (https on the usual port only) or whole origins, taken as they are.
    :raises WanDownloadError: it may not; a retry can't help. The message shows the host, never the link.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port
    except ValueError:
        raise refused("its link is not a valid address", request_id) from None
    if parts.username is not None or parts.password is not None:
        raise refused("its link carries credentials", request_id)
    if any(ord(char) <= 32 or ord(char) == 127 for char in url) or "\\" in url or not _HOST.fullmatch(host):
        raise refused("its link holds characters that no address has, or no host", request_id)
    origin = _origin(parts.scheme, host, port)
    if origin in [_normal_origin(entry) for entry in hosts if "://" in entry]:
        return url
    patterns = [entry for entry in hosts if "://" not in entry]
    if not any(fnmatch.fnmatchcase(host, pattern) for pattern in patterns):
        raise refused(
            f"its link leads to {host}, which is not among the hosts that videos may come from "
            f"({', '.join(hosts)}). If that host is right, add it to download_hosts in the connection",
            request_id,
        )
    if parts.scheme != "https" or port not in (None, 443):
        raise refused(
            f"its link leads to {origin}; only https is fetched. Plain http and other ports need the whole "
            "origin in download_hosts of the connection",
            request_id,
        )
    return url


def _origin(scheme: str, host: str, port: int | None) -> str:
    usual = {"http": 80, "https": 443}.get(scheme)
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + (f":{port}" if port not in (None, usual) else "")


def _normal_origin(entry: str) -> str:
    parts = urlsplit(entry)
    return _origin(parts.scheme, parts.hostname or "", parts.port)


def refused(why: str, request_id: str) -> WanDownloadError:
    """Give the error about a link that is not followed."""
    return WanDownloadError(
        f"The video of request {request_id} was not fetched: {why}.", request_id=request_id, retry_helps=False
    )
