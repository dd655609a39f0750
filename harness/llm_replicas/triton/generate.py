"""Triton's generate extension over HTTP: `generate` (one answer) and `generate_stream` (server-sent events).

Nothing is retried here: a request that fails is a fact about the system, also when it rode on a kept
connection that the other side had just closed.
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

from llm_replicas.errors import InvalidRun
from llm_replicas.triton.connections import Connection, ConnectionPool
from llm_replicas.triton.exchange import Exchange, Limits, clip
from llm_replicas.triton.http1 import HttpError, ResponseParser
from llm_replicas.triton.sse import SseParser

_RECEIVE_BYTES = 65536


class GenerateClient:
    """Sends calls to one endpoint and fills their exchanges. Blocks; run each in a greenlet or thread."""

    def __init__(self, pool: ConnectionPool, limits: Limits) -> None:
        self._pool = pool
        self._limits = limits

    def stream(self, exchange: Exchange) -> None:
        """Ask ``generate_stream`` and follow its events to their end."""
        self._run(exchange, "generate_stream", _StreamBody(exchange))

    def unary(self, exchange: Exchange) -> None:
        """Ask ``generate`` and take its one answer."""
        self._run(exchange, "generate", _UnaryBody(exchange))

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.close()

    def _run(self, exchange: Exchange, verb: str, body: _StreamBody | _UnaryBody) -> None:
        exchange.sent = time.monotonic()
        connection: Connection | None = None
        reusable = False
        try:
            connection = self._connect(exchange)
            if connection is not None:
                exchange.abort_with(connection.abort)
                reusable = self._converse(exchange, connection, verb, body)
        finally:
            exchange.abort_with(None)
            exchange.finish()
            if connection is not None:
                connection.used += 1
                if reusable and exchange.cancelled is None:
                    self._pool.give_back(connection)
                else:
                    connection.close()

    def _connect(self, exchange: Exchange) -> Connection | None:
        connection = self._pool.take_idle()
        if connection is None:
            try:
                connection = self._pool.open(self._limits.connect)
            except OSError as error:
                exchange.fail("connect", error)
                return None
        exchange.connection_id = connection.id
        exchange.connection_reused = connection.used > 0
        return connection

    def _converse(
        self, exchange: Exchange, connection: Connection, verb: str, body: _StreamBody | _UnaryBody
    ) -> bool:
        assert exchange.sent is not None  # noqa: S101 - set by the caller
        deadline = exchange.sent + self._limits.deadline
        quiet_limit = self._limits.deadline if body.unary else self._limits.first_byte
        sock = connection.socket
        response = ResponseParser()
        last = exchange.sent
        try:
            sock.settimeout(self._limits.connect)
            sock.sendall(self._request(exchange, verb, stream=not body.unary))
            while not response.complete:
                wait = min(last + quiet_limit, deadline) - time.monotonic()
                if wait <= 0:
                    raise TimeoutError
                sock.settimeout(wait)
                data = sock.recv(_RECEIVE_BYTES)
                moment = time.monotonic()
                exchange.bytes += len(data)
                if not data:
                    if not response.eof():
                        exchange.fail("reset" if not response.has_head else "closed", _closed(response))
                    break
                piece = response.feed(data)
                if response.has_head and exchange.status is None:
                    exchange.status = response.status
                    exchange.on_headers(response.headers)
                    if not body.unary:
                        quiet_limit = self._limits.stall
                if piece:
                    last = moment
                    if response.status == 200:
                        body.feed(moment, piece)
                    else:
                        body.refusal += piece
        except TimeoutError:
            self._blame_timeout(exchange, response, deadline)
        except (HttpError, InvalidRun) as error:
            exchange.fail("protocol", error)
        except OSError as error:
            exchange.fail("reset", error)
        if response.has_head and response.status != 200:
            exchange.fail(f"http_{response.status}", _error_text(body.refusal))
        elif response.complete:
            body.end(time.monotonic())
            exchange.clean_end = exchange.error_class is None
        return response.reusable

    def _blame_timeout(self, exchange: Exchange, response: ResponseParser, deadline: float) -> None:
        if time.monotonic() >= deadline:
            exchange.fail("timeout", f"not complete within {self._limits.deadline:g} s")
        elif response.has_head:
            exchange.fail("stall", f"silent for {self._limits.stall:g} s on an open stream")
        else:
            exchange.fail("timeout", f"no answer within {self._limits.first_byte:g} s")

    def _request(self, exchange: Exchange, verb: str, *, stream: bool) -> bytes:
        call = exchange.call
        payload = json.dumps(
            {
                "id": call.request_id,
                "text_input": call.prompt,
                "max_tokens": call.max_tokens,
                "stream": stream,
            }
        ).encode()
        accept = "text/event-stream" if stream else "application/json"
        head = (
            f"POST {self._pool.path}/v2/models/{quote(call.model, safe='')}/{verb} HTTP/1.1\r\n"
            f"Host: {self._pool.authority}\r\n"
            f"Content-Type: application/json\r\nAccept: {accept}\r\n"
            f"Content-Length: {len(payload)}\r\nx-request-id: {call.request_id}\r\n"
            "User-Agent: llm-replicas\r\n\r\n"
        )
        return head.encode("latin-1") + payload


class _StreamBody:
    """Reads events out of a stream's body."""

    unary = False

    def __init__(self, exchange: Exchange) -> None:
        self.refusal = b""
        self._exchange = exchange
        self._parser = SseParser()

    def feed(self, moment: float, piece: bytes) -> None:
        """Take body bytes that arrived at ``moment``."""
        for event in self._parser.feed(piece):
            if event.data == "[DONE]":
                continue  # some front ends add OpenAI's end mark; it carries no token
            _take_answer(self._exchange, moment, event.data)

    def end(self, moment: float) -> None:
        """The body has ended; half an event at its end means that something is missing."""
        if self._parser.pending:
            self._exchange.fail("truncated", "the stream ended inside an event")


class _UnaryBody:
    """Keeps the one answer of a unary call until it is whole."""

    unary = True

    def __init__(self, exchange: Exchange) -> None:
        self.refusal = b""
        self._exchange = exchange
        self._text = b""

    def feed(self, moment: float, piece: bytes) -> None:
        """Take body bytes."""
        self._text += piece

    def end(self, moment: float) -> None:
        """The body has ended: read it."""
        _take_answer(self._exchange, moment, self._text.decode("utf-8", "replace"))


def _take_answer(exchange: Exchange, moment: float, data: str) -> None:
    try:
        answer: Any = json.loads(data)
    except json.JSONDecodeError:
        exchange.fail("protocol", f"not JSON: {data[:80]!r}")
        return
    if not isinstance(answer, dict):
        exchange.fail("protocol", f"not a JSON object: {data[:80]!r}")
        return
    if "error" in answer:
        exchange.fail("error_event", answer["error"])
        return
    reason = answer.get("finish_reason")
    if isinstance(reason, str) and reason:
        exchange.finish_reason = reason
    text = answer.get("text_output", "")
    # TRT-LLM's models answer with a list when they return several sequences; ours asks for one.
    exchange.on_event(moment, text if isinstance(text, str) else " ".join(map(str, text)))


def _error_text(body: bytes) -> str:
    # Triton refuses a stream with a plain error status whose body is dressed as an event all the same.
    text = body[:2000].decode("utf-8", "replace").removeprefix("data:").strip()
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return clip(text)
    return clip(str(answer["error"] if isinstance(answer, dict) and "error" in answer else text))


def _closed(response: ResponseParser) -> str:
    where = "inside the body" if response.has_head else "before any answer"
    return f"the connection was closed {where}"
