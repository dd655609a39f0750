"""kubectl as the tests call it: what it says comes back, what it refuses fails the test."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from llm_replicas.cluster.native import NativeCluster

Kubectl = Callable[..., str]


def kubectl_for(cluster: NativeCluster, namespace: str, tools_folder: Path) -> Kubectl:
    """Return a function that runs kubectl in a namespace of a cluster."""

    def run(*arguments: str, stdin: str | None = None) -> str:
        command = [str(tools_folder / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
        done = subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    return run
