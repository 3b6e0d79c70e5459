# SPDX-License-Identifier: Apache-2.0
"""Fault rules: which call gets which fault, how often, and for which request.

The API, its media and the bucket share one :class:`FaultBook`. A server calls :meth:`FaultBook.pick` once for
each incoming call. ``transport.py`` plays the faults that apply to any HTTP response; each server plays its
own kinds (see
:meth:`FaultBook.register`).
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


class FaultError(ValueError):
    """A fault rule that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault, and the parameters it takes.

    :param name: name of the fault in a rule.
    :param about: one sentence that describes it.
    :param params: names of its parameters.
    :param calls: globs of the calls that it applies to. A rule for any other call is refused, and a rule for ``*``
        skips the others.
    """

    name: str
    about: str
    params: frozenset[str] = frozenset()
    calls: tuple[str, ...] = ("*",)


@dataclass(slots=True)
class FaultRule:
    """One rule; see :meth:`FaultBook.add` for the meaning of each field."""

    id: str
    call: str
    fault: str
    rate: float = 1.0
    count: int | None = None
    skip: int = 0
    request_id: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    #: Calls that the rule matched, and calls that it hit.
    seen: int = 0
    hits: int = 0
    #: Globs of the calls that the fault applies to.
    fault_calls: tuple[str, ...] = ("*",)

    def to_json(self) -> dict[str, Any]:
        """Return the rule as the control route shows it."""
        return {
            "id": self.id,
            "call": self.call,
            "fault": self.fault,
            "rate": self.rate,
            "count": self.count,
            "skip": self.skip,
            "request_id": self.request_id,
            "params": self.params,
            "seen": self.seen,
            "hits": self.hits,
        }

    def is_about(self, call: str, request_id: str | None, subject: Mapping[str, str]) -> bool:
        """Return whether the rule applies to this call: by name, request and ``*_contains`` parameters."""
        if self.count is not None and self.hits >= self.count:
            return False
        if self.call != call and not fnmatchcase(call, self.call):
            return False
        if not any(fnmatchcase(call, known) for known in self.fault_calls):
            return False
        if self.request_id is not None and self.request_id != request_id:
            return False
        return all(
            str(text) in subject.get(name.removesuffix("_contains"), "")
            for name, text in self.params.items()
            if name.endswith("_contains")
        )


_RULE_FIELDS = frozenset({"id", "call", "fault", "rate", "count", "skip", "request_id", "params"})


class FaultBook:
    """All rules of one sandbox, in the order of creation; the first one that fires wins.

    :param seed: of the random numbers that decide about ``rate``, so that a run can be repeated.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._rules: dict[str, FaultRule] = {}
        self._numbers = itertools.count(1)
        #: Registered kinds by name.
        self.kinds: dict[str, list[FaultKind]] = {}

    @property
    def has_rules(self) -> bool:
        """Whether :meth:`pick` can return a rule."""
        return bool(self._rules)

    def register(self, kinds: Iterable[FaultKind]) -> None:
        """Register kinds of faults; idempotent. One name may have different parameters for different calls."""
        for kind in kinds:
            same_name = self.kinds.setdefault(kind.name, [])
            if kind not in same_name:
                same_name.append(kind)

    def add(
        self,
        call: str,
        fault: str,
        *,
        rate: float = 1.0,
        count: int | None = None,
        skip: int = 0,
        request_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        id: str | None = None,
    ) -> FaultRule:
        """Add a fault rule.

        :param call: name of the call, or a glob such as ``bucket.*`` or ``*``.
        :param fault: what happens, one of :attr:`kinds`.
        :param rate: share of the calls that are hit, 0 to 1.
        :param count: how many calls are hit before the rule is used up; default: no end.
        :param skip: how many calls pass before the first is hit.
        :param request_id: only calls about this request.
        :param params: of the fault; and ``<name>_contains``, which limits the rule to calls whose
            prompt, img_url (API and media) or object (bucket) contains a text.
        :param id: name of the rule; default: a number.
        :raises FaultError: unknown fault, unknown parameter, or a number out of range.
        """
        params = dict(params or {})
        fault_calls = self._check(call, fault, params)
        if not 0 <= rate <= 1:
            raise FaultError(f"rate must be between 0 and 1, not {rate}")
        if skip < 0 or (count is not None and count < 1):
            raise FaultError("skip must be 0 or more and count 1 or more")
        rule_id = id or f"fault-{next(self._numbers)}"
        rule = FaultRule(rule_id, call, fault, float(rate), count, skip, request_id, params, fault_calls=fault_calls)
        self._rules[rule_id] = rule
        return rule

    def add_json(self, body: Mapping[str, Any]) -> FaultRule:
        """Add a fault rule from its JSON; keys that are not fields of a rule become parameters of the fault."""
        fields = {key: value for key, value in body.items() if key in _RULE_FIELDS}
        params = dict(fields.pop("params", None) or {})
        params.update({key: value for key, value in body.items() if key not in _RULE_FIELDS})
        if fields.get("request_id") is not None:
            fields["request_id"] = str(fields["request_id"])
        try:
            call, fault = str(fields.pop("call")), str(fields.pop("fault"))
        except KeyError as missing:
            raise FaultError(f"a fault rule needs {missing}") from None
        try:
            rate, skip = float(fields.pop("rate", 1.0)), int(fields.pop("skip", 0))
            count = fields.pop("count", None)
            count = None if count is None else int(count)
        except (TypeError, ValueError) as bad:
            raise FaultError(f"rate, count and skip must be numbers: {bad}") from None
        return self.add(call, fault, rate=rate, count=count, skip=skip, params=params, **fields)

    def remove(self, rule_id: str) -> bool:
        """Remove a rule; False if there is no such rule."""
        return self._rules.pop(rule_id, None) is not None

    def clear(self) -> None:
        """Remove all rules and reset the random numbers."""
        self._rules.clear()
        self._random.seed(self._seed)

    def rules(self) -> list[FaultRule]:
        """Return all rules, including the ones that are used up."""
        return list(self._rules.values())

    def pick(
        self, call: str, request_id: str | None = None, subject: Mapping[str, str] | None = None
    ) -> FaultRule | None:
        """Return the rule that hits a call, or None. It counts the call, so call it once per call.

        :param call: such as ``submit`` or ``bucket.get``.
        :param request_id: the request that the call is about.
        :param subject: texts for ``*_contains``: ``{"prompt": ..., "img_url": ...}`` or ``{"object": ...}``.
        """
        if not self._rules:
            return None
        subject = subject or {}
        for rule in self._rules.values():
            if not rule.is_about(call, request_id, subject):
                continue
            rule.seen += 1
            if rule.seen <= rule.skip or (rule.rate < 1 and self._random.random() >= rule.rate):
                continue
            rule.hits += 1
            return rule
        return None

    def _check(self, call: str, fault: str, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Refuse an impossible rule; return the calls that the fault applies to."""
        kinds = self.kinds.get(fault)
        if not kinds:
            raise FaultError(f"unknown fault {fault!r}; there is: {', '.join(sorted(self.kinds))}")
        fitting = [kind for kind in kinds if _calls_meet(call, kind.calls)]
        if not fitting:
            calls = sorted({name for kind in kinds for name in kind.calls})
            raise FaultError(f"{fault!r} is no fault of {call!r}, only of: {', '.join(calls)}")
        understood = frozenset().union(*(kind.params for kind in fitting))
        unknown = [name for name in params if name not in understood and not name.endswith("_contains")]
        if unknown:
            known = ", ".join([*sorted(understood), "<name>_contains"])
            raise FaultError(f"{fault!r} has no parameter {unknown[0]!r}; there is: {known}")
        return tuple(name for kind in fitting for name in kind.calls)


def _calls_meet(rule_call: str, kind_calls: tuple[str, ...]) -> bool:
    return any(fnmatchcase(rule_call, known) or fnmatchcase(known, rule_call) for known in kind_calls)


def parse_rule(text: str) -> dict[str, Any]:
    """Parse ``call:fault[:key=value,...]`` of the command line into JSON for :meth:`FaultBook.add_json`.

    A comma only separates parameters where ``key=`` follows, so that dates and URLs can be values.

    :raises FaultError: the text has another form.
    """
    call, _, rest = text.partition(":")
    fault, _, options = rest.partition(":")
    if not call or not fault:
        raise FaultError(f"a fault is written call:fault[:key=value,...], not {text!r}")
    body: dict[str, Any] = {"call": call, "fault": fault}
    for option in re.split(r",(?=[a-z_]+=)", options) if options else ():
        key, is_pair, value = option.partition("=")
        if not is_pair:
            raise FaultError(f"{option!r} in {text!r} is no key=value")
        body[key] = _value(value)
    return body


def _value(text: str) -> Any:
    if text in {"true", "false"}:
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
