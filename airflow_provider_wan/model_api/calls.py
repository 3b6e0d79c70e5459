# SPDX-License-Identifier: Apache-2.0
"""The wire format: the content of each call, and the reading of each answer.

Addresses are built here from ids, and an id that is not valid raises :class:`WanInputError`. No URL that the API sends
back is ever called, since the token would go along. Each ``read_*`` returns a typed value, or raises the error of the
answer (:mod:`.faults`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from airflow_provider_wan.exceptions import WanTransientError
from airflow_provider_wan.model_api.bodies import (
    clean_text,
    error_code_of,
    number_of,
    object_of,
    read_error_body,
    text_of,
)
from airflow_provider_wan.model_api.dialect import model_of_page
from airflow_provider_wan.model_api.faults import NOT_READY_CODE, OWN_CODES, error_of_reply
from airflow_provider_wan.model_api.outputs import output_urls, video_urls
from airflow_provider_wan.model_api.schema import ModelInfo, ModelPage
from airflow_provider_wan.model_api.states import (
    NOT_READY_WORD,
    State,
    is_known_word,
    state_of_result_word,
    state_of_status_word,
)
from airflow_provider_wan.model_api.values import (
    MODEL_ID_MAX_CHARS,
    REQUEST_ID,
    Balance,
    Call,
    CancelOutcome,
    Reply,
    RequestResult,
    RequestStatus,
    SubmittedRequest,
    check_model_id,
    check_request_id,
)

API_HOST = "https://model-api.runcomfy.net"
ACCOUNT_HOST = "https://api.runcomfy.net"


def submit_call(model_id: str, inputs: Mapping[str, Any]) -> Call[SubmittedRequest]:
    """Return the one call that costs money; its body is the flat model input.

    :param inputs: the inputs, already validated.
    """
    path = f"/v1/models/{check_model_id(model_id)}"
    read = partial(read_submit, model_id=model_id)
    return Call("POST", path, f"submit to model {model_id}", read, json=dict(inputs))


def status_call(request_id: str) -> Call[RequestStatus]:
    """Return the call for the status of a request."""
    path = f"/v1/requests/{check_request_id(request_id)}/status"
    return Call("GET", path, "status", partial(read_status, request_id=request_id), request_id)


def result_call(request_id: str) -> Call[RequestResult]:
    """Return the call for the result of a request, with its cost."""
    path = f"/v1/requests/{check_request_id(request_id)}/result"
    read = partial(read_result, request_id=request_id)
    return Call("GET", path, "result", read, request_id, query={"include_cost": "true"})


def cancel_call(request_id: str) -> Call[CancelOutcome]:
    """Return the call that cancels a queued request."""
    path = f"/v1/requests/{check_request_id(request_id)}/cancel"
    return Call("POST", path, "cancel", partial(read_cancel, request_id=request_id), request_id)


def model_call(model_id: str) -> Call[ModelInfo]:
    """Return the call for one model of the catalogue."""
    return Call("GET", f"/v1/models/{check_model_id(model_id)}", "model", read_model)


def models_call(search: str | None, category: str | None, *, limit: int, offset: int) -> Call[ModelPage]:
    """Return the call for a page of the catalogue, with the schema of each model's inputs.

    :param search: words to search for; None: all.
    :param category: a category of the catalogue; None: all.
    """
    given = {"search": search, "category": category, "limit": limit, "offset": offset}
    query = {name: str(value) for name, value in given.items() if value is not None}
    query["include_schema"] = "true"
    return Call("GET", "/v1/models", "list of models", read_models, query=query)


def balance_call() -> Call[Balance]:
    """Return the call for the account's balance, which goes to another host."""
    return Call("GET", "/prod/v2/balance", "balance", read_balance, host="account")


def read_submit(reply: Reply, model_id: str) -> SubmittedRequest:
    """Read the answer to the one call that costs money.

    :raises WanRefusedError: the API refused it; nothing was bought.
    :raises WanTransientError: 429; nothing was bought, and a later try may work.
    :raises WanUnknownSubmissionError: it may have been bought; it must not be resent automatically.
    """
    if 200 <= reply.status < 300:
        request_id = (object_of(reply.body) or {}).get("request_id")
        if isinstance(request_id, int) and not isinstance(request_id, bool):
            request_id = text_of(request_id)
        if isinstance(request_id, str) and REQUEST_ID.fullmatch(request_id):
            return SubmittedRequest(request_id, model_id)
    raise error_of_reply(reply, what=f"submit to model {model_id}", submit=True)


def read_status(reply: Reply, request_id: str) -> RequestStatus:
    """Read the status of a request."""
    found = _request_body(reply, request_id, what="status")
    word = _clean_word(found["status"])
    position = found.get("queue_position")
    if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < 10**9:
        position = None
    return RequestStatus(request_id, state_of_status_word(word), word, position)


