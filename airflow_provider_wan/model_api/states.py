# SPDX-License-Identifier: Apache-2.0
"""The two status vocabularies of the API, turned into one.

``/status`` says ``completed`` for a success *and* for a failure. So

* a terminal word from ``/status`` means only "ask ``/result``" (:func:`is_over_word`), never a state;
* only a word from ``/result`` decides, and there a success also needs a usable URL;
* an unknown word is neither success nor failure, in either place.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """The state of a request."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: Not known: an unknown word, or an end that only ``/result`` can name.
    UNKNOWN = "unknown"

    @property
    def is_terminal(self) -> bool:
        """Whether the request has ended."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


#: The ``word`` of a result for which the API says only that it is not there yet (400005).
NOT_READY_WORD = "not_ready"

_UNFINISHED = {"in_queue": State.QUEUED, "in_progress": State.RUNNING}
_DONE = frozenset({"completed", "succeeded"})
_CANCELLED = frozenset({"cancelled", "canceled"})
_FAILED = frozenset({"failed"})
_OVER = _DONE | _CANCELLED | _FAILED


def _plain(word: str) -> str:
    return word.strip().casefold()


def is_known_word(word: str) -> bool:
    """Return whether either vocabulary has this word, in any letter case."""
    plain = _plain(word)
    return plain in _OVER or plain in _UNFINISHED


def is_over_word(word: str) -> bool:
    """Return whether this word, from either place, says that a request has ended."""
    return _plain(word) in _OVER


def is_success_word(word: str) -> bool:
    """Return whether this word of a result says that the request succeeded."""
    return _plain(word) in _DONE


def is_unpaid_word(word: str) -> bool:
    """Return whether this word, from either place, says that a request ended without a cost.

    It matters only when ``/result`` is gone: any other end then counts as paid.
    """
    return _plain(word) in _CANCELLED | _FAILED


def state_of_status_word(word: str) -> State:
    """Return the state that a word from ``/status`` means; never a terminal one.

    A word that says that the request has ended gives ``UNKNOWN``: only ``/result`` says how it ended.
    """
    return _UNFINISHED.get(_plain(word), State.UNKNOWN)


def state_of_result_word(word: str, has_url: bool) -> State:
    """Return the state that a word from ``/result`` means.

    :param has_url: whether the output holds a usable URL; a success without one is a failure.
    """
    plain = _plain(word)
    if plain in _DONE:
        return State.SUCCEEDED if has_url else State.FAILED
    if plain in _FAILED:
        return State.FAILED
    if plain in _CANCELLED:
        return State.CANCELLED
    return _UNFINISHED.get(plain, State.UNKNOWN)
