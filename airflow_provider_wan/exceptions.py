# SPDX-License-Identifier: Apache-2.0
"""Every error of this provider: what happened, to which request, and what to do now.

The layers below ``utils`` raise these. ``utils.errors`` turns them into Airflow's own exceptions, by
:attr:`WanError.retry_helps`.
"""

from __future__ import annotations


class WanError(Exception):
    """Base of all errors of this provider.

    :param message: what happened and what to do now.
    :param request_id: the request concerned, if there is one.
    :param retry_helps: whether another try of the same task can succeed without any change; None (default): as its
        class says.
    :param retry_after_s: how long the server asked to wait, in seconds, already bounded; None (default): it did not.
    """

    retry_helps: bool = False

    def __init__(
        self,
        message: str,
        *,
        request_id: str | None = None,
        retry_helps: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        if retry_helps is not None:
            self.retry_helps = retry_helps


class WanRefusedError(WanError):
    """The API refused, or would have: nothing was bought, and another try gets the same answer.

    :param code: the API's own error code (such as 403001), if it gave one.
    """

    def __init__(self, message: str, *, request_id: str | None = None, code: int | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.code = code


class WanAuthError(WanRefusedError):
    """The token is missing, wrong, expired or revoked, or the account is inactive."""


class WanBalanceError(WanRefusedError):
    """The account has no balance left."""


class WanInputError(WanRefusedError):
    """An input breaks a rule of the model. Found here or by the API, before a purchase."""


class WanNotFoundError(WanRefusedError):
    """The API (404001 in its own JSON) does not know this request: a wrong id, or it was deleted or has expired."""


class WanUnknownSubmissionError(WanError):
    """A submit was sent and no usable answer came back: it may have been bought.

    :param retry_helps: whether another try sends it again: only with ``on_unknown_submission="resubmit"``. Otherwise
        a person settles it, on RunComfy's Generations page.
    """


class WanTransientError(WanError):
    """An outage, overload or no connection: nothing is lost, and a later try may work."""

    retry_helps = True


class WanGenerationFailedError(WanError):
    """RunComfy ran the request and it failed; a new try buys a new generation."""

    retry_helps = True


class WanCancelledError(WanError):
    """The request was cancelled before it ran."""

    retry_helps = True


class WanTimeoutError(WanError):
    """The deadline passed before the request was finished."""

    retry_helps = True


class WanDownloadError(WanError):
    """A file from outside (a video, an image) could not be fetched whole, or has unexpected content.

    :param retry_helps: true (default) for a temporary fault (cut, stalled, server error), false if the address itself
        is not acceptable.
    """

    retry_helps = True


class WanNoOutputError(WanError):
    """A request succeeded without an output, as content moderation does: it counts as paid, and is not bought again."""


class WanBadVideoError(WanError):
    """A video is whole and a check found something wrong with it. It is in quarantine, and was paid for."""


class WanStorageError(WanError):
    """The bucket refused or did not answer, after retries.

    :param retry_helps: false where only a person can help: a missing bucket or permission.
    """

    retry_helps = True


class WanConflictError(WanStorageError):
    """Another object has the name of a video, and ``if_exists`` does not allow replacing it."""

    retry_helps = False


class WanRecordError(WanStorageError):
    """A record cannot be read: nothing is bought for its video until it is corrected."""

    retry_helps = False


class WanJournalError(WanStorageError):
    """The journal cannot be written: a permission, a retention policy or an object hold forbids it.

    With ``request_id``: that request was bought, and its id could not be written. Without: nothing was bought.
    """

    retry_helps = False


class WanBudgetError(WanError):
    """A limit in USD or in requests would be exceeded. Requests that were paid for are finished first."""


class WanBatchError(WanError):
    """More images of a batch failed than ``max_failures`` allows. All others are finished first.

    :param retry_helps: false if every failure is a refusal.
    """
