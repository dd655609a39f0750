"""How each protocol of a plan's mix is spoken."""

from __future__ import annotations

from collections.abc import Callable

from llm_replicas.errors import UsageError
from llm_replicas.load.dispatcher import Send
from llm_replicas.load.plan import Plan
from llm_replicas.triton.connections import ConnectionPool
from llm_replicas.triton.exchange import Limits
from llm_replicas.triton.generate import GenerateClient


class Clients:
    """The senders that a plan needs, sharing connections where the protocol is the same."""

    def __init__(self, plan: Plan, http_url: str, grpc_url: str | None) -> None:
        wanted = {protocol for protocol, share in plan.workload.mix.items() if share > 0}
        settings = plan.client
        limits = Limits(
            settings.connect_seconds,
            settings.first_byte_seconds,
            settings.stall_seconds,
            settings.deadline_seconds,
        )
        self.senders: dict[str, Send] = {}
        self._closers: list[Callable[[], None]] = []
        if wanted & {"generate", "generate_stream"}:
            http = GenerateClient(ConnectionPool(http_url, settings.connections), limits)
            self.senders |= {"generate": http.unary, "generate_stream": http.stream}
            self._closers.append(http.close)
        if "grpc_stream" in wanted:
            if not grpc_url:
                raise UsageError(
                    "the plan's mix has grpc_stream but no gRPC address was given; "
                    "give --llm-grpc-host HOST:PORT (LLM_GRPC_HOST) or take grpc_stream out of workload.mix"
                )
            # Loading gRPC starts threads; a plan without it is spared them.
            from llm_replicas.triton.grpc_stream import GrpcStreamClient, prepare_for_gevent  # noqa: PLC0415

            prepare_for_gevent()
            grpc = GrpcStreamClient(grpc_url, limits, settings.connections)
            self.senders["grpc_stream"] = grpc.stream
            self._closers.append(grpc.close)

    def close(self) -> None:
        """Close the kept connections."""
        for close in self._closers:
            close()
