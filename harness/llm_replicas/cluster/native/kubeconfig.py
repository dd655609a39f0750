"""Kubeconfig files for the cluster's parts and its owner."""

import base64
import json
from pathlib import Path

from llm_replicas.cluster.native.certs import Credential, write_private


def write_kubeconfig(path: Path, cluster: str, server: str, authority: bytes, user: Credential) -> Path:
    """Write a kubeconfig with one context, named like the cluster; returns its path."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": cluster, "cluster": {"server": server, "certificate-authority-data": _base64(authority)}}
        ],
        "users": [
            {
                "name": cluster,
                "user": {
                    "client-certificate-data": _base64(user.certificate),
                    "client-key-data": _base64(user.key),
                },
            }
        ],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "current-context": cluster,
    }
    write_private(path, json.dumps(content, indent=1).encode())
    return path


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
