"""The one place where a kubeconfig becomes a Kubernetes API client."""

from __future__ import annotations

import contextlib
import json
import ssl
from pathlib import Path
from typing import Any

import urllib3.exceptions
from kubernetes import client, config

from llm_replicas.errors import EnvironmentProblem, UsageError

# Where a watch starts: with all objects as the API server's cache knows them. The client's own way, a list and then
# a watch from that list's version, is refused ("Too large resource version") for as long as nothing of the watched
# kind changes, on API servers whose etcd does not announce its progress (Debian 12's 3.4.23).
FROM_CACHE = "0"


def api_client(kubeconfig: Path | None, context: str | None = None) -> client.ApiClient:
    """Return a client for ``context`` of ``kubeconfig`` (the current context when none is named).

    Raises:
        UsageError: the file or the context does not exist; the message lists the contexts there are.
    """
    path = str(kubeconfig) if kubeconfig else None
    try:
        contexts, current = config.list_kube_config_contexts(config_file=path)
    except config.ConfigException as error:
        raise UsageError(
            f"kubeconfig {path or '(default)'}: {error}; give a readable file with --kubeconfig"
        ) from error
    names = [entry["name"] for entry in contexts]
    wanted = context or (current or {}).get("name")
    if wanted not in names:
        raise UsageError(
            f"context {wanted!r} is not in {path or 'the default kubeconfig'}; "
            f"accepted: {', '.join(names) or 'none'}; choose one with --context"
        )
    return config.new_client_from_config(config_file=path, context=wanted)


def explain(error: Exception, doing: str) -> EnvironmentProblem:
    """Turn an API error into one message that says what was being done, what came back, what to do next."""
    if isinstance(error, client.ApiException):
        reason = error.reason
        with contextlib.suppress(TypeError, ValueError):  # some proxies answer in HTML
            reason = json.loads(error.body or "{}").get("message", reason)
        hint = {
            401: "the credentials are missing or expired: renew the token in the kubeconfig",
            403: "the account lacks a right: apply ci/existing/gate-role.yaml for it",
            404: "check --namespace and --release",
            409: "another change is under way: wait for it, or look at it with helm status",
        }.get(error.status, "look at the object with kubectl describe")
        return EnvironmentProblem(f"{doing}: the API server answered {error.status} ({reason}); {hint}")
    if isinstance(error, (urllib3.exceptions.HTTPError, ssl.SSLError, OSError)):
        return EnvironmentProblem(
            f"{doing}: the cluster cannot be reached ({error}); is it up, and is --context the right one?"
        )
    return EnvironmentProblem(f"{doing}: {error}")


def reachable(api: client.ApiClient) -> dict[str, Any]:
    """Return the API server's version, or raise what `explain` makes of the failure."""
    try:
        version: dict[str, Any] = client.VersionApi(api).get_code(_request_timeout=10).to_dict()
    except Exception as error:
        raise explain(error, "asking the API server for its version") from error
    return version
