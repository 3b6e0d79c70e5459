# SPDX-License-Identifier: Apache-2.0
"""``airflow wan ...`` (Airflow 3.3), and ``python -m airflow_provider_wan ...`` elsewhere.

Airflow imports this module for every command, so it imports nothing heavy itself.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, Arg, GroupCommand

from airflow_provider_wan.exceptions import WanError, WanInputError

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import BucketJournal, VersionedRecord

NOT_BOUGHT = "not-bought"
_LOG = logging.getLogger("airflow_provider_wan.cli")

_JOURNAL = Arg(("journal",), help="the journal, gs://bucket/prefix")
_GCP = (
    Arg(("--gcp-conn-id",), help="Google Cloud connection (default: Application Default Credentials)"),
    Arg(("--impersonation-chain",), help="service account to act as"),
)
_CONN = Arg(("--wan-conn-id",), default="wan_default", help="Wan connection (default: wan_default)")


def get_wan_cli_commands() -> list[GroupCommand]:
    """Return the commands for Airflow's command line."""
    unknown = ActionCommand(
        name="unknown",
        help="List submits whose outcome is not known",
        description="List the open claims of a journal: submits that may have been bought. Look each one up on the "
        "Generations page of the RunComfy account, then settle it.",
        func=list_unknown,
        args=(_JOURNAL, ARG_OUTPUT, *_GCP),
    )
    settle = ActionCommand(
        name="settle",
        help="Settle submits whose outcome is not known",
        description="Settle open claims of a journal, then clear their tasks. Nothing is bought by this command.",
        func=settle_claims,
        args=(
            _JOURNAL,
            Arg(("fingerprint",), nargs="?", help="the fingerprint of one claim"),
            Arg(("--all",), action="store_true", help="all open claims, with --not-bought"),
            Arg(("--not-bought",), action="store_true", help="the request is not on the Generations page"),
            Arg(("--request-id",), help="the request's id on the Generations page"),
            Arg(
                ("--file",),
                help='JSON: {"<fingerprint>": "<request id>" or "not-bought"}, or the output of "unknown" with a '
                "request_id added to each row; - reads standard input",
            ),
            ARG_OUTPUT,
            _CONN,
            *_GCP,
        ),
    )
    journal = GroupCommand(name="journal", help="Records of purchases", subcommands=(unknown, settle))
    return [GroupCommand(name="wan", help="Wan (RunComfy) provider", subcommands=(journal,))]


