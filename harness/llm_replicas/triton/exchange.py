"""One request and all that was observed of its answer; the outcome is decided here and nowhere else.

Times are readings of the monotonic clock of this machine (`time.monotonic`), never differences, so that
whoever keeps them can set them against a schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from llm_replicas.triton.tokens import Completeness, TokenLedger

Outcome = Literal["ok", "failed", "cut", "stalled", "duplicated", "unfinished"]

_DETAIL_CHARACTERS = 300

REPLICA_HEADER = "x-llm-replica"
ROUTER_HEADER = "x-llm-router"
ATTEMPTS_HEADER = "x-llm-attempts"


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of a replica."""

    request_id: str
    model: str
    prompt: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a client waits, in seconds.

    ``first_byte`` does not bind a unary call, whose first byte is the whole answer.
    """

    connect: float = 5.0
    first_byte: float = 30.0
    stall: float = 10.0
    deadline: float = 120.0


@dataclass(slots=True)
class Exchange:
    """What was observed of one call. Filled by a client; read once it has ended or was given up."""

    call: Call
    completeness: Completeness = "numbered"
    sent: float | None = None
    first_byte: float | None = None
    end: float | None = None
    gaps: list[float] = field(default_factory=list)
    events: int = 0
    bytes: int = 0
    status: int | None = None
    connection_id: str | None = None
    connection_reused: bool | None = None
    finish_reason: str | None = None
    replica: str | None = None
    router: str | None = None
    attempts: int | None = None
    clean_end: bool = False
    error_class: str | None = None
    error_detail: str | None = None
    cancelled: str | None = None
    tokens: TokenLedger = field(init=False)
    _last_event: float | None = field(init=False, default=None)
    _abort: Callable[[], None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.tokens = TokenLedger(self.call.max_tokens, self.completeness)

    def on_event(self, moment: float, text: str) -> None:
        """An event with answer text arrived at ``moment``; an event without text is no sign of a token."""
        if not self.tokens.take(text):
            return
        if self._last_event is None:
            self.first_byte = moment
        else:
            self.gaps.append(moment - self._last_event)
        self._last_event = moment
        self.events += 1

    def on_headers(self, headers: dict[str, str]) -> None:
        """Read what the router tells about the way the request took."""
        self.replica = headers.get(REPLICA_HEADER) or self.replica
        self.router = headers.get(ROUTER_HEADER) or self.router
        attempts = headers.get(ATTEMPTS_HEADER, "")
        if attempts.isdigit():
            self.attempts = int(attempts)

    def fail(self, error_class: str, detail: object = None) -> None:
        """Note what went wrong; the first trouble is the cause, later ones are its echo."""
        if self.error_class is None:
            self.error_class = error_class
            self.error_detail = None if detail is None else clip(str(detail))

    def finish(self) -> None:
        """Note that nothing more will come."""
        if self.end is None:
            self.end = time.monotonic()

    def abort_with(self, abort: Callable[[], None] | None) -> None:
        """Say how the call under way can be broken off from outside (None: not any more)."""
        self._abort = abort
        if abort is not None and self.cancelled is not None:
            abort()

    def cancel(self, reason: str) -> None:
        """Give the call up from outside, for example at the end of the drain."""
        if self.cancelled is None and self.end is None:
            self.cancelled = reason
            if self._abort is not None:
                self._abort()

    def outcome(self) -> tuple[Outcome, str | None]:
        """What became of the request, and the class of error if it is not ok."""
        tokens = self.tokens
        if self.cancelled is not None:
            return "unfinished", self.cancelled
        if tokens.fault == "duplicated":
            return "duplicated", "duplicated"
        if self.error_class == "stall":
            return "stalled", "stall"
        bad: Outcome = "cut" if tokens.received else "failed"
        if self.error_class is not None:
            return bad, self.error_class
        if tokens.fault is not None:
            return ("duplicated" if tokens.fault == "excess" else bad), tokens.fault
        if not self.clean_end or not tokens.complete:
            return bad, "truncated"
        return "ok", None

    def detail(self) -> str | None:
        """The words that go with the error class."""
        if self.error_detail is not None:
            return self.error_detail
        if self.tokens.fault_detail is not None:
            return self.tokens.fault_detail
        if self.outcome()[1] == "truncated":
            return f"{self.tokens.received} of {self.tokens.wanted} tokens arrived"
        return None


def clip(text: str) -> str:
    """One line of at most 300 printable characters, fit for a table."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= _DETAIL_CHARACTERS else line[: _DETAIL_CHARACTERS - 1] + "…"
