# SPDX-License-Identifier: Apache-2.0
"""Every error of this provider: what happened, to which request, and what to do now.

The plain layers (``model_api``, ``generation``, ``images``, ``hooks``) raise these. ``utils.errors`` turns them
into Airflow's own exceptions, by :attr:`WanError.retry_helps`.
"""

from __future__ import annotations

from typing import ClassVar


class WanError(Exception):
    """Base of all errors of this provider.

    :param message: what happened and what to do now, in whole sentences.
    :param request_id: the request it happened to, if there is one.
    """

    #: Whether another try of the same Airflow task can end differently without anybody changing anything.
    retry_helps: ClassVar[bool] = False

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class WanRefusedError(WanError):
    """The API refused, or would have: nothing was bought, and the same call gets the same answer.

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
    """An input breaks a rule of the model; found here or by the API, before anything was bought."""


class WanNotFoundError(WanRefusedError):
    """The API itself (404001 in its own JSON) does not know this request: wrong, deleted or expired."""


class WanUnknownSubmissionError(WanError):
    """A submit was sent and no usable answer came back: it may have been bought.

    :param retry_helps: whether another try sends it again: only with ``on_unknown_submission="resubmit"``. Otherwise
        a person settles it, on RunComfy's Generations page.
    """

    def __init__(self, message: str, *, request_id: str | None = None, retry_helps: bool = False) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_helps = retry_helps  # type: ignore[misc]


class WanTransientError(WanError):
    """An outage or overload, or no connection: nothing is lost, and a later try may work.

    :param retry_after_s: how long the server asked to wait, in seconds, already bounded.
    """

    retry_helps = True

    def __init__(
        self, message: str, *, request_id: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_after_s = retry_after_s


class WanGenerationFailedError(WanError):
    """RunComfy ran the request and it failed; a new try buys a new generation."""

    retry_helps = True


class WanCancelledError(WanError):
    """The request was cancelled before it ran."""

    retry_helps = True


class WanTimeoutError(WanError):
    """The deadline passed while the request was not finished; another try takes it over."""

    retry_helps = True


class WanDownloadError(WanError):
    """A file from outside (a video, an image) could not be fetched whole, or is not what it should be.

    :param retry_helps: true for a fault of the moment (cut, stalled, server error), false where the
        address itself is not acceptable.
    :param retry_after_s: how long the server asked to wait, in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        request_id: str | None = None,
        retry_helps: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_helps = retry_helps  # type: ignore[misc]
        self.retry_after_s = retry_after_s


class WanNoOutputError(WanError):
    """A request succeeded without an output, as content moderation does: it counts as paid, and is not bought again."""


class WanStorageError(WanError):
    """The bucket refused, or did not answer, after what could be retried was retried.

    :param retry_helps: false where only a person can help: a missing bucket or permission.
    """

    retry_helps = True

    def __init__(
        self, message: str, *, request_id: str | None = None, retry_helps: bool | None = None
    ) -> None:
        super().__init__(message, request_id=request_id)
        if retry_helps is not None:
            self.retry_helps = retry_helps  # type: ignore[misc]


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
    """A money or count limit would be passed; what was paid for was finished first."""


class WanBatchError(WanError):
    """More images of a batch failed than ``max_failures`` allows; all the others were finished first.

    :param retry_helps: true if another try can make a difference: false if every failure is a refusal.
    """

    def __init__(self, message: str, *, retry_helps: bool) -> None:
        super().__init__(message)
        self.retry_helps = retry_helps  # type: ignore[misc]
