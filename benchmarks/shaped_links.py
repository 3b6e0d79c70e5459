# SPDX-License-Identifier: Apache-2.0
"""TCP links with the latency and bandwidth of real ones, in front of servers on this machine.

    python benchmarks/shaped_links.py --to 127.0.0.1:8787 --to 127.0.0.1:8788

Prints the ports of the links as a JSON list. Each connection is a separate link: each direction sends bytes
at a fixed rate, and they arrive half a round trip later. Opening a connection takes a round trip, as TCP's
handshake does. TLS and TCP's slow start are not simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

PIECE_BYTES = 128 * 1024
#: How much a sender may have in transit before it must wait: more than rate x round trip, like TCP's windows.
WINDOW_BYTES = 1024 * 1024
#: How much time a delayed direction may catch up: the delay of a busy machine's scheduler, no more.
CATCH_UP_S = 0.02
#: Bytes that arrive within this time were already waiting.
AT_ONCE_S = 0.001


class Links:
    """Accepts connections for one server.

    :param round_trip_s: of each link.
    :param bytes_per_s: of each direction of each link.
    """

    def __init__(self, host: str, port: int, *, round_trip_s: float, bytes_per_s: float) -> None:
        self._to = (host, port)
        self._round_trip_s = round_trip_s
        self._bytes_per_s = bytes_per_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._carry(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, _tcp_socket() as server:
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.setblocking(False)
            with contextlib.suppress(OSError):
                await loop.sock_connect(server, self._to)
                await asyncio.gather(
                    self._pass_on(client, server, opens_at=loop.time() + self._round_trip_s),
                    self._pass_on(server, client, opens_at=0.0),
                )

    async def _pass_on(self, source: socket.socket, sink: socket.socket, *, opens_at: float) -> None:
        """Forward one direction until it closes."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(self._deliver(under_way, sink))
        leaves_at = opens_at
        try:
            data = b"-"
            while data:
                ready_at = loop.time()
                data = await loop.sock_recv(source, PIECE_BYTES)
                now = loop.time()
                # Only bytes that were already waiting may catch up; bytes after a pause find an idle link.
                earliest = now - CATCH_UP_S if now - ready_at < AT_ONCE_S else now
                leaves_at = max(leaves_at, earliest) + len(data) / self._bytes_per_s
                under_way.put_nowait((leaves_at + self._round_trip_s / 2, data))
                await asyncio.sleep(max(0.0, leaves_at - loop.time()))
            await delivering
        finally:
            delivering.cancel()

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            arrives_at, data = await under_way.get()
            await asyncio.sleep(max(0.0, arrives_at - loop.time()))
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(sink, data)


def _tcp_socket() -> socket.socket:
    sock = socket.socket()
    # Accepted connections inherit it from the listener; it can't be set once they are open.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES // 2)  # the kernel doubles it
    return sock


async def serve(servers: Sequence[str], *, round_trip_s: float, bytes_per_s: float) -> None:
    """Open a port for each server, print the ports, and carry bytes for ever."""
    ports, serving = [], []
    for server in servers:
        host, _, port = server.rpartition(":")
        listener = _tcp_socket()
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        ports.append(listener.getsockname()[1])
        links = Links(host, int(port), round_trip_s=round_trip_s, bytes_per_s=bytes_per_s)
        serving.append(links.serve(listener))
    print(json.dumps(ports), flush=True)
    await asyncio.gather(*serving)


@contextlib.contextmanager
def shaped_links(*servers: str, round_trip_s: float, bytes_per_s: float) -> Iterator[list[str]]:
    """Run links to servers in a separate process; yields ``host:port`` of each.

    :param servers: each as ``host:port``.
    """
    command = [sys.executable, __file__, "--round-trip-ms", str(1000 * round_trip_s)]
    command += ["--mb-per-s", str(bytes_per_s / 1e6)]
    for server in servers:
        command += ["--to", server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield [f"127.0.0.1:{port}" for port in json.loads(process.stdout.readline())]
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", action="append", required=True, metavar="HOST:PORT", help="repeatable")
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--mb-per-s", type=float, default=25, help="of each direction of a connection")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.to, round_trip_s=options.round_trip_ms / 1000, bytes_per_s=options.mb_per_s * 1e6))


if __name__ == "__main__":
    main()