def main(argv: list[str] | None = None) -> None:
    """Run a command without Airflow's command line, as ``python -m airflow_provider_wan``."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_wan")
    _add_commands(parser, get_wan_cli_commands()[0].subcommands)
    args = parser.parse_args(argv)
    args.func(args)


def _add_commands(parser: argparse.ArgumentParser, commands: Iterable[Any]) -> None:
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        child = parsers.add_parser(command.name, help=command.help, description=command.description)
        if isinstance(command, GroupCommand):
            _add_commands(child, command.subcommands)
            continue
        for arg in command.args:
            arg.add_to_parser(child)
        child.set_defaults(func=command.func)


# -- journal -------------------------------------------------------------------------------------------------


def list_unknown(args: argparse.Namespace) -> None:
    """Print the open claims of a journal."""
    with_errors(_list_unknown, args)


def settle_claims(args: argparse.Namespace) -> None:
    """Settle open claims of a journal."""
    with_errors(_settle_claims, args)


def with_errors(command: Any, args: argparse.Namespace) -> None:
    """Run a command; print an error of this provider without a traceback, and exit with 1."""
    try:
        command(args)
    except WanError as error:
        sys.exit(str(error))


def _list_unknown(args: argparse.Namespace) -> None:
    claims = sorted(_journal(args).open_claims(), key=lambda claim: claim.record.claimed_at or "")
    _print([_row(claim) for claim in claims], args.output)


def _row(claim: VersionedRecord) -> dict[str, Any]:
    record = claim.record
    return {
        "fingerprint": record.fingerprint,
        "image": record.image or "",
        "prompt": str(record.inputs.get("prompt", "")),
        "variation": record.variation or "",
        "submitted": record.claimed_at or "",
        "task": record.buyer,
    }


def _settle_claims(args: argparse.Namespace) -> None:
    from airflow_provider_wan.durable.submission import ClaimWindow
    from airflow_provider_wan.hooks.wan import WanHook

    journal = _journal(args)
    answers = dict(_answers(args, journal))
    hook = WanHook(args.wan_conn_id)
    window = ClaimWindow(hook, journal, _LOG, sleep=time.sleep)
    rows = []
    for fingerprint, answer in answers.items():
        try:
            outcome = _settle(hook, journal, window, fingerprint, answer)
        except WanError as error:
            outcome = f"failed: {error}"
        rows.append({"fingerprint": fingerprint, "answer": answer, "outcome": outcome})
    _print(rows, args.output)
    if any(row["outcome"] != "settled" for row in rows):
        sys.exit(1)


def _settle(hook: Any, journal: BucketJournal, window: Any, fingerprint: str, answer: str) -> str:
    from airflow_provider_wan.durable.journal import RecordConflict
    from airflow_provider_wan.durable.submission import release, settle_as
    from airflow_provider_wan.model_api.calls import check_request_id

    claim = journal.read(fingerprint)
    if claim is None or claim.record.request_id is not None:
        return "failed: there is no open claim of this fingerprint"
    if window.may_be_alive(claim):
        return "failed: the submit may still be under way; try again in a few minutes"
    try:
        if answer == NOT_BOUGHT:
            release(journal, claim)
        else:
            settle_as(hook, journal, claim, check_request_id(answer), named_in="--request-id")
    except RecordConflict:
        return "failed: another process has changed the record; list the open claims again"
    return "settled"


def _answers(args: argparse.Namespace, journal: BucketJournal) -> Iterator[tuple[str, str]]:
    """Yield each fingerprint with its request id or :data:`NOT_BOUGHT`.

    :raises WanInputError: the options contradict each other.
    """
    if sum(map(bool, (args.not_bought, args.request_id, args.file))) != 1:
        raise WanInputError("Give one of --not-bought, --request-id and --file.")
    if args.file:
        yield from _answers_of_file(args.file)
    elif args.all:
        if not args.not_bought:
            raise WanInputError("--all goes with --not-bought: two claims can't have one request id.")
        for claim in journal.open_claims():
            yield claim.record.fingerprint, NOT_BOUGHT
    elif args.fingerprint:
        yield args.fingerprint, args.request_id or NOT_BOUGHT
    else:
        raise WanInputError("Give a fingerprint, --all or --file.")


def _answers_of_file(path: str) -> Iterator[tuple[str, str]]:
    try:
        if path == "-":
            given = json.load(sys.stdin)
        else:
            with open(path, encoding="utf-8") as file:
                given = json.load(file)
    except (OSError, ValueError) as error:
        raise WanInputError(f"--file {path} can't be read as JSON: {error}") from error
    if isinstance(given, Mapping):
        given = [{"fingerprint": key, "request_id": value} for key, value in given.items()]
    if not isinstance(given, list) or not all(
        isinstance(row, Mapping) and row.get("fingerprint") for row in given
    ):
        raise WanInputError(f"--file {path} is neither a mapping nor a list of rows with a fingerprint.")
    for row in given:
        if row.get("request_id"):  # rows without an answer stay open
            yield str(row["fingerprint"]), str(row["request_id"])


def _journal(args: argparse.Namespace) -> BucketJournal:
    from airflow_provider_wan.utils.task import bucket_journal

    return bucket_journal(
        args.journal, gcp_conn_id=args.gcp_conn_id, impersonation_chain=args.impersonation_chain
    )


def _print(rows: list[dict[str, Any]], output: str) -> None:
    from airflow.cli.simple_table import AirflowConsole

    AirflowConsole().print_as(data=rows, output=output)
