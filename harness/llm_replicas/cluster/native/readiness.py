"""Waiting for a cluster's parts, each wait with a deadline and an eye on whether the part still lives."""

from __future__ import annotations

import copy
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3.exceptions
from kubernetes import client, watch

from llm_replicas.cluster.native import bootstrap, processes
from llm_replicas.cluster.native.node import Node
from llm_replicas.cluster.native.processes import Process
from llm_replicas.errors import EnvironmentProblem


@dataclass(frozen=True)
class Deadline:
    """By when something must be so; counts from its creation."""

    seconds: float
    until: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline so many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)

    def refuse_late(self, what: str, log: Path) -> None:
        """Raise with the end of a log when the time is over."""
        if time.monotonic() > self.until:
            raise EnvironmentProblem(
                f"{what} after {self.seconds:.0f} s; is the machine overloaded? The end of {log.name}:\n"
                f"{processes.tail(log)}"
            )


def api_server(api: client.ApiClient, running: list[Process], log: Path, deadline: Deadline) -> None:
    """Wait until the API server says that it is ready."""
    configuration = copy.deepcopy(api.configuration)
    configuration.retries = False  # this loop retries, and without a warning for each time
    asking = client.ApiClient(configuration)
    while not _api_ready(asking):
        processes.refuse_dead(running)
        deadline.refuse_late("the API server does not answer", log)
        time.sleep(0.1)  # there is nothing to watch before the API server answers


def runtime(node: Node, deadline: Deadline) -> None:
    """Wait until a node's containerd answers."""
    while not node.runtime_ready():
        node.refuse_dead()
        deadline.refuse_late(f"containerd on {node.name} does not answer", node.log("containerd"))
        time.sleep(0.1)  # containerd's socket appears before it answers, and tells nobody


def nodes(api: client.ApiClient, running: list[Process], members: list[Node], deadline: Deadline) -> None:
    """Wait until all nodes are Ready."""
    wanted = {node.name: node for node in members}
    while missing := sorted(wanted.keys() - bootstrap.ready_nodes(api)):
        processes.refuse_dead(running)
        for node in members:
            node.refuse_dead()
        deadline.refuse_late(f"not Ready: {', '.join(missing)}", wanted[missing[0]].log("kubelet"))
        _wait_for_change(api, lambda: wanted.keys() <= bootstrap.ready_nodes(api))


def _wait_for_change(api: client.ApiClient, enough: Callable[[], bool]) -> None:
    """Follow the nodes until there are enough, or for a second: so long may a daemon's death go unnoticed."""
    events: Any = watch.Watch  # the client's watch has no types
    try:
        for event in events().stream(client.CoreV1Api(api).list_node, timeout_seconds=1):
            if event["type"] == "MODIFIED" and enough():
                return
    except client.ApiException as error:
        # Right after its start the API server's cache may lag behind for a moment.
        if error.status not in (410, 429, 500, 503, 504):
            raise
        time.sleep(0.2)


def answers(url: str, running: Iterable[Process], what: str, log: Path, deadline: Deadline) -> None:
    """Wait until a health endpoint says yes."""
    until(lambda: _says_yes(url), running, f"{what} not ready", log, deadline)


def until(ready: Callable[[], bool], running: Iterable[Process], what: str, log: Path, deadline: Deadline) -> None:
    """Wait until a question that can only be asked is answered with yes."""
    watched = list(running)
    while not ready():
        processes.refuse_dead(watched)
        deadline.refuse_late(what, log)
        time.sleep(0.1)  # health endpoints tell nobody of their own accord


def _api_ready(api: client.ApiClient) -> bool:
    rest: Any = api.rest_client
    try:
        return bool(rest.request("GET", f"{api.configuration.host}/readyz", _request_timeout=2).status == 200)
    except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
        return False


def _says_yes(url: str) -> bool:
    # Straight to the cluster, whatever proxy the caller's environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
