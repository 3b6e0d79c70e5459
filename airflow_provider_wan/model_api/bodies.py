# SPDX-License-Identifier: Apache-2.0
"""Reading what a server wrote without trusting it: JSON, texts for people, error bodies.

Whatever ends up in a message or a log passes :func:`clean_text`, so that a server's text can neither forge
log lines nor carry a token or a signed link into them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MESSAGE_MAX_CHARS = 300
_LOOKED_AT_CHARS = 4_000
_URL = re.compile(r"""(https?://)(?:[^\s/"'<>]*@)?([^\s"'<>?#]*)([?#][^\s"'<>]*)?""", re.IGNORECASE)
_BEARER = re.compile(r"\bbearer\s+\S+", re.IGNORECASE)
_TOKEN = re.compile(
    r"""\b(token|api[_-]?key|secret|authorization)([\s"':=]+)(?=[\w.-]{0,200}\d)[\w.-]{16,}""", re.IGNORECASE
)
_DATA_URI = re.compile(r"\bdata:[\w/+.-]*[;,]\S*", re.IGNORECASE)
_TEXT_KEYS = ("error_message", "message", "error", "detail")
_ERROR_TEXT_KEYS = (*_TEXT_KEYS, "msg", "reason", "title")


def clean_text(value: str, max_chars: int = MESSAGE_MAX_CHARS) -> str:
    """Make a text from outside fit for a message: one line, no control characters, no secrets, cut.

    :param value: any text.
    :param max_chars: the most characters to give back, default 300 (the API contract's limit).
    """
    text = value[:_LOOKED_AT_CHARS]
    text = "".join(char if char.isprintable() else " " for char in text)
    text = _URL.sub(lambda m: m[1] + m[2] + ("?…" if m[3] else ""), text)
    text = _DATA_URI.sub("data:…", text)
    text = _BEARER.sub("Bearer …", text)
    text = _TOKEN.sub(r"\1\2…", text)
    text = " ".join(text.split())
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def json_of(body: bytes) -> Any:
    """Parse JSON from outside; ``None`` for everything that is none.

    :param body: the bytes of an HTTP body.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def object_of(body: bytes) -> Mapping[str, Any] | None:
    """Parse a JSON object from outside; ``None`` for everything that is none.

    :param body: the bytes of an HTTP body.
    """
    value = json_of(body)
    return value if isinstance(value, dict) else None


def text_of(value: Any, depth: int = 4) -> str:
    """Say in one line what an ``error`` or ``detail`` of undocumented shape says; not yet cleaned.

    :param value: a string, number, object, list or nothing.
    :param depth: how deep to look.
    """
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
    """What an error body says.

    :param code: the API's own error code, if there is one.
    :param text: what it says, cleaned, at most 300 characters; the reason phrase if it says nothing.
    :param readable: whether the body is JSON that carries a code or a text, so that the API itself spoke.
    :param has_detail_list: whether it lists fields, as a 422 does.
    """

    code: int | None
    text: str
    readable: bool
    has_detail_list: bool


def read_error_body(status: int, body: bytes) -> ErrorBody:
    """Read an error body in any of the shapes that the API contract lists.

    :param status: the HTTP status, for the reason phrase.
    :param body: the bytes of the body: JSON, HTML, plain text or nothing.
    """
    found = object_of(body)
    if found is None:
        return ErrorBody(None, _reason(status), readable=False, has_detail_list=False)
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
    """Give the API's own error code, ``None`` where a body has none.

    :param found: a body as JSON.
    """
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
