# SPDX-License-Identifier: Apache-2.0
"""The values that pass between the layers: ids, calls, answers, and the content of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api.bodies import clean_text, without_secret
from airflow_provider_wan.model_api.states import State, is_over_word, is_success_word

T = TypeVar("T")
REQUEST_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
MODEL_ID_MAX_CHARS = 256
_MODEL_ID = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


def check_request_id(request_id: str) -> str:
    """Return the request id if it may enter a URL (RunComfy's own rule).

    :raises WanInputError: it may not.
    """
    if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
        raise WanInputError(
            f"request id {clean_text(repr(request_id), 80)} is not valid: 1 to 128 letters, "
            "digits, '_' and '-' are allowed. Pass the id that the submit returned."
        )
    return request_id


def check_model_id(model_id: str) -> str:
    """Return the model id if it may enter a URL: segments of ``A-Za-z0-9._-`` joined by ``/``.

    :raises WanInputError: it may not.
    """
    valid = (
        isinstance(model_id, str)
        and len(model_id) <= MODEL_ID_MAX_CHARS
        and _MODEL_ID.fullmatch(model_id)
        and all(segment.strip(".") for segment in model_id.split("/"))
    )
    if not valid:
        raise WanInputError(
            f"model id {clean_text(repr(model_id), 80)} is not valid: names of letters, digits, '.', '_' "
            "and '-' joined by '/' are allowed. Copy it from the model's page, as in "
            "'wan-ai/wan-2-2/image-to-video'."
        )
    return model_id


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer.

    :param status: the HTTP status.
    :param headers: the headers; names are lowercased here.
    :param body: the whole body, whose size the reader has bounded.
    :param received_at: when it came, aware; only for a ``Retry-After`` date without a ``Date`` header.
    :param peer: connection and host for messages, such as ``connection 'wan_default' (host model-api.runcomfy.net)``.
    :param secret: the token that was sent: where the answer repeats it, it is replaced.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_at: datetime | None = None
    peer: str = ""
    secret: InitVar[str] = ""

    def __post_init__(self, secret: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if secret:
            headers = {name: value.replace(secret, "***") for name, value in headers.items()}
            object.__setattr__(self, "body", without_secret(self.body, secret))
        object.__setattr__(self, "headers", headers)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call of the Model API, for either hook to make.

    :param method: ``GET`` or ``POST``.
    :param path: the absolute path, safe to append to the host as it is.
    :param what: its subject, as a noun, for messages.
    :param read: turns the answer into a typed value, or raises.
    :param request_id: the request that it is about, if any.
    :param query: query parameters, not yet encoded.
    :param json: the JSON body, ``None`` for no body.
    :param host: which of the connection's two hosts it goes to.
    """

    method: Literal["GET", "POST"]
    path: str
    what: str
    read: Callable[[Reply], T] = field(compare=False)
    request_id: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    host: Literal["api", "account"] = "api"

    @property
    def is_submit(self) -> bool:
        """Whether this is the call that costs money."""
        return self.method == "POST" and self.path.startswith("/v1/models/")


@dataclass(frozen=True, slots=True)
class SubmittedRequest:
    """A request that the API accepted: from now on it is paid for."""

    request_id: str
    model_id: str


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """The answer of ``/status``. It never decides how a request ended: see :mod:`.states`.

    :param state: never terminal; ``UNKNOWN`` for an end too.
    :param word: the word as the API wrote it.
    :param queue_position: the place in the queue while queued.
    """

    request_id: str
    state: State
    word: str
    queue_position: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the request has ended; ``/result`` says how."""
        return is_over_word(self.word)


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The answer of ``/result``; it alone decides how a request ended.

    :param state: terminal only if the API is done with the request; ``SUCCEEDED`` only with a usable URL.
    :param word: the word as the API wrote it, ``not_ready`` for a 400005.
    :param urls: every URL of the output.
    :param video_urls: those of them to land as videos.
    :param output: the output as it came.
    :param error: what went wrong, at most 300 characters.
    :param cost_usd: what it cost in USD; can come late.
    :param created_at: when it was made, as the API wrote it.
    :param finished_at: when it ended, as the API wrote it.
    """

    request_id: str
    state: State
    word: str
    urls: tuple[str, ...] = ()
    video_urls: tuple[str, ...] = ()
    output: Any = None
    error: str | None = None
    cost_usd: float | None = None
    created_at: str | None = None
    finished_at: str | None = None

    @property
    def is_paid_without_output(self) -> bool:
        """Whether the request succeeded without an output, as content moderation does: paid, never bought again."""
        return is_success_word(self.word) and not self.urls


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """The answer to a cancel; a running request cannot be cancelled and is charged.

    :param cancelled: whether it is cancelled and not charged.
    :param word: the API's own ``outcome``.
    """

    request_id: str
    cancelled: bool
    word: str

    @property
    def sentence(self) -> str:
        """The outcome as a sentence for logs and errors, after the name of the request."""
        if self.cancelled:
            return "It was still queued: it is cancelled and not charged."
        return f"It can't be cancelled any more ({self.word}): it has ended, or runs on and is charged."


@dataclass(frozen=True, slots=True)
class Balance:
    """The balance of the account."""

    balance_usd: float
    currency: str
