"""Triton's side of the stand-in: tensors in, tensors out. Everything else is in `standin_engine`."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from standin_engine import config, forward
from standin_engine.engine import Load
from standin_engine.scheduler import Broken, QueueFull, Rejected
from standin_engine.service import Service


class TritonSink:
    """Sends one request's answer through its response sender."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        # tritonserver dies (signal 11 in ResponseFactoryIsCancelled) when it is asked about a request whose
        # final response it has just been given, so asking and answering take turns and nothing is asked
        # afterwards.
        self._turn = threading.Lock()
        self._ended = False

    def send(self, text: str, final: bool) -> None:
        """One response; the last one carries the final flag, which saves an empty message."""
        tensor = pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))
        self._answer(pb_utils.InferenceResponse(output_tensors=[tensor]), final)

    def fail(self, message: str, code: int | None = None) -> None:
        """An error as the last response."""
        error = pb_utils.TritonError(message) if code is None else pb_utils.TritonError(message, code)
        self._answer(pb_utils.InferenceResponse(error=error), True)

    def is_cancelled(self) -> bool:
        """Whether Triton saw the client go away; an answer that has ended is not cancelled any more."""
        with self._turn:
            return not self._ended and bool(self._sender.is_cancelled())

    def _answer(self, response: Any, final: bool) -> None:
        with self._turn:
            if self._ended:
                return
            self._ended = final
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)


class LoadMetrics:
    """The engine's load under the names that TensorRT-LLM's backend uses."""

    def __init__(self, model: str, version: str) -> None:
        self._gauges: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        families = {
            ("nv_trt_llm_request_metrics", "TRT LLM request metrics", "request_type"): (
                "waiting",
                "active",
                "scheduled",
                "max",
            ),
            ("nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics", "kv_cache_block_type"): (
                "used",
                "free",
                "max",
                "tokens_per",
                "fraction",
            ),
        }
        # Triton drops a metric whose family was garbage collected.
        self._families = []
        for (name, description, label), values in families.items():
            family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)
            self._families.append(family)
            for value in values:
                labels = {"model": model, "version": version, label: value}
                self._gauges[f"{label}={value}"] = family.Metric(labels=labels)

    def report(self, load: Load) -> None:
        """Set what changed; each set is a message to the server."""
        values = {
            "request_type=waiting": load.waiting,
            "request_type=active": load.active,
            "request_type=scheduled": load.scheduled,
            "request_type=max": load.max_requests,
            "kv_cache_block_type=used": load.kv_used,
            "kv_cache_block_type=free": load.kv_free,
            "kv_cache_block_type=max": load.kv_max,
            "kv_cache_block_type=tokens_per": load.tokens_per_block,
            "kv_cache_block_type=fraction": load.kv_used / load.kv_max,
        }
        for name, value in values.items():
            if self._last.get(name) != value:
                self._last[name] = value
                self._gauges[name].set(value)


class TritonPythonModel:
    """What the Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the engine."""
        path = os.environ.get("STANDIN_CONFIG")
        settings = config.load(Path(path) if path else None, os.environ)
        metrics = LoadMetrics(args["model_name"], args["model_version"])
        self._service = Service(settings, forward.create(settings), metrics.report)
        metrics.report(self._service.load())
        self._service.start()

    def execute(self, requests: list[Any]) -> None:
        """Hand requests to the engine; answers come from its thread."""
        for request in requests:
            sink = TritonSink(request.get_response_sender())
            try:
                prompt = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0]
                max_tokens = pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy()[0]
                stream = pb_utils.get_input_tensor_by_name(request, "stream")
                self._service.submit(
                    prompt.decode(), int(max_tokens), stream is not None and bool(stream.as_numpy()[0]), sink
                )
            except (QueueFull, Broken) as refusal:
                sink.fail(str(refusal), pb_utils.TritonError.UNAVAILABLE)
            except (Rejected, UnicodeDecodeError) as refusal:
                sink.fail(str(refusal), pb_utils.TritonError.INVALID_ARG)

    def finalize(self) -> None:
        """Stop the engine."""
        self._service.stop()
