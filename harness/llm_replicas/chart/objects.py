"""Rendered Kubernetes objects as plain data, with the few questions that rules ask of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Object = dict[str, Any]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@dataclass(frozen=True)
class Objects:
    """All objects of one render."""

    items: Sequence[Object]

    def __iter__(self) -> Iterator[Object]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def of(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [item for item in self.items if item["kind"] == kind]

    def one(self, kind: str, suffix: str = "") -> Object:
        """The only object of a kind whose name ends with ``suffix``."""
        found = [item for item in self.of(kind) if item["metadata"]["name"].endswith(suffix)]
        if len(found) != 1:
            names = [item["metadata"]["name"] for item in found]
            raise LookupError(f"expected one {kind} named …{suffix}, found {names}")
        return found[0]

    def workload(self, component: str) -> Object | None:
        """The workload that runs a component, or None where the chart renders none."""
        for item in workloads(self):
            if item["spec"]["template"]["metadata"]["labels"].get("app.kubernetes.io/component") == component:
                return item
        return None

    def envoy(self) -> Object | None:
        """The router's Envoy configuration, or None without a router."""
        for item in self.of("ConfigMap"):
            text = item.get("data", {}).get("envoy.yaml")
            if text is not None:
                config: Object = load_yaml(text)
                return config
        return None

    def slo(self) -> Object | None:
        """The SLO table as the chart writes it, or None."""
        for item in self.of("ConfigMap"):
            text = item.get("data", {}).get("slo.yaml")
            if text is not None:
                table: Object = load_yaml(text)["slo"]
                return table
        return None


def load_yaml(text: str) -> Any:
    """One YAML document, by the fast loader where libyaml is there."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - both are safe loaders


def load_all_yaml(text: str) -> list[Object]:
    """Every document that is not empty."""
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]


def name_of(item: Object) -> str:
    """``Kind/name``, as people write it."""
    return f"{item['kind']}/{item['metadata']['name']}"


def workloads(objects: Objects) -> list[Object]:
    """Every object that makes pods."""
    return [item for item in objects if item["kind"] in WORKLOADS]


def pod_spec(workload: Object) -> Object:
    """The pod that a workload makes."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def containers(workload: Object) -> list[Object]:
    """All containers of a workload's pod, init containers too."""
    spec = pod_spec(workload)
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(workload: Object, name: str) -> Object:
    """One container by name."""
    for found in containers(workload):
        if found["name"] == name:
            return found
    raise LookupError(f"{name_of(workload)} has no container {name}")


def flags(found: Object) -> dict[str, str]:
    """A container's ``--name=value`` arguments."""
    pairs = (arg.removeprefix("--").partition("=") for arg in found.get("args", []) if arg.startswith("--"))
    return {name: value for name, _, value in pairs}


def seconds(duration: str) -> float:
    """An Envoy duration such as ``0.5s``."""
    return float(duration.removesuffix("s"))