def read_result(reply: Reply, request_id: str) -> RequestResult:
    """Read the result of a request; 400005 means "not yet", and is never an error."""
    if reply.status < 500 and read_error_body(reply.status, reply.body).code == NOT_READY_CODE:
        return RequestResult(request_id, State.UNKNOWN, NOT_READY_WORD)
    found = _request_body(reply, request_id, what="result")
    word, output = _clean_word(found["status"]), found.get("output")
    urls = output_urls(output)
    state = state_of_result_word(word, bool(urls))
    error = clean_text(text_of(found.get("error"))) or None
    if state is State.FAILED and state_of_result_word(word, True) is State.SUCCEEDED:
        error = clean_text(f"RunComfy says {word!r} but gave no output file. {error or ''}")
    return RequestResult(
        request_id=request_id,
        state=state,
        word=word,
        urls=urls,
        video_urls=video_urls(output),
        output=output,
        error=error,
        cost_usd=_usd(found.get("cost")),
        created_at=_text(found.get("created_at")),
        finished_at=_text(found.get("finished_at")),
    )


def _request_body(reply: Reply, request_id: str, *, what: str) -> Mapping[str, Any]:
    """Return the body of an answer that is about this request and has a status; HTTP 200 alone is not enough."""
    found = object_of(reply.body) if 200 <= reply.status < 300 else None
    word = found.get("status") if found else None
    if found is None or not isinstance(word, str) or _is_error_body(found, word):
        raise error_of_reply(reply, what=what, request_id=request_id)
    named = found.get("request_id")
    if isinstance(named, str) and named.strip().casefold() != request_id.casefold():
        raise WanTransientError(
            f"RunComfy answered about another request ({clean_text(named, 40)}) when asked for the {what} of "
            f"request {request_id}. The answer was not used. Try again later.",
            request_id=request_id,
        )
    return found


def _clean_word(word: str) -> str:
    """Return a status word fit for a message; the known ones, thousands a minute, need no cleaning."""
    return word.strip() if is_known_word(word) else clean_text(word, 80)


def _is_error_body(found: Mapping[str, Any], word: str) -> bool:
    """Return whether a 2xx with a status word is an error: it has the API's own code, or a code and no known word."""
    code = error_code_of(found)
    return code in OWN_CODES or (code is not None and code >= 400 and not is_known_word(word))


def read_cancel(reply: Reply, request_id: str) -> CancelOutcome:
    """Read whether a request was cancelled: ``outcome`` decides, whatever ``status`` says."""
    found = object_of(reply.body) if 200 <= reply.status < 300 else None
    outcome = found.get("outcome") if found else None
    if not isinstance(outcome, str):
        raise error_of_reply(reply, what="cancel", request_id=request_id)
    word = clean_text(outcome, 80)
    return CancelOutcome(request_id, word.casefold() in ("cancelled", "canceled"), word)


def read_model(reply: Reply) -> ModelInfo:
    """Read one model of the catalogue."""
    found = object_of(reply.body) if 200 <= reply.status < 300 else None
    if not found or not isinstance(found.get("model_id"), str):
        raise error_of_reply(reply, what="model")
    return _model_info(found)


def read_models(reply: Reply) -> ModelPage:
    """Read a page of the catalogue."""
    found = object_of(reply.body) if 200 <= reply.status < 300 else None
    models = found.get("models") if found else None
    if found is None or not isinstance(models, list):
        raise error_of_reply(reply, what="list of models")
    total = found.get("total")
    return ModelPage(
        models=tuple(
            _model_info(model) for model in models if isinstance(model, dict) and isinstance(model.get("model_id"), str)
        ),
        total=total if isinstance(total, int) and not isinstance(total, bool) else None,
    )


def read_balance(reply: Reply) -> Balance:
    """Read the account's balance."""
    found = object_of(reply.body) if 200 <= reply.status < 300 else None
    amount = number_of(found.get("balance_usd")) if found else None
    if found and amount is None:
        micro = number_of(found.get("balance_microdollars"))
        amount = micro / 1_000_000 if micro is not None else None
    if found is None or amount is None:
        raise error_of_reply(reply, what="balance")
    return Balance(float(amount), _text(found.get("currency")) or "USD")


def _model_info(found: Mapping[str, Any]) -> ModelInfo:
    schema = found.get("input_schema")
    page = ModelInfo(
        model_id=clean_text(found["model_id"], MODEL_ID_MAX_CHARS),
        display_name=_text(found.get("display_name")),
        base_price_usd=_usd(found.get("base_price_usd")),
        price_unit=_text(found.get("price_unit")),
        pricing_note=_text(found.get("pricing_note")),
        input_schema=schema if isinstance(schema, dict) else None,
        raw=found,
    )
    return replace(page, schema=model_of_page(page)[0].schema)


def _usd(value: Any) -> float | None:
    amount = number_of(value)
    return float(amount) if amount is not None and amount >= 0 else None


def _text(value: Any) -> str | None:
    return clean_text(text_of(value)) or None if isinstance(value, str | int | float) else None
