"""A small server that speaks Triton's generate extension and its gRPC stream, and misbehaves on request.

Run as a process of its own: `python fake_triton.py '{"seconds_per_event": 0.01, "behaviours": {"<request
id>": "cut"}}'`. It prints its two ports as one JSON line when it is ready. Behaviours are given by request
id, so a test knows exactly which outcome each request must have.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


@dataclass
class Settings:
    seconds_per_event: float = 0.005
    tokens_per_event: int = 3
    first_event_seconds: float = 0.0
    freeze_at: float = -1.0
    freeze_for: float = 0.0
    grpc: bool = True
    close_connections: bool = False
    behaviours: dict[str, str] = field(default_factory=dict)


class Clock:
    """Counts from the first request; while frozen nothing moves, as with a stopped process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._start: float | None = None

    def pause(self, seconds: float) -> float:
        """How long to sleep now for ``seconds`` of work."""
        now = time.monotonic()
        if self._start is None:
            self._start = now
        begin = self._start + self._settings.freeze_at
        end = begin + self._settings.freeze_for
        if self._settings.freeze_at >= 0 and now < end and now + seconds > begin:
            return seconds + end - max(now, begin)
        return seconds


def texts(behaviour: str, tokens: int, per_event: int) -> list[str]:
    """The texts of the events, after what the behaviour does to them."""
    numbers = list(range(tokens))
    half = max(1, tokens // 2)
    if behaviour == "truncated":
        numbers = numbers[: tokens - 1]
    elif behaviour == "duplicated":
        numbers = numbers[:half] + numbers[half - 1 :]
    elif behaviour == "gap":
        numbers = numbers[:half] + numbers[half + 1 :]
    elif behaviour == "excess":
        numbers = [*numbers, tokens]
    groups = [numbers[at : at + per_event] for at in range(0, len(numbers), per_event)]
    return ["".join(f" t{number}" for number in group) for group in groups]


class HttpServer:
    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        stream = lines[0].split()[1].endswith("generate_stream")
        request_id = headers["x-request-id"]
        assert request_id == body["id"]
        behaviour = self._settings.behaviours.get(request_id, "ok")
        await asyncio.sleep(self._clock.pause(self._settings.first_event_seconds))
        if behaviour == "hangup":
            return False
        if behaviour == "busy":
            self._plain(writer, 503, {"error": "queue is full: 64 requests wait"})
            await writer.drain()
            return True
        events = texts(behaviour, body["max_tokens"], self._settings.tokens_per_event)
        if not stream:
            await asyncio.sleep(self._clock.pause(self._settings.seconds_per_event * len(events)))
            self._plain(writer, 200, {"model_name": "ensemble", "text_output": "".join(events)})
            await writer.drain()
            return True
        return await self._stream(writer, behaviour, events)

    async def _stream(self, writer: asyncio.StreamWriter, behaviour: str, events: list[str]) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
            b"x-llm-replica: 10.0.0.7:8000\r\nx-llm-router: router-a\r\nx-llm-attempts: 1\r\n"
            + (b"Connection: close\r\n" if self._settings.close_connections else b"")
            + b"\r\n"
        )
        half = max(1, len(events) // 2)
        for number, text in enumerate(events):
            if behaviour == "error_first" or (behaviour == "error_event" and number == half):
                self._event(writer, {"error": "the model failed"})
                break
            if behaviour in ("cut", "reset") and number == half:
                await writer.drain()
                if behaviour == "reset":
                    writer.transport.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                return False
            if behaviour == "stall" and number == half:
                await asyncio.sleep(3600)
            await asyncio.sleep(self._clock.pause(self._settings.seconds_per_event * (5 if behaviour == "slow" else 1)))
            self._event(writer, {"model_name": "ensemble", "model_version": "1", "text_output": text})
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not self._settings.close_connections

    def _event(self, writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
        payload = f"data: {json.dumps(data)}\n\n".encode()
        writer.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")

    def _plain(self, writer: asyncio.StreamWriter, status: int, data: dict[str, Any]) -> None:
        payload = json.dumps(data).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)


class GrpcServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        context.send_initial_metadata((("x-llm-replica", "10.0.0.8:8001"), ("x-llm-attempts", "1")))
        for request in requests:
            assert request.parameters["triton_enable_empty_final_response"].bool_param
            assert dict(context.invocation_metadata())["x-request-id"] == request.id
            contents = dict(zip((each.name for each in request.inputs), request.raw_input_contents, strict=True))
            yield from self._answer(request.id, struct.unpack("<i", contents["max_tokens"])[0], context)

    def _answer(self, request_id: str, tokens: int, context: Any) -> Iterator[Any]:
        behaviour = self._settings.behaviours.get(request_id, "ok")
        if behaviour == "busy":
            context.abort(grpc.StatusCode.UNAVAILABLE, "queue is full")
        events = texts(behaviour, tokens, self._settings.tokens_per_event)
        half = max(1, len(events) // 2)
        for number, text in enumerate(events):
            if behaviour == "error_first" or (behaviour == "error_event" and number == half):
                yield service_pb2.ModelStreamInferResponse(error_message="the model failed")
                return
            if behaviour in ("cut", "reset") and number == half:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if behaviour == "stall" and number == half:
                while context.is_active():
                    time.sleep(0.05)
                return
            time.sleep(self._clock.pause(self._settings.seconds_per_event))
            yield self._response(text, final=False)
        if behaviour != "unended":
            yield self._response(None, final=True)

    def _response(self, text: str | None, *, final: bool) -> Any:
        response = service_pb2.ModelStreamInferResponse()
        answer = response.infer_response
        answer.model_name = "ensemble"
        answer.parameters["triton_final_response"].bool_param = final
        if text is not None:
            tensor = answer.outputs.add()
            tensor.name, tensor.datatype = "text_output", "BYTES"
            tensor.shape.append(1)
            data = text.encode()
            answer.raw_output_contents.append(struct.pack("<I", len(data)) + data)
        return response


async def main(settings: Settings) -> None:
    clock = Clock(settings)
    http = HttpServer(settings, clock)
    server = await asyncio.start_server(http.serve, "127.0.0.1", 0, backlog=1024)
    grpc_port = 0
    if settings.grpc:
        grpc_server = grpc.server(ThreadPoolExecutor(max_workers=64))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcServer(settings, clock), grpc_server)
        grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
        grpc_server.start()
    print(json.dumps({"http": server.sockets[0].getsockname()[1], "grpc": grpc_port}), flush=True)
    # The test that started this process holds its standard input; an end of it means that the test is gone.
    threading.Thread(target=lambda: (sys.stdin.read(), server.get_loop().call_soon_threadsafe(server.close))).start()
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(Settings(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})))
