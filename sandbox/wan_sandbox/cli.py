# SPDX-License-Identifier: Apache-2.0
"""The command line of the sandbox."""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.util
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from wan_sandbox.control.faults import FaultError, parse_rule
from wan_sandbox.settings import Settings

_NEEDS_AV = (
    "The sandbox makes real MP4s and needs PyAV for it. Install it with:\n"
    '    pip install "airflow-provider-wan[sandbox]"'
)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Formats help with defaults, but only where an option has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, []) else action.help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sandbox until Ctrl-C or SIGTERM.

    :returns: the exit code: 0 after a stop, 1 if it could not start, 2 for wrong arguments.
    """
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    if importlib.util.find_spec("av") is None:
        return _fail(_NEEDS_AV)
    try:
        for rule in options.faults:
            parse_rule(rule)
        settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    except (FaultError, ValueError) as error:
        options_parser.error(str(error))
    try:
        asyncio.run(_run(settings, options.state_file))
    except KeyboardInterrupt:  # before the signal handlers were in place
        return 0
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return _fail(
            f"A port is taken: {error.strerror or error}. Choose others with --port and --bucket-port (0: any free)."
        )
    except ValueError as error:  # A fault rule or a size that is only checked at the start.
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return 1


def parser() -> argparse.ArgumentParser:
    """Return the argument parser; its options have the names of :class:`Settings`."""
    options = argparse.ArgumentParser(
        prog="python -m wan_sandbox",
        description="A local RunComfy Model API and a local bucket: build and test DAGs for free.",
        formatter_class=_Help,
    )
    where = options.add_argument_group("addresses")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on")
    where.add_argument("--port", type=int, default=8787, help="of the API and its media; 0: a free one")
    where.add_argument("--bucket-port", type=int, default=8788, help="of the bucket; 0: a free one")
    where.add_argument(
        "--control-host",
        dest="control_hosts",
        action="append",
        default=[],
        help="name by which /_sandbox/ may be called, besides IP addresses and localhost; repeatable",
    )
    where.add_argument("--state-file", type=Path, help="write addresses and pid as JSON here when ready")
    where.add_argument("--bucket", dest="buckets", action="append", default=[], help="create this bucket; repeatable")
    _add_behaviour(options.add_argument_group("behaviour"))
    _add_account(options.add_argument_group("account"))
    return options


def _add_behaviour(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--speed",
        type=float,
        default=1.0,
        help="speed-up of generations: sandbox seconds per real second, e.g. 60",
    )
    add("--generation-seconds", type=float, help="length of a generation, before --speed")
    add("--spread", type=float, help="spread of the lengths (sigma of a lognormal distribution)")
    add("--video-bytes", type=int, help="do not encode: serve a small MP4 padded to this size")
    add(
        "--check-images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fetch and check each image",
    )
    add("--link-ttl-seconds", type=float, default=3600.0, help="how long a link to a video is valid")
    add(
        "--early-result",
        choices=("state", "400005"),
        default="state",
        help="answer of /result before the end",
    )
    add(
        "--model",
        dest="models",
        action="append",
        default=[],
        help="id of one more model, of any input; repeatable",
    )
    add("--fault", dest="faults", action="append", default=[], help="call:fault[:key=value,...]; repeatable")
    add("--seed", type=int, default=0, help="seed of all random numbers")


def _add_account(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--token", default="sandbox-token", help="the API token")
    add("--balance", dest="balance_usd", type=float, default=1000.0, help="in USD")
    add(
        "--price",
        dest="price_usd",
        type=float,
        default=0.2,
        help="of one clip of Wan 2.2, in USD; the other models cost in proportion",
    )
    add(
        "--price-unit",
        choices=("output", "second"),
        default="output",
        help="unit of the price on the page of Wan 2.2 and of models of any input",
    )
    add(
        "--price-by-inputs",
        action=argparse.BooleanOptionalAction,
        help="charge by resolution, duration and audio; the price on the model's page is then only a base "
        "(default: not for Wan 2.2 and models of any input)",
    )
    add("--concurrency", type=int, default=2, help="generations that run at the same time; the rest queues")
    add("--requests-per-second", type=float, help="limit above which calls are answered with 429")
    add("--submits-per-second", type=float, help="the same for submits alone")


async def _run(settings: Settings, state_file: Path | None) -> None:
    from wan_sandbox.server import Addresses, serve

    def announce(addresses: Addresses) -> None:
        sys.stdout.write(welcome(settings, addresses.url, addresses.bucket_url, addresses.env()))
        sys.stdout.flush()
        if state_file is not None:
            _write_state(state_file, addresses.url, addresses.bucket_url, addresses.env(), settings.token)

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(settings) as addresses:
        announce(addresses)
        await stop.wait()
    sys.stdout.write("Sandbox stopped.\n")


def welcome(settings: Settings, url: str, bucket_url: str, env: dict[str, str]) -> str:
    """Return the text printed at the start: addresses, and variables to paste into a shell."""
    variables = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())
    return (
        f"RunComfy sandbox: nothing here costs money.\n"
        f"  Model API  {url}\n"
        f"  Bucket     {bucket_url}\n"
        f"  Control    {url}/_sandbox/ledger\n"
        f"  Speed      {settings.speed:g}x, {settings.concurrency} at the same time\n\n"
        f"Point Airflow at it:\n\n{variables}\n\nStop with Ctrl-C.\n"
    )


def _write_state(path: Path, url: str, bucket_url: str, env: dict[str, str], token: str) -> None:
    state = {"url": url, "bucket_url": bucket_url, "pid": os.getpid(), "token": token, "env": env}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    part.replace(path)  # a reader of the file never sees half of it
