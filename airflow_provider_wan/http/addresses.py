# SPDX-License-Identifier: Apache-2.0
"""Which addresses of files may be fetched: an answer of the API, a manifest or a redirect is not trusted to choose.

* Videos come from the hosts that the connection lists (:func:`check_link`).
* Images come from any public host (:func:`refuse_private_literal`; what a name resolves to is checked at the
  connection, in :mod:`.transport`).

Both raise :class:`AddressRefusedError`; the caller names the video or image.
"""

from __future__ import annotations

import contextlib
import fnmatch
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Sequence
from urllib.parse import urlsplit

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:]+")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_USUAL_PORTS = {"http": 80, "https": 443}


class AddressRefusedError(Exception):
    """An address may not be fetched; the text says why, shows at most its host, and names no secret."""


def check_link(url: str, hosts: Sequence[str]) -> None:
    """Check that a link may be followed.

    :param hosts: host patterns (https on the usual port only), or whole origins, which are compared as they are.
    :raises AddressRefusedError: it may not.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port
    except ValueError:
        raise AddressRefusedError("its link is not a valid address") from None
    if parts.username is not None or parts.password is not None:
        raise AddressRefusedError("its link carries credentials")
    if any(ord(char) <= 32 or ord(char) == 127 for char in url) or "\\" in url or not _HOST.fullmatch(host):
        raise AddressRefusedError("its link has characters that no address has, or no host")
    origin = _origin(parts.scheme, host, port)
    if origin in [_normal_origin(entry) for entry in hosts if "://" in entry]:
        return
    patterns = [entry for entry in hosts if "://" not in entry]
    if not any(fnmatch.fnmatchcase(host, pattern) for pattern in patterns):
        raise AddressRefusedError(
            f"its link leads to {host}, which is not among the hosts that videos may come from "
            f"({', '.join(hosts)}). If that host is right, add it to download_hosts in the connection"
        )
    if parts.scheme != "https" or port not in (None, 443):
        raise AddressRefusedError(
            f"its link leads to {origin}; only https is fetched. Plain http and other ports need the whole "
            "origin in download_hosts of the connection"
        )


def _origin(scheme: str, host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + (f":{port}" if port not in (None, _USUAL_PORTS.get(scheme)) else "")


def _normal_origin(entry: str) -> str:
    parts = urlsplit(entry)
    return _origin(parts.scheme, parts.hostname or "", parts.port)


def is_public_address(address: str) -> bool:
    """Return whether an IP address is one of the public internet.

    IPv6 has several ways to write an IPv4 address (mapped, 6to4, Teredo, NAT64); then that one counts.

    :raises ValueError: it is not an IP address.
    """
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inside or ip
    return ip.is_global and not ip.is_multicast


def refuse_private_literal(url: str) -> None:
    """Refuse an address that names a private host outright, before a proxy is asked for it.

    :raises AddressRefusedError: the host is ``localhost`` or a non-public IP address, in any spelling that a
        resolver takes (``127.1``, ``0x7f000001``, ``2130706433``).
    """
    host = unicodedata.normalize("NFKC", urlsplit(url).hostname or "").replace("\u3002", ".")
    host = host.rstrip(".").lower()
    private = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    with contextlib.suppress(ValueError):
        private = private or not is_public_address(_old_ipv4(host) or host)
    if private:
        raise AddressRefusedError(
            f"{host} is not a public address, and fetching it is refused. If it is intended (a sandbox, an "
            'internal store), set "allow_private_images": true in the connection'
        )


def _old_ipv4(host: str) -> str | None:
    """Read the spellings of an IPv4 address that only ``inet_aton`` knows."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if " " not in host else None
    except (OSError, UnicodeError):
        return None
