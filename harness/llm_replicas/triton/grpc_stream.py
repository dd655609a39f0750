"""Triton's decoupled streaming over gRPC (`ModelStreamInfer`), one request a stream.

It stands on tritonclient's protocol stubs rather than on `InferenceServerClient.start_stream`, because that
class hides the response headers (which replica answered) and needs a second thread for every stream. The end
of an answer is proved by the final response that `triton_enable_empty_final_response` asks for.

Under gevent, call `prepare_for_gevent` before the first client is made: a channel made earlier hangs.
"""

from __future__ import annotations

import itertools
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from llm_replicas.errors import UsageError
from llm_replicas.triton.connections import Reuse
from llm_replicas.triton.exchange import Exchange, Limits

_WATCH_SECONDS = 0.2

_CHANNEL_OPTIONS = [
    # Without this, channels to the same address share one TCP connection behind our back.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    # A channel that failed is thrown away; the back-off must not outlive the outage in the next one.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_numbers = itertools.count(1)


@cache
def prepare_for_gevent() -> None:
    """Make gRPC's waiting yield to gevent; only after gevent's patching and before any channel."""
    from grpc.experimental.gevent import init_gevent  # noqa: PLC0415 - a process without gevent must not load it

    init_gevent()


class _Channel:
    """One channel with a connection of its own."""

    __slots__ = ("channel", "id", "stub", "used")

    def __init__(self, target: str, *, tls: bool) -> None:
        if tls:
            self.channel = grpc.secure_channel(
                target, grpc.ssl_channel_credentials(), options=_CHANNEL_OPTIONS
            )
        else:
            self.channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.id = f"{os.getpid()}-g{next(_numbers)}"
        self.used = 0


class _Watched:
    """A stream under way, as the watch sees it."""

    __slots__ = ("call", "exchange", "last", "limit")

    def __init__(self, call: Any, exchange: Exchange, limit: float) -> None:
        self.call = call
        self.exchange = exchange
        self.last = time.monotonic()
        self.limit = limit


class GrpcStreamClient:
    """Sends calls to one gRPC endpoint and fills their exchanges; run each in a greenlet or thread."""

    def __init__(self, url: str, limits: Limits, reuse: Reuse = "reuse") -> None:
        parts = urlsplit(url if "//" in url else f"//{url}")
        if parts.scheme not in ("", "http", "https", "grpc", "grpcs") or not parts.hostname or not parts.port:
            raise UsageError(
                f"gRPC address {url!r}: accepted is HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
            )
        self._target = parts.netloc.rpartition("@")[2]
        self._tls = parts.scheme in ("https", "grpcs")
        self._limits = limits
        self._reuse = reuse == "reuse"
        self._idle: deque[_Channel] = deque()
        self._watched: set[_Watched] = set()
        self._watching = False

    def stream(self, exchange: Exchange) -> None:
        """Send one request on a stream of its own and follow the answers to the final one."""
        exchange.sent = time.monotonic()
        channel = self._idle.popleft() if self._idle else _Channel(self._target, tls=self._tls)
        exchange.connection_id = channel.id
        exchange.connection_reused = channel.used > 0
        channel.used += 1
        fine = False
        try:
            fine = self._converse(exchange, channel)
        finally:
            exchange.abort_with(None)
            exchange.finish()
            if fine and self._reuse:
                self._idle.append(channel)
            else:
                channel.channel.close()

    def close(self) -> None:
        """Close the kept channels."""
        self._watching = False
        while self._idle:
            self._idle.popleft().channel.close()

    def _converse(self, exchange: Exchange, channel: _Channel) -> bool:
        call = channel.stub.ModelStreamInfer(
            iter([_request(exchange)]),
            metadata=(("x-request-id", exchange.call.request_id),),
            timeout=self._limits.deadline,
        )
        exchange.abort_with(call.cancel)
        watched = _Watched(call, exchange, self._limits.first_byte)
        self._watch(watched)
        try:
            for response in call:
                watched.last = time.monotonic()
                if exchange.status is None:
                    exchange.status = grpc.StatusCode.OK.value[0]
                    watched.limit = self._limits.stall
                    exchange.on_headers(_as_dict(call.initial_metadata()))
                if self._take(exchange, watched.last, response):
                    break
            else:
                exchange.fail("truncated", "the stream ended without a final response")
            # Read on to the status: breaking off here would look like an abort to the router.
            for _ in call:
                exchange.fail("protocol", "a response came after the final one")
        except grpc.RpcError as error:
            self._blame(exchange, watched, error)
            return False
        finally:
            self._watched.discard(watched)
        return exchange.clean_end

    def _take(self, exchange: Exchange, moment: float, response: Any) -> bool:
        exchange.bytes += response.ByteSize()
        if response.error_message:
            exchange.fail("error_event", response.error_message)
            return True
        answer = response.infer_response
        for tensor, content in zip(answer.outputs, _contents(answer), strict=False):
            text = _text(content)
            if tensor.name == "text_output" and text is not None:
                exchange.on_event(moment, text)
            elif tensor.name == "finish_reason" and text:
                exchange.finish_reason = text
        final = answer.parameters["triton_final_response"].bool_param
        if final:
            exchange.clean_end = exchange.error_class is None
            exchange.end = moment
        return bool(final)

    def _blame(self, exchange: Exchange, watched: _Watched, error: grpc.RpcError) -> None:
        if exchange.clean_end:
            return  # the answer was whole and proved so; how the stream was closed after it is no loss
        exchange.on_headers({**_as_dict(error.trailing_metadata()), **_as_dict(error.initial_metadata())})
        code = error.code()
        exchange.status = code.value[0]
        if exchange.error_class is not None:
            return
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            exchange.fail("timeout", f"not complete within {self._limits.deadline:g} s")
        elif code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in (error.details() or "").lower():
            exchange.fail("connect", error.details())
        else:
            exchange.fail(f"grpc_{code.name.lower()}", error.details())

    def _watch(self, watched: _Watched) -> None:
        self._watched.add(watched)
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch_for_silence, name="grpc-silence", daemon=True).start()

    def _watch_for_silence(self) -> None:
        while self._watching:
            now = time.monotonic()
            for each in list(self._watched):
                if now - each.last > each.limit:
                    if each.exchange.status is None:
                        each.exchange.fail("timeout", f"no answer within {each.limit:g} s")
                    else:
                        each.exchange.fail("stall", f"silent for {each.limit:g} s on an open stream")
                    self._watched.discard(each)
                    each.call.cancel()
            # The silence of an open stream makes no event to wait for.
            time.sleep(_WATCH_SECONDS)


def _request(exchange: Exchange) -> Any:
    call = exchange.call
    request = service_pb2.ModelInferRequest(model_name=call.model, id=call.request_id)
    for name, kind, content in (
        ("text_input", "BYTES", _string(call.prompt)),
        ("max_tokens", "INT32", struct.pack("<i", call.max_tokens)),
        ("stream", "BOOL", b"\x01"),
    ):
        tensor = request.inputs.add()
        tensor.name = name
        tensor.datatype = kind
        tensor.shape.append(1)
        request.raw_input_contents.append(content)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _contents(answer: Any) -> Iterator[bytes]:
    if answer.raw_output_contents:
        yield from answer.raw_output_contents
        return
    for tensor in answer.outputs:
        values = tensor.contents.bytes_contents
        yield _string(values[0]) if values else b""


def _string(value: str | bytes) -> bytes:
    """Triton's wire form of one string: its length in four bytes, then the string."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(data)) + data


def _text(content: bytes) -> str | None:
    """The first string of a tensor in Triton's wire form."""
    if len(content) < 4:
        return None
    (length,) = struct.unpack_from("<I", content)
    return content[4 : 4 + length].decode("utf-8", "replace")


def _as_dict(metadata: Any) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}
