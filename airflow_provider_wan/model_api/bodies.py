# SPDX-License-Identifier: Apache-2.0
"""Read what a server wrote without trusting it: JSON, texts for people, error bodies.

Every text that reaches a message or a log passes :func:`clean_text`, so that a server can neither forge log lines nor
put a token or a signed link into them. The connection's own token is replaced before anything is read
(:func:`without_secret`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MESSAGE_MAX_CHARS = 300
_HIDDEN = "***"
_READ_CHARS = 4_000
_URL = re.compile(r"""(https?://)(?:[^\s/"'<>]*@)?([^\s"'<>?#]*)([?#][^\s"'<>]*)?""", re.IGNORECASE)
_BEARER = re.compile(r"\bbearer\s+\S+", re.IGNORECASE)
_TOKEN = re.compile(
    r"""\b(token|api[_-]?key|secret|authorization)([\s"':=]+)(?=[\w.-]{0,200}\d)[\w.-]{16,}""", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_HTML = re.compile(rb"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE)
_DATA_URI = re.compile(r"\bdata:[\w/+.-]*[;,]\S*", re.IGNORECASE)
_TEXT_KEYS = ("error_message", "message", "error", "detail")
_ERROR_TEXT_KEYS = (*_TEXT_KEYS, "msg", "reason", "title")


def clean_text(value: str, max_chars: int = MESSAGE_MAX_CHARS) -> str:
    """Return a text from outside in a form fit for a message: one line, no control characters, no secrets, cut.

    :param max_chars: the most characters to return, default 300 (the API contract's limit).
    """
    text = value[:_READ_CHARS]
    text = "".join(char if char.isprintable() else " " for char in text)
    text = _URL.sub(lambda m: m[1] + m[2] + ("?…" if m[3] else ""), text)
    text = _DATA_URI.sub("data:…", text)
    text = _BEARER.sub("Bearer …", text)
    text = _TOKEN.sub(r"\1\2…", text)
    text = " ".join(text.split())
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def without_secret(body: bytes, secret: str) -> bytes:
    """Return an HTTP body in which a secret is replaced, however JSON spells it.

    :param secret: one of fewer than four characters is not replaced.
    """
    if len(secret) < 4:
        return body
    body = body.replace(secret.encode(), _HIDDEN.encode())
    if b"\\" in body or b"\0" in body:  # escapes, or another encoding
        value = json_of(body)
        try:
            hidden = _without_secret(value, secret)
        except RecursionError:
            return b""
        if hidden != value:
            return json.dumps(hidden).encode()
    return body


def _without_secret(value: Any, secret: str) -> Any:
    if isinstance(value, str):
        return value.replace(secret, _HIDDEN)
    if isinstance(value, list):
        return [_without_secret(item, secret) for item in value]
    if isinstance(value, dict):
        return {key.replace(secret, _HIDDEN): _without_secret(item, secret) for key, item in value.items()}
    return value


def json_of(body: bytes) -> Any:
    """Return parsed JSON from outside, or None if it is not valid."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def object_of(body: bytes) -> Mapping[str, Any] | None:
    """Return a parsed JSON object from outside, or None if it is not one."""
    value = json_of(body)
    return value if isinstance(value, dict) else None


def number_of(value: Any) -> int | float | None:
    """Return a finite number, also one that is written as text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return None
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def text_of(value: Any, depth: int = 4) -> str:
    """Return the text of an ``error`` or ``detail`` of undocumented shape; not yet cleaned."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool) or depth == 0:
        return ""
    if isinstance(value, int | float):
        return _number_text(value)
    if isinstance(value, list):
        return "; ".join(text for item in value[:20] if (text := text_of(item, depth - 1)))
    if isinstance(value, dict):
        return _text_of_object(value, depth)
    return ""


def _text_of_object(value: Mapping[str, Any], depth: int) -> str:
    text = next((t for key in _ERROR_TEXT_KEYS if (t := text_of(value.get(key), depth - 1)).strip()), "")
    where = value.get("loc")
    if isinstance(where, list):  # the shape of a 422: {"loc": ["body", "prompt"], "msg": "..."}
        field = ".".join(str(part) for part in where if isinstance(part, str | int) and part != "body")
        return f"{field}: {text or 'not accepted'}" if field else text
    code = value.get("code")
    if not text and isinstance(code, str | int) and not isinstance(code, bool):
        return f"code {text_of(code)}"
    return text


def _number_text(value: int | float) -> str:
    try:
        return str(value)
    except ValueError:  # an integer of more digits than Python turns into text
        return ""


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The content of an error body.

    :param code: the API's own error code, if there is one.
    :param text: its text, cleaned, at most 300 characters; the reason phrase if it has none.
    :param readable: whether the body is JSON with a code or a text, so that the API itself answered.
    :param has_detail_list: whether it lists fields, as a 422 does.
    """

    code: int | None
    text: str
    readable: bool
    has_detail_list: bool


def read_error_body(status: int, body: bytes) -> ErrorBody:
    """Return the content of an error body: JSON in any of the shapes that the API contract lists, or anything else."""
    found = object_of(body)
    if found is None:
        page = ", an HTML page" if _HTML.match(body[:1000]) else ""
        return ErrorBody(None, f"{_reason(status)}{page}", readable=False, has_detail_list=False)
    code = error_code_of(found)
    text = next((t for key in _TEXT_KEYS if (t := clean_text(text_of(found.get(key))))), "")
    detail = found.get("detail")
    return ErrorBody(
        code=code,
        text=text or _reason(status),
        readable=code is not None or bool(text),
        has_detail_list=isinstance(detail, list) and bool(detail),
    )


def error_code_of(found: Mapping[str, Any]) -> int | None:
    """Return the API's own error code, or None if a body has none."""
    code = _code(found.get("error_code"))
    return _code(found.get("code")) if code is None else code


def _code(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9:
        return value
    return None


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"
