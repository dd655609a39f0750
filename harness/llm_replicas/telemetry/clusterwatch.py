"""Writes pod, endpoint-slice and event changes of one namespace to ``cluster.jsonl`` as they are seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3.exceptions
from kubernetes import client, watch

from llm_replicas.cluster.client import FROM_CACHE
from llm_replicas.telemetry.journal import Journal


class ClusterWatch:
    """Three watches, one journal; each row has ``wall`` (epoch seconds of this machine) and ``kind``."""

    def __init__(self, api: client.ApiClient, namespace: str, path: Path) -> None:
        self._namespace = namespace
        self._journal = Journal(path)
        self._stop = threading.Event()
        core, discovery = client.CoreV1Api(api), client.DiscoveryV1Api(api)
        self._threads = [
            threading.Thread(target=self._follow, args=(source, row), daemon=True, name=f"watch-{row.__name__}")
            for source, row in (
                (core.list_namespaced_pod, _pod_row),
                (discovery.list_namespaced_endpoint_slice, _endpoint_row),
                (core.list_namespaced_event, _event_row),
            )
        ]

    def __enter__(self) -> ClusterWatch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._journal.close()

    def _follow(self, source: Callable[..., Any], row: Callable[[str, Any], dict[str, Any]]) -> None:
        version = FROM_CACHE
        while not self._stop.is_set():
            try:
                for event in watch.Watch().stream(
                    source, self._namespace, resource_version=version, timeout_seconds=30
                ):
                    if self._stop.is_set():
                        return
                    version = event["object"].metadata.resource_version
                    self._journal.write({"wall": time.time(), **row(event["type"], event["object"])})
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
                version = FROM_CACHE
                self._stop.wait(0.5)  # the watch was refused or broke; take it up anew


def _pod_row(change: str, pod: client.V1Pod) -> dict[str, Any]:
    conditions = {c.type: c.status for c in (pod.status.conditions or [])}
    return {
        "kind": "pod",
        "change": change,
        "name": pod.metadata.name,
        "component": (pod.metadata.labels or {}).get("app.kubernetes.io/component"),
        "ip": pod.status.pod_ip,
        "node": pod.spec.node_name,
        "ready": conditions.get("Ready") == "True",
        "terminating": pod.metadata.deletion_timestamp is not None,
        "restarts": sum(s.restart_count for s in (pod.status.container_statuses or [])),
    }


def _endpoint_row(change: str, piece: client.V1EndpointSlice) -> dict[str, Any]:
    return {
        "kind": "endpoints",
        "change": change,
        "service": (piece.metadata.labels or {}).get("kubernetes.io/service-name"),
        "endpoints": [
            {
                "ip": endpoint.addresses[0],
                "ready": bool(endpoint.conditions.ready),
                "serving": bool(endpoint.conditions.serving),
                "terminating": bool(endpoint.conditions.terminating),
            }
            for endpoint in (piece.endpoints or [])
        ],
    }


def _event_row(change: str, event: client.CoreV1Event) -> dict[str, Any]:
    return {
        "kind": "event",
        "change": change,
        "object": f"{event.involved_object.kind}/{event.involved_object.name}",
        "reason": event.reason,
        "message": event.message,
        "type": event.type,
    }
