# SPDX-License-Identifier: Apache-2.0
"""The faults that only the Model API can have, and how it writes errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_sandbox.control.faults import FaultKind, FaultRule

API_CALLS = ("submit", "status", "result", "cancel", "model", "models", "balance")

_STATUS = frozenset({"status", "body", "retry_after", "error_code", "error_message", "shape", "text"})

#: Error answers that have a name: each is the fault ``status`` with these parameters.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "unauthorized": ("400004: the token is not good", {"status": 400, "error_code": 400004}),
    "no_balance": ("400002: no balance left", {"status": 400, "error_code": 400002}),
    "malformed_id": ("400001: malformed id", {"status": 400, "error_code": 400001}),
    "not_found": (
        "404001: the request is unknown, deleted or expired",
        {"status": 404, "error_code": 404001},
    ),
    "other_user": ("403001: the request belongs to another user", {"status": 403, "error_code": 403001}),
    "not_found_html": ("404 that is not the API's own JSON", {"status": 404, "body": "html"}),
    "forbidden_html": ("403 that is not the API's own JSON", {"status": 403, "body": "html"}),
    "overloaded": ("429; nothing is processed", {"status": 429}),
    "error_200": ("an error in a body with HTTP 200", {"status": 200, "error_code": 400004}),
    "invalid": ("422 with a detail list", {"status": 422, "shape": "detail"}),
}

MESSAGES = {
    400001: "Malformed id",
    400002: "Insufficient balance",
    400004: "The token is missing, invalid or expired, or the account is inactive",
    400005: "The result is not ready",
    403001: "The request belongs to another user",
    404001: "Request not found",
}

_WORDS = ("status", "result", "cancel")

API_FAULTS = (
    *(FaultKind(name, about, _STATUS, API_CALLS) for name, (about, _) in PRESETS.items()),
    FaultKind("word", "any word for the state", frozenset({"word"}), _WORDS),
    FaultKind("upper_case", "the state in upper case", frozenset(), _WORDS),
    FaultKind("one_l", "canceled instead of cancelled", frozenset(), _WORDS),
    FaultKind("foreign_urls", "the URLs lead to another host", frozenset({"location"}), ("submit", "status")),
    FaultKind("no_id", "bought, and the answer has no request id", frozenset(), ("submit",)),
    FaultKind("bad_id", "bought, and the answer has a hostile request id", frozenset({"id"}), ("submit",)),
    FaultKind("accepted_202", "bought, and answered with 202", frozenset(), ("submit",)),
    FaultKind("early_400005", "400005 until the end", frozenset(), ("result",)),
    FaultKind("not_ready", "400005 even after the end", frozenset(), ("result",)),
    FaultKind("pending", "still running, after the end", frozenset({"word"}), ("result",)),
    FaultKind("link", "the link is this one", frozenset({"url"}), ("result",)),
    FaultKind("link_other_host", "the link leads to a host that is on no list", frozenset({"url"}), ("result",)),
    FaultKind("link_private", "the link leads to a private address", frozenset({"url"}), ("result",)),
    FaultKind("link_http", "the link is plain http to another host", frozenset({"url"}), ("result",)),
    FaultKind("link_credentials", "the link has a user and a password in it", frozenset(), ("result",)),
    FaultKind("no_output", "succeeded, without output", frozenset(), ("result", "generation")),
    FaultKind(
        "output_shape",
        "another form of output: video, videos, both, bare, list, video_url, download_url, generated_video, "
        "image, image_and_video; links end in suffix: mp4, webm (a real WebM) or none",
        frozenset({"shape", "n", "suffix"}),
        ("result", "generation"),
    ),
    FaultKind("failed", "failed, whatever the state", frozenset({"error", "error_shape"}), ("result",)),
    FaultKind("cost_late", "no cost until some seconds after the end", frozenset({"seconds"}), ("result",)),
    FaultKind("cost_absent", "no cost", frozenset(), ("result",)),
    FaultKind("not_cancellable", "does not cancel a queued request", frozenset(), ("cancel",)),
    FaultKind(
        "fail",
        "the generation fails; error_shape: string, object, list, null, absent",
        frozenset({"error", "error_shape", "charged"}),
        ("generation",),
    ),
    FaultKind(
        "cancelled",
        "RunComfy cancels the generation at its end",
        frozenset(),
        ("generation",),
    ),
    FaultKind("stuck_queue", "never leaves the queue", frozenset(), ("generation",)),
    FaultKind("stuck_running", "runs forever and keeps its place", frozenset(), ("generation",)),
    FaultKind("slow", "takes longer", frozenset({"seconds", "factor"}), ("generation",)),
    FaultKind(
        "vanish",
        "becomes unknown (404001): when=submitted at once, when=done after so many results were told",
        frozenset({"when", "after_results"}),
        ("generation",),
    ),
)


def as_status_fault(rule: FaultRule) -> FaultRule:
    """Return the fault ``status`` that a rule with a preset's name means."""
    if rule.fault not in PRESETS:
        return rule
    params = {**PRESETS[rule.fault][1], **rule.params}
    return FaultRule(rule.id, rule.call, "status", params=params)


def error_json(status: int, params: Mapping[str, Any]) -> Any:
    """Write an error in one of the forms that were seen; ``shape`` chooses, else the code decides.

    ``error_code``: ``{"error_code", "error_message", "detail"}``; ``code``: ``{"code", "error"}``;
    ``message``: ``{"message"}``; ``detail``: ``{"detail": [...]}``.
    """
    code = params.get("error_code")
    message = str(params.get("error_message", MESSAGES.get(code or 0, f"Sandbox fault, HTTP {status}")))
    match params.get("shape", "message" if code is None else "error_code"):
        case "code":
            return {"code": code, "error": message}
        case "message":
            return {"message": message}
        case "detail":
            return {"detail": [{"loc": ["body"], "msg": message, "type": "value_error"}]}
        case _:
            return {"error_code": code, "error_message": message, "detail": None}


def error_value(params: Mapping[str, Any]) -> Any:
    """Return the ``error`` of a failed generation in the shape that ``error_shape`` names."""
    message = str(params.get("error", "The generation failed: out of memory on the worker"))
    match params.get("error_shape", "string"):
        case "object":
            return {"code": "GENERATION_FAILED", "message": message, "node": {"id": "12", "type": "KSampler"}}
        case "list":
            return [{"type": "runtime_error", "msg": message}, {"type": "node", "msg": "KSampler"}]
        case "null" | "absent":
            return None
        case _:
            return message
