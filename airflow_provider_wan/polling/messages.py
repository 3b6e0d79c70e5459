# SPDX-License-Identifier: Apache-2.0
"""What a wait tells a person: changes only, so that a log of hours stays a page."""

from __future__ import annotations

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.model_api.states import NOT_READY_WORD, State
from airflow_provider_wan.model_api.values import RequestResult, RequestStatus

_NOTE_EVERY_ERRORS = 10
_NOTED_WORDS = 20
#: In a queue of thousands the place changes with every look: worth a line is one that is a quarter nearer.
_NEARER = 0.75


class ProgressMessages:
    """What is worth a line in the log, and what was seen last.

    :param request_id: the request.
    """

    def __init__(self, request_id: str) -> None:
        self.last_seen = "never seen"
        self._request_id = request_id
        self._noted_place: int | None = None
        self._unknown_words: tuple[str, ...] = ()
        self._notes: list[str] = []

    def drain(self) -> list[str]:
        """Give the lines since the last time, oldest first."""
        drained, self._notes = self._notes, []
        return drained

    def on_status(self, status: RequestStatus) -> None:
        """Note a new state or place in the queue, or a word that is new here."""
        if status.is_over:
            self._seen("ended, its result still to come")
        elif status.state is State.UNKNOWN:
            self._on_unknown(status.word)
        elif status.queue_position is not None:
            self._on_place(status.state, status.queue_position)
        else:
            self._seen(status.state.value)

    def on_result(self, result: RequestResult) -> None:
        """Note a new state, or a word that is new here."""
        if result.state is not State.UNKNOWN:
            self._seen(result.state.value)
        elif result.word != NOT_READY_WORD:
            self._on_unknown(result.word)

    def on_error(self, error: WanError, times: int) -> None:
        """Note the first failed look in a row, and every 10th."""
        if times == 1 or times % _NOTE_EVERY_ERRORS == 0:
            count = f" {times} times in a row" if times > 1 else ""
            self._notes.append(f"Request {self._request_id}: a look failed{count}, looking on. {error}")

    def on_answer(self, errors_before: int) -> None:
        """Note a recovery."""
        if errors_before:
            self._notes.append(
                f"Request {self._request_id}: answered again after {errors_before} failed looks."
            )

    def _on_place(self, state: State, place: int) -> None:
        what, noted = f"{state}, at position {place}", self._noted_place
        if noted is not None and _NEARER * noted < place <= noted and self.last_seen.startswith(state):
            self.last_seen = what
        else:
            self._seen(what)
            self._noted_place = place

    def _seen(self, what: str) -> None:
        if what != self.last_seen:
            self._notes.append(f"Request {self._request_id}: {what}.")
            self.last_seen = what

    def _on_unknown(self, word: str) -> None:
        self.last_seen = f"in a state unknown here, {word!r}"
        if word not in self._unknown_words and len(self._unknown_words) < _NOTED_WORDS:
            self._unknown_words += (word,)
            self._notes.append(
                f"Request {self._request_id}: RunComfy says {word!r}, a word that is unknown here; neither a success "
                "nor a failure, looking on until the deadline."
            )
