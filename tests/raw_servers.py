# SPDX-License-Identifier: Apache-2.0
"""Small loopback servers for what no proper server does: slow bytes, partial answers, invalid TLS, proxies."""

from __future__ import annotations

import contextlib
import datetime
import functools
import ipaddress
import select
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

Answer = Callable[[socket.socket], None]


class RawServer:
    """A TCP server that passes every connection to a function; use it as a context manager.

    :param answer: called with the connection (after TLS); it may return or raise when it has finished.
    :param tls: serve TLS with the certificate of :func:`certificate`.
    """

    def __init__(self, answer: Answer, *, tls: bool = False) -> None:
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.scheme = "https" if tls else "http"
        self.connections = 0
        #: Set when the block ends, to release an answer that waits for ever.
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._open.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed while it waits
            if self._tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate())
                sock = context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            with sock:
                self._answer(sock)


def read_head(sock: socket.socket) -> bytes:
    """Read a request up to the end of its head, and the part of its body that arrived with it."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError("the client left")
        head += piece
    return head


def read_request(sock: socket.socket) -> bytes:
    """Read a complete request, by its Content-Length."""
    head, _, body = read_head(sock).partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.splitlines() if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def reply(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Return an HTTP response with a correct length."""
    named = {"Content-Length": str(len(body)), "Connection": "close"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def always(answer: bytes, *, heads: list[str] | None = None) -> Answer:
    """Answer each request with the same bytes and close.

    :param heads: receives the head of each request.
    """

    def serve(sock: socket.socket) -> None:
        request = read_request(sock)
        if heads is not None:
            heads.append(request.partition(b"\r\n\r\n")[0].decode("latin-1"))
        sock.sendall(answer)

    return serve


def drip(sock: socket.socket, over: threading.Event, data: bytes, *, every_s: float = 0.02) -> None:
    """Send one byte at a time, and repeat the last one until the client disconnects."""
    for at in range(1_000_000):
        sock.sendall(data[at : at + 1] or data[-1:])
        if over.wait(every_s):
            return


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of a regular end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


class Proxy(RawServer):
    """An HTTP proxy that records the head of each request: ``CONNECT`` and absolute URLs.

    :param refuse: a response to send to all requests instead.
    :param tls: serve TLS itself.
    """

    def __init__(self, refuse: bytes | None = None, *, tls: bool = False) -> None:
        super().__init__(self._go_between, tls=tls)
        self._refuse = refuse
        self.heads: list[str] = []

    def _go_between(self, client: socket.socket) -> None:
        request = read_head(client)
        head = request.partition(b"\r\n\r\n")[0].decode("latin-1")
        self.heads.append(head)
        if self._refuse is not None:
            client.sendall(self._refuse)
            return
        method, target, _ = head.split("\r\n")[0].split(" ")
        place = target if method == "CONNECT" else target.split("/")[2]
        host, _, port = place.rpartition(":")
        with socket.create_connection((host, int(port))) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(request.replace(f"http://{place}".encode(), b"", 1))
            _relay(client, server)


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Forward the bytes of both sides until one of them closes; in one thread, since TLS sockets are not
    thread-safe.
    """
    other = {client: server, server: client}
    while True:
        waiting = [sock for sock in other if isinstance(sock, ssl.SSLSocket) and sock.pending()]
        for source in waiting or select.select([client, server], [], [])[0]:
            data = source.recv(65536)
            if not data:
                return
            other[source].sendall(data)


@functools.cache
def certificate() -> str:
    """Return the path of a certificate for 127.0.0.1 and localhost with its key, usable as a CA bundle too."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = Path(tempfile.mkdtemp(prefix="wan-tests-tls-")) / "both.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return str(path)
