"""Server-sent events, parsed from bytes as they arrive.

Lines are split on bytes and decoded afterwards, so a chunk border inside a UTF-8 character, inside a CRLF or
inside a field name changes nothing. The rules are those of the WHATWG HTML standard, section "Server-sent
events".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llm_replicas.errors import InvalidRun

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One dispatched event: its data, its type (``message`` unless named) and the last id seen."""

    data: str
    event: str = "message"
    id: str = ""


class SseParser:
    """Feed it bytes, get the events they complete; an event without its blank line is never dispatched."""

    def __init__(self) -> None:
        self._buffer = b""
        self._first_line = True
        self._skip_newline = False
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    @property
    def pending(self) -> bool:
        """Whether bytes of an event have arrived whose end has not."""
        return bool(self._buffer or self._data or self._event)

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take the next bytes of the stream and return the events that they complete, in order."""
        if self._skip_newline and chunk:
            # The chunk before ended in CR, which ended its line; an LF that follows belongs to that CR.
            chunk = chunk.removeprefix(b"\n")
            self._skip_newline = False
        text = self._buffer + chunk if self._buffer else chunk
        events: list[SseEvent] = []
        start = 0
        for end in _LINE_END.finditer(text):
            self._line(text[start : end.start()], events)
            start = end.end()
        self._buffer = text[start:]
        if start and start == len(text) and text.endswith(b"\r"):
            self._skip_newline = True
        if len(self._buffer) > MAX_LINE_BYTES:
            raise InvalidRun(
                f"an event line is longer than {MAX_LINE_BYTES} bytes: this is no event stream; check the URL"
            )
        return events

    def _line(self, line: bytes, events: list[SseEvent]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        if not name:
            return  # a comment, often sent as a keep-alive
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")

    def _dispatch(self, events: list[SseEvent]) -> None:
        if self._data:
            events.append(SseEvent("\n".join(self._data), self._event or "message", self._id))
        self._data = []
        self._event = ""
