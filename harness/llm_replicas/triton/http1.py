"""One HTTP/1.1 response, parsed from bytes as they arrive; no socket in here.

Ordinary clients hide two things that a load generator needs: the moment at which each piece of the body
arrived, and whether the body ended the way its framing says (last chunk, or all of Content-Length) or the
connection just closed.
"""

from __future__ import annotations

from enum import Enum

MAX_HEAD_BYTES = 64 * 1024
_HEX = frozenset(b"0123456789abcdefABCDEF")


class HttpError(Exception):
    """The bytes are not an HTTP/1.1 response."""


class _State(Enum):
    HEAD = "head"
    LENGTH = "length"
    CHUNK_SIZE = "chunk size"
    CHUNK_DATA = "chunk data"
    CHUNK_END = "chunk end"
    TRAILERS = "trailers"
    UNTIL_CLOSE = "until close"
    DONE = "done"


class ResponseParser:
    """Feed it bytes; it returns body bytes and knows status, headers and whether the end was clean."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._state = _State.HEAD
        self._buffer = b""
        self._left = 0
        self._keep_alive = True

    @property
    def has_head(self) -> bool:
        """Whether status and headers are known."""
        return self._state is not _State.HEAD

    @property
    def complete(self) -> bool:
        """Whether the body has ended as its framing promised."""
        return self._state is _State.DONE

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request: clean end, nothing left over, no ``close``."""
        return self.complete and self._keep_alive and not self._buffer

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection and return the body bytes that they contain."""
        self._buffer += data
        body: list[bytes] = []
        while self._step(body):
            pass
        return b"".join(body)

    def eof(self) -> bool:
        """The connection was closed; returns whether that was a proper end of the body."""
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.DONE
            self._keep_alive = False
        return self.complete

    def _step(self, body: list[bytes]) -> bool:
        match self._state:
            case _State.HEAD:
                return self._head()
            case _State.LENGTH | _State.CHUNK_DATA:
                piece = self._buffer[: self._left]
                if not piece:
                    return False
                self._buffer = self._buffer[len(piece) :]
                self._left -= len(piece)
                body.append(piece)
                if not self._left:
                    self._state = _State.DONE if self._state is _State.LENGTH else _State.CHUNK_END
                return bool(self._buffer)
            case _State.CHUNK_SIZE:
                line = self._take_line()
                if line is None:
                    return False
                digits = line.partition(b";")[0].strip()
                if not digits or not _HEX.issuperset(digits) or len(digits) > 16:
                    raise HttpError(f"chunk size is not hexadecimal: {line[:40]!r}")
                self._left = int(digits, 16)
                self._state = _State.CHUNK_DATA if self._left else _State.TRAILERS
                return True
            case _State.CHUNK_END:
                line = self._take_line()
                if line is None:
                    return False
                if line:
                    raise HttpError(f"chunk is longer than it said: {line[:40]!r}")
                self._state = _State.CHUNK_SIZE
                return True
            case _State.TRAILERS:
                line = self._take_line()
                if line is None:
                    return False
                if not line:
                    self._state = _State.DONE
                return bool(line)
            case _State.UNTIL_CLOSE:
                if self._buffer:
                    body.append(self._buffer)
                    self._buffer = b""
                return False
            case _State.DONE:
                return False

    def _take_line(self) -> bytes | None:
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise HttpError(f"a line of the framing is longer than {MAX_HEAD_BYTES} bytes")
            return None
        self._buffer = rest
        return line

    def _head(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise HttpError(f"the response head is longer than {MAX_HEAD_BYTES} bytes")
            if self._buffer and not b"HTTP/1.".startswith(self._buffer[:7]):
                raise HttpError(f"not an HTTP/1 response: {self._buffer[:40]!r}")
            return False
        lines = head.split(b"\r\n")
        version, _, tail = lines[0].partition(b" ")
        code = tail[:3]
        if not version.startswith(b"HTTP/1.") or len(code) != 3 or not code.isdigit():
            raise HttpError(f"not an HTTP/1 status line: {lines[0][:80]!r}")
        self._buffer = rest
        self.status = int(code)
        self.headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon:
                raise HttpError(f"not a header: {line[:80]!r}")
            self.headers[name.strip().decode("latin-1").lower()] = value.strip().decode("latin-1")
        if 100 <= self.status < 200:
            return True  # an interim response; the real one follows
        self._frame(version)
        return True

    def _frame(self, version: bytes) -> None:
        connection = self.headers.get("connection", "").lower()
        self._keep_alive = "close" not in connection and (
            version != b"HTTP/1.0" or "keep-alive" in connection
        )
        if self.status in (204, 304):
            self._state = _State.DONE
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = _State.CHUNK_SIZE
        elif "content-length" in self.headers:
            length = self.headers["content-length"]
            if not length.isdigit():
                raise HttpError(f"Content-Length is not a number: {length[:40]!r}")
            self._left = int(length)
            self._state = _State.LENGTH if self._left else _State.DONE
        else:
            self._state = _State.UNTIL_CLOSE
