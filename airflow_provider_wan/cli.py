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
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.cli.cli_config import ARG_OUTPUT, ActionCommand, Arg, GroupCommand

from airflow_provider_wan.exceptions import WanError, WanInputError

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import BucketJournal, VersionedRecord
    from airflow_provider_wan.model_api.schema import Model, ModelInfo

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
        func=partial(with_errors, _list_unknown),
        args=(_JOURNAL, ARG_OUTPUT, *_GCP),
    )
    settle = ActionCommand(
        name="settle",
        help="Settle submits whose outcome is not known",
        description="Settle open claims of a journal, then clear their tasks. Nothing is bought by this command.",
        func=partial(with_errors, _settle_claims),
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
    models = ActionCommand(
        name="models",
        help="List the models of the catalogue, or show one",
        description="List the models whose id or name contains a text, or show one with all of its inputs: models "
        "show wan-ai/wan-2-2/image-to-video.",
        func=partial(with_errors, _models),
        args=(
            Arg(("words",), nargs="*", metavar="SEARCH | show ID", help="what to search for; default: all"),
            Arg(("--category",), help="a category of the catalogue, such as image-to-video"),
            ARG_OUTPUT,
            _CONN,
        ),
    )
    request = ActionCommand(
        name="request",
        help="Show state, result and cost of a request",
        func=partial(with_errors, _request),
        args=(Arg(("request_id",), help="the id of the request"), ARG_OUTPUT, _CONN),
    )
    balance = ActionCommand(
        name="balance",
        help="Show the balance of the account",
        func=partial(with_errors, _balance),
        args=(ARG_OUTPUT, _CONN),
    )
    journal = GroupCommand(name="journal", help="Records of purchases", subcommands=(unknown, settle))
    commands = (models, request, balance, journal)
    return [GroupCommand(name="wan", help="Wan (RunComfy) provider", subcommands=commands)]


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


def with_errors(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a command; print an error of this provider without a traceback, and exit with 1."""
    try:
        command(args)
    except WanError as error:
        sys.exit(str(error))


def _print(rows: list[dict[str, Any]], output: str) -> None:
    from airflow.cli.simple_table import AirflowConsole
    from rich.markup import escape

    if output == "table":  # the console reads square brackets in cells as markup
        rows = [{name: escape(str(value)) for name, value in row.items()} for row in rows]
    AirflowConsole().print_as(data=rows, output=output)


# -- models, requests, balance -------------------------------------------------------------------------------


def _models(args: argparse.Namespace) -> None:
    from airflow_provider_wan.hooks.wan import WanHook

    hook, words = WanHook(args.wan_conn_id), list(args.words)
    if words[:1] == ["show"]:
        if len(words) != 2:
            raise WanInputError("Give the id of one model: models show wan-ai/wan-2-2/image-to-video")
        _show_model(hook.get_model(words[1]), args.output)
        return
    found = hook.list_models(search=" ".join(words) or None, category=args.category)
    _print([_model_row(model) for model in found], args.output)


def _model_row(model: ModelInfo) -> dict[str, Any]:
    schema = model.schema
    fields = schema.fields if schema else {}
    return {
        "id": model.model_id,
        "image_fields": ", ".join(schema.image_fields if schema else ()),
        "durations": _values(fields.get("duration", {})),
        "resolutions": _values(fields.get("resolution", {})),
        "base_price_usd": "" if model.base_price_usd is None else f"{model.base_price_usd:g}",
        "per": model.price_unit or "",
        "note": model.pricing_note or "",
    }


def _show_model(page: ModelInfo, output: str) -> None:
    from airflow_provider_wan.model_api.dialect import model_of_page

    model, remarks = model_of_page(page)
    row = {"name": page.display_name or "", **_model_row(page)}
    required = model.schema.required if model.schema else frozenset()
    inputs = [
        {
            "input": name,
            "type": _type(rules),
            "required": "yes" if name in required else "",
            "values": _values(rules),
            "description": str(rules.get("description", "")),
        }
        for name, rules in (model.schema.fields if model.schema else {}).items()
    ]
    if output in ("json", "yaml"):
        _print([{**row, "inputs": inputs, "remarks": remarks, "operator": snippet_of(model)}], output)
        return
    _print([{"": name, "model": value} for name, value in row.items()], output)
    _print(inputs, output)
    print("\n".join((*remarks, "", snippet_of(model))))  # noqa: T201


def _type(rules: Mapping[str, Any]) -> str:
    if "x-image" in rules or "x-media" in rules:
        kind = str(rules.get("x-media", "image"))
        return f"{kind}s" if rules.get("type") == "array" else kind
    declared = rules.get("type", "")
    return declared if isinstance(declared, str) else " or ".join(declared)


def _values(rules: Mapping[str, Any]) -> str:
    """Return the values that an input takes, in words."""
    from airflow_provider_wan.model_api.bodies import clean_text

    parts = []
    values, least, most = rules.get("enum"), rules.get("minimum"), rules.get("maximum")
    if values:
        parts.append(
            f"{values[0]} to {values[-1]}"
            if _is_run(values)
            else ", ".join(clean_text(str(value), 80) for value in values[:20])
        )
    elif least is not None or most is not None:
        parts.append(f"{least} to {most}" if least is not None and most is not None else _limit(least, most))
    if "maxLength" in rules:
        parts.append(f"at most {rules['maxLength']} characters")
    parts += _image_words(rules.get("x-image", {}))
    default = rules.get("default")
    if default not in (None, ""):
        parts.append(f"default {default if isinstance(default, str) else json.dumps(default)}")
    return "; ".join(parts)


def _is_run(values: list[Any]) -> bool:
    """Return whether these are three or more whole numbers, one after the other."""
    first = values[0]
    return isinstance(first, int) and values == list(range(first, first + len(values))) and len(values) > 2


def _limit(least: Any, most: Any) -> str:
    return f"at least {least}" if least is not None else f"at most {most}"


def _image_words(rules: Mapping[str, Any]) -> list[str]:
    sides, aspects = ("min_side_px", "max_side_px"), ("min_aspect", "max_aspect")
    words = []
    for (low, high), unit in ((sides, "px a side"), (aspects, "width / height")):
        least, most = rules.get(low), rules.get(high)
        if least is not None and most is not None:
            words.append(f"{least:g} to {most:g} {unit}")
        elif least is not None or most is not None:
            words.append(f"{_limit(least, most)} {unit}")
    size = rules.get("max_size_bytes_exclusive")
    return [*words, f"under {size / 1e6:g} MB"] if size else words


def snippet_of(model: Model) -> str:
    """Return an operator that submits to a model, with everything that it requires."""
    from airflow_provider_wan.model_api import INPUT_PARAMETERS

    parameters: dict[str, Any] = {"task_id": "video", "model_id": model.model_id}
    images, inputs = dict[str, Any](), dict[str, Any]()
    if model.schema is None:
        inputs["prompt"] = "what happens in the video"
    fields, required = (model.schema.fields, model.schema.required) if model.schema else ({}, frozenset[str]())
    for name, rules in ((name, rules) for name, rules in fields.items() if name in required):
        if "x-image" in rules:
            address = f"gs://my-bucket/{name}.jpg"
            images[name] = [address] if rules.get("type") == "array" else address
        elif name in INPUT_PARAMETERS:
            parameters[name] = _example(name, rules)
        else:
            inputs[name] = _example(name, rules)
    if len(images) == 1 and isinstance(only := next(iter(images.values())), str):
        parameters["image"], images = only, {}
    parameters |= {"images": images} if images else {}
    parameters |= {"inputs": inputs} if inputs else {}
    lines = [f"    {name}={_python(value)}," for name, value in parameters.items()]
    return "\n".join(("WanSubmitOperator(", *lines, ")"))


def _example(name: str, rules: Mapping[str, Any]) -> Any:
    """Return a valid value of an input."""
    if rules.get("default") not in (None, ""):
        return rules["default"]
    if rules.get("enum"):
        return rules["enum"][0]
    if "x-media" in rules:
        address = f"https://example.com/{name}.{'mp4' if rules['x-media'] == 'video' else 'mp3'}"
        return [address] if rules.get("type") == "array" else address
    kind = rules.get("type", "string")
    least = rules.get("minimum", rules.get("maximum", 1))
    examples = {"integer": least, "number": least, "boolean": True, "array": [], "object": {}}
    return examples.get(kind if isinstance(kind, str) else kind[0], "what happens in the video")


def _python(value: Any) -> str:
    """Return a value as Python source, with the quotes of this project's style."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return text if isinstance(value, str) or '"' in text else text.replace("'", '"')


def _request(args: argparse.Namespace) -> None:
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.values import check_request_id

    hook, request_id = WanHook(args.wan_conn_id), check_request_id(args.request_id)
    result = hook.get_result(request_id)
    status = None if result.state.is_terminal else hook.get_status(request_id)
    row = {
        "request_id": request_id,
        "state": str((status or result).state.value),
        "queue_position": "" if status is None or status.queue_position is None else status.queue_position,
        "cost_usd": "" if result.cost_usd is None else result.cost_usd,
        "videos": ", ".join(url.partition("?")[0] for url in result.video_urls),
        "error": result.error or "",
        "created_at": result.created_at or "",
        "finished_at": result.finished_at or "",
    }
    _print([row], args.output)


def _balance(args: argparse.Namespace) -> None:
    from airflow_provider_wan.hooks.wan import WanHook

    balance = WanHook(args.wan_conn_id).get_balance()
    _print([{"balance_usd": balance.balance_usd, "currency": balance.currency}], args.output)


# -- journal -------------------------------------------------------------------------------------------------


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
    from airflow_provider_wan.durable.reconcile import check_it_exists
    from airflow_provider_wan.durable.submission import release, settle_as
    from airflow_provider_wan.model_api.values import check_request_id

    claim = journal.read(fingerprint)
    if claim is None or claim.record.request_id is not None:
        return "failed: there is no open claim of this fingerprint"
    if window.may_be_alive(claim):
        return "failed: the submit may still be under way; try again in a few minutes"
    try:
        if answer == NOT_BOUGHT:
            release(journal, claim)
        else:
            check_it_exists(hook, check_request_id(answer), named_in="--request-id")
            settle_as(journal, claim, answer, named_in="--request-id")
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
    if not isinstance(given, list) or not all(isinstance(row, Mapping) and row.get("fingerprint") for row in given):
        raise WanInputError(f"--file {path} is neither a mapping nor a list of rows with a fingerprint.")
    for row in given:
        if row.get("request_id"):  # rows without an answer stay open
            yield str(row["fingerprint"]), str(row["request_id"])


def _journal(args: argparse.Namespace) -> BucketJournal:
    from airflow_provider_wan.utils.task import bucket_journal

    return bucket_journal(args.journal, gcp_conn_id=args.gcp_conn_id, impersonation_chain=args.impersonation_chain)
