"""Renders the chart with a Helm binary into plain objects; Helm's own messages become ours."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_replicas.chart.objects import Objects, load_all_yaml
from llm_replicas.errors import UsageError

RENDER_SECONDS = 60


def render(
    chart: Path,
    helm: Path,
    values: Sequence[Path] = (),
    overrides: Mapping[str, Any] | None = None,
    *,
    release: str = "llm",
    namespace: str = "llm",
    kube_version: str | None = None,
) -> Objects:
    """The objects that ``helm template`` makes.

    ``overrides`` maps dotted paths to values and wins over ``values``. Values that the chart refuses raise
    UsageError with the chart's own words.
    """
    command = [str(helm), "template", release, str(chart), "--namespace", namespace]
    if kube_version is not None:
        command += ["--kube-version", kube_version]
    for file in values:
        command += ["--values", str(file)]
    given = None
    if overrides:
        command += ["--values", "-"]
        given = yaml.safe_dump(nested(overrides))
    return Objects(load_all_yaml(_run(command, given)))


def notes(
    chart: Path, helm: Path, values: Sequence[Path] = (), overrides: Mapping[str, Any] | None = None
) -> str:
    """The text that an operator sees after an install."""
    command = [str(helm), "install", "llm", str(chart), "--namespace", "llm", "--dry-run=client"]
    for file in values:
        command += ["--values", str(file)]
    given = yaml.safe_dump(nested(overrides)) if overrides else None
    told = _run(command + (["--values", "-"] if given else []), given)
    return told.partition("\nNOTES:\n")[2]


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _run(command: Sequence[str], given: str | None) -> str:
    try:
        ran = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=RENDER_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not there; give a Helm 3 or Helm 4 binary") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"helm gave no answer in {RENDER_SECONDS} s; try the same command by hand"
        ) from error
    if ran.returncode != 0:
        raise UsageError(_plain(ran.stderr))
    return ran.stdout


def _plain(stderr: str) -> str:
    """Helm's message without the template's line, the hint about --debug and empty lines."""
    text = re.sub(r"^Error: (INSTALLATION FAILED: )?", "", stderr.strip())
    text = re.sub(r"^execution error at \([^)]*\): *", "", text)
    text = text.replace("Use --debug flag to render out invalid YAML", "")
    return "\n".join(line for line in text.splitlines() if line.strip())
