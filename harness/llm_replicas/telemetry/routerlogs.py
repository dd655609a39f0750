"""Follows the access logs of all routers of a release into one file, while routers come and go."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path

import urllib3.exceptions
from kubernetes import client, watch

from llm_replicas.cluster.client import FROM_CACHE
from llm_replicas.telemetry.journal import Journal


class RouterLogs:
    """Copies each access-log line of each router pod to ``router-access.jsonl``.

    A line is one JSON object as the chart's router writes it; lines that are no JSON object (Envoy's own
    messages) are left out. Logs are followed from the start of the run, so that lines of a router which a
    rollout removes are kept.
    """

    def __init__(self, api: client.ApiClient, namespace: str, selector: str, path: Path) -> None:
        self._api = api
        self._namespace = namespace
        self._selector = selector
        self._journal = Journal(path)
        self._stop = threading.Event()
        self._followed: set[str] = set()
        self._responses: dict[str, urllib3.BaseHTTPResponse] = {}
        self._threads: list[threading.Thread] = []
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="router-logs")

    def __enter__(self) -> RouterLogs:
        self._watcher.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for response in list(self._responses.values()):
            with contextlib.suppress(RuntimeError, ValueError):  # its log has ended by itself
                response.shutdown()
        for thread in self._threads:
            thread.join(timeout=2)
        self._journal.close()

    def _watch(self) -> None:
        core = client.CoreV1Api(self._api)
        while not self._stop.is_set():
            try:
                for event in watch.Watch().stream(
                    core.list_namespaced_pod,
                    self._namespace,
                    label_selector=self._selector,
                    resource_version=FROM_CACHE,
                    timeout_seconds=5,
                ):
                    pod = event["object"]
                    if pod.status.phase == "Running" and pod.metadata.name not in self._followed:
                        self._followed.add(pod.metadata.name)
                        thread = threading.Thread(target=self._follow, args=(pod.metadata.name,), daemon=True)
                        self._threads.append(thread)
                        thread.start()
                    if self._stop.is_set():
                        return
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
                self._stop.wait(0.5)  # the API server may be away for a moment; a fault may be the cause

    def _follow(self, pod: str) -> None:
        core = client.CoreV1Api(self._api)
        since, last = 1, time.time()
        while not self._stop.is_set():
            try:
                response = core.read_namespaced_pod_log(
                    pod,
                    self._namespace,
                    container="envoy",
                    follow=True,
                    since_seconds=since,
                    _preload_content=False,
                )
                self._responses[pod] = response
                rest = b""
                for chunk in response.stream(amt=None):
                    lines = (rest + chunk).split(b"\n")
                    rest = lines.pop()
                    for line in lines:
                        self._keep(line, pod)
                    last = time.time()
                if self._gone(pod):
                    return
            except client.ApiException as error:
                if error.status == 404:
                    return
                self._stop.wait(0.2)
            except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError):
                if self._stop.is_set():
                    return
                self._stop.wait(0.2)
            # From the last line on, with a little overlap: a line that is there twice is one request all the same.
            since = int(time.time() - last) + 2

    def _gone(self, pod: str) -> bool:
        """Whether the pod is gone; a log also ends when its container is restarted or a proxy closes the stream."""
        try:
            found = client.CoreV1Api(self._api).read_namespaced_pod(pod, self._namespace, _request_timeout=5)
        except client.ApiException as error:
            return bool(error.status == 404)
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        self._stop.wait(0.2)
        return found.status.phase in {"Succeeded", "Failed"}

    def _keep(self, line: bytes, pod: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict):
            self._journal.write({**row, "pod": pod, "seen_wall": time.time()})
