"""``llm-replicas`` as the tests call it: in a process of its own, with a kubeconfig and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.cluster.release import Release, wait_ready
from llm_replicas.places import chart_folder, helm_binary

ROOT = Path(__file__).parents[2]
STANDIN = ROOT / "charts" / "llm-replicas" / "ci" / "standin-values.yaml"
# A test run in the background of a shell would hand down an ignored SIGINT.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from llm_replicas.cli import main; main()"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        lines = self.out.strip().splitlines()
        assert lines, f"nothing on stdout; exit code {self.code}:\n{self.err}"
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer

    @property
    def run(self) -> Path:
        """The run folder that the command names."""
        return Path(self.answer["run"])

    @property
    def verdict(self) -> dict[str, Any]:
        """The verdict in the run folder, which is the one that was told."""
        verdict: dict[str, Any] = json.loads((self.run / "verdict.json").read_text(encoding="utf-8"))
        assert verdict["verdict"] == self.answer["verdict"]
        return verdict


@dataclass(frozen=True)
class Gate:
    """The gate on an existing cluster, with options that stay the same from call to call."""

    kubeconfig: Path
    namespace: str
    runs: Path
    options: tuple[str, ...] = ()

    def also(self, *options: str) -> Gate:
        """The same with more options."""
        return replace(self, options=self.options + options)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start it."""
        return start(
            *("gate", "--cluster", "existing", "--kubeconfig", str(self.kubeconfig)),
            *("--namespace", self.namespace, "--runs", str(self.runs), "--json", *self.options, *options),
        )

    def __call__(self, *options: str, timeout: float = 150) -> Ended:
        """Run it to its end."""
        return finish(self.start(*options), timeout)

    @property
    def folders(self) -> list[Path]:
        """The run folders, oldest first."""
        return sorted(self.runs.iterdir()) if self.runs.exists() else []


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start ``llm-replicas`` with these arguments."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("harness", ".")),
        "LLM_REPLICAS_HELM": str(helm_binary(lambda _text: None)),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str], timeout: float = 60) -> Ended:
    """Wait for the end of what `start` began."""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s"
        time.sleep(0.05)


def write_plan(path: Path, *, seconds: float, model: str = "ensemble", fault: dict[str, Any] | None = None) -> Path:
    """A plan of one phase at 5 requests a second."""
    phase: dict[str, Any] = {"name": "steady", "rate_per_second": 5.0, "duration_seconds": seconds}
    if fault is not None:
        phase["fault"] = fault
    plan = {
        "name": "tiny",
        "seed": 3,
        "model": model,
        "workload": {"trace": "conv", "prompt_divisor": 10.0, "output_divisor": 16.0},
        "drain_seconds": 20.0,
        "phases": [phase],
    }
    path.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return path


@contextlib.contextmanager
def served(cluster: NativeCluster, namespace: str, *values: Path) -> Iterator[None]:
    """A release `llm` of one replica and one router in a namespace of its own; gone afterwards."""
    core = client.CoreV1Api(cluster.api())
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=namespace, labels=labels)))
    try:
        release = Release(
            name="llm",
            namespace=namespace,
            chart=chart_folder(),
            helm=helm_binary(lambda _text: None),
            kubeconfig=cluster.kubeconfig,
            context=None,
            values=[STANDIN, STANDIN.with_name("single-replica-values.yaml"), *values],
            settings=["fullnameOverride=llm", "router.responseHeaders=true"],
        )
        release.install()
        wait_ready(cluster.api(), namespace, ["llm-replica", "llm-router"], 120)
        yield
    finally:
        core.delete_namespace(namespace, grace_period_seconds=0)
