"""Sees when a replica got SIGTERM: tritonserver says so on its log, which is followed from this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import urllib3.exceptions
from kubernetes import client

from llm_replicas.faults.base import Target

# tritonserver's own words, src/triton_signal.cc.
SIGTERM_LINE = "Signal (15) received"


class SigtermWatcher:
    """Follows the logs of pods until tritonserver reports SIGTERM; ``seen`` maps a pod to epoch seconds."""

    def __init__(self, target: Target, pods: list[str], clock: Callable[[], float]) -> None:
        self.seen: dict[str, float] = {}
        self._target = target
        self._clock = clock
        self._responses: list[urllib3.BaseHTTPResponse] = []
        self._stopped = False
        for pod in pods:
            threading.Thread(target=self._follow, args=(pod,), daemon=True, name=f"sigterm-{pod}").start()

    def _follow(self, pod: str) -> None:
        try:
            response = self._target.core.read_namespaced_pod_log(
                pod, self._target.namespace, container="triton", follow=True, tail_lines=1, _preload_content=False
            )
            self._responses.append(response)
            rest = b""
            for chunk in response.stream(amt=None):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                if any(SIGTERM_LINE.encode() in line for line in lines):
                    self.seen.setdefault(pod, self._clock())
                if self._stopped:
                    return
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError, ValueError):
            # The pod is gone or the connection broke: what was seen stands, what was not is missing by name.
            return

    def stop(self) -> None:
        """End the following; threads leave with their connection."""
        self._stopped = True
        for response in self._responses:
            with contextlib.suppress(RuntimeError, ValueError):  # its log has ended by itself
                response.shutdown()
