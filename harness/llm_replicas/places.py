"""Where a run takes place: finds the chart, the tools and the images, and makes the cluster of the wanted kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from llm_replicas.cluster.base import Cluster
from llm_replicas.cluster.cache import cache_dir
from llm_replicas.cluster.checkout import checkout
from llm_replicas.cluster.client import api_client, reachable
from llm_replicas.cluster.existing import ExistingCluster
from llm_replicas.cluster.images import build_image
from llm_replicas.cluster.kind import KindCluster
from llm_replicas.cluster.progress import Step
from llm_replicas.cluster.release import Release, fullname_of
from llm_replicas.cluster.tools import bin_dir, bundle
from llm_replicas.errors import EnvironmentProblem, UsageError
from llm_replicas.gate import Deployment
from llm_replicas.invocation import command_name

Say = Callable[[str], None]

# What the gate's own cluster is made of; Helm 3 and the checkers are built by the tests that use them.
GATE_FAMILIES = ("kubernetes", "containerd", "cni", "coredns", "helm")
GATE_IMAGES = ("standin", "router")
# Given to the nodes in turn, so that the spread over zones is real.
ZONES = ("zone-a", "zone-b", "zone-c")
STANDIN_VALUES = Path("ci/standin-values.yaml")


def chart_folder() -> Path:
    """The chart beside this package, or the one that LLM_REPLICAS_CHART names."""
    given = os.environ.get("LLM_REPLICAS_CHART")
    folder = Path(given) if given else checkout() / "charts" / "llm-replicas"
    if not (folder / "Chart.yaml").is_file():
        raise UsageError(f"no chart at {folder}; point LLM_REPLICAS_CHART at charts/llm-replicas of a clone")
    return folder


def build_tools(say: Say) -> Path:
    """Build what is missing of the native cluster's tools; one folder of binaries."""
    given = os.environ.get("LLM_REPLICAS_BIN")
    if given:
        return Path(given)
    return bin_dir(GATE_FAMILIES, on_progress=_progress(say))


def build_images(say: Say) -> list[Path]:
    """Build what is missing of the images that the gate loads into its cluster."""
    return [build_image(name, on_progress=_progress(say)) for name in GATE_IMAGES]


def bundle_tools(out: Path, say: Say) -> None:
    """Pack the tools for a host without registries."""
    images = {name: build_image(name, on_progress=_progress(say)) for name in (*GATE_IMAGES, "pause")}
    bundle(out, GATE_FAMILIES, on_progress=_progress(say), images=images)
    say(f"packed {out}")


def helm_binary(say: Say) -> Path:
    """The Helm that this project pins, or the one on PATH when no tools can be built here."""
    given = os.environ.get("LLM_REPLICAS_HELM")
    if given:
        return Path(given)
    try:
        return bin_dir(("helm",), on_progress=_progress(say)) / "helm"
    except EnvironmentProblem:
        found = shutil.which("helm")
        if found is None:
            raise
        return Path(found)


def make_cluster(
    kind: str,
    *,
    name: str,
    nodes: int,
    say: Say,
    build: bool = True,
    kubeconfig: Path | None = None,
    context: str | None = None,
    url: str | None = None,
    allow_node_faults: bool = False,
) -> Cluster:
    """The cluster of the wanted kind; nothing is started yet."""
    if kind == "existing":
        return ExistingCluster(
            kubeconfig=kubeconfig, context=context, url=url, allow_node_faults=allow_node_faults
        )
    if kind == "kind":
        return KindCluster(name, nodes=nodes)
    # Only a native cluster needs the native provider: a run elsewhere shall work without a line of it.
    from llm_replicas.cluster.native import NativeCluster  # noqa: PLC0415

    folder = build_tools(say) if build else cache_dir()
    pause = build_image("pause", on_progress=_progress(say)) if build else None
    return NativeCluster(name, bin_dir=folder, nodes=nodes, zones=ZONES, pause_archive=pause, say=say)


@dataclass
class Place:
    """The cluster of one gate as a context: up on the way in, down on the way out unless it is to be kept."""

    kind: str
    name: str
    nodes: int
    kubeconfig: Path | None
    context: str | None
    namespace: str
    release: str
    values: list[Path]
    settings: list[str]
    stand_in: bool
    url: str | None
    grpc_url: str | None
    allow_node_faults: bool
    keep: bool
    say: Say
    _cluster: Cluster | None = field(default=None, init=False)

    def __enter__(self) -> Place:
        for path in self.values:
            if not path.is_file():
                raise UsageError(f"--values {path}: no such file")
        self._cluster = make_cluster(
            self.kind,
            name=self.name,
            nodes=self.nodes,
            say=self.say,
            kubeconfig=self.kubeconfig,
            context=self.context,
            url=self.url,
            allow_node_faults=self.allow_node_faults,
        )
        try:
            self._cluster.up()
            if self.stand_in and self.kind != "existing":
                for archive in build_images(self.say):
                    self.say(f"loading {archive.name} into the nodes")
                    self._cluster.load_image(archive)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._cluster is None:
            return
        if self.kind == "existing":
            self.say(f"release {self.release} stays; remove it with: helm uninstall {self.release} -n {self.namespace}")
            return
        if self.keep:
            down = f"{command_name()} down --cluster {self.kind} --name {self.name}"
            self.say(f"cluster {self.name} stays up; remove it with: {down}")
            return
        self.say(f"removing cluster {self.name}")
        self._cluster.down()

    def deployment(self) -> Deployment:
        """The release in this place, before it is installed: its traffic has no address yet."""
        assert self._cluster is not None  # noqa: S101 - only called inside the context
        api = api_client(self._cluster.kubeconfig, self._cluster.context)
        reachable(api)
        chart = chart_folder()
        values = [chart / STANDIN_VALUES, *self.values] if self.stand_in else list(self.values)
        release = Release(
            name=self.release,
            namespace=self.namespace,
            chart=chart,
            helm=helm_binary(self.say),
            kubeconfig=self._cluster.kubeconfig,
            context=self._cluster.context,
            values=values,
            settings=[f"fullnameOverride={self.release}", "router.responseHeaders=true", *self.settings],
        )
        return Deployment(api=api, release=release, fullname=self.release, http_url="", grpc_url="")

    def addressed(self, deployment: Deployment) -> Deployment:
        """The same release with the addresses at which its routers answer."""
        assert self._cluster is not None  # noqa: S101 - only called inside the context
        fullname = fullname_of(deployment.api, self.namespace, self.release)
        http = self.url or self._cluster.endpoint(self.namespace, fullname, "http")
        grpc = self.grpc_url or self._cluster.endpoint(self.namespace, fullname, "grpc")
        return replace(deployment, fullname=fullname, http_url=http.rstrip("/"), grpc_url=grpc.removeprefix("http://").rstrip("/"))


def _progress(say: Say) -> Callable[[Step], None]:
    def tell(step: Step) -> None:
        if step.state == "started":
            of = f" ({step.done + 1} of {step.total})" if step.total else ""
            say(f"building {step.subject}{of}")
        elif step.state == "waiting":
            say(f"{step.subject}: {step.text}")
        elif step.state == "finished":
            say(f"built {step.subject} in {step.seconds:.0f} s")

    return tell
