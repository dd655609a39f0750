"""Run folders: where a run's files go, and writing them so that a crash leaves the old file or the new one."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import yaml

from llm_replicas.errors import UsageError


def new_run_folder(runs: Path, name: str) -> Path:
    """Make ``runs/<UTC time>-<name>``; two runs of one second get different folders."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = runs / f"{stamp}-{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"run folder {folder}: {error.strerror}; give a writable place with --runs") from error
        return folder
    raise UsageError(f"{runs}: 99 runs of the name {name} in one second; give each its own --name")


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of one."""
    _replace(path, json.dumps(data, indent=2, default=str) + "\n")


def write_yaml(path: Path, data: Any) -> None:
    """Write YAML so that a crash leaves the old file or the new one, never half of one."""
    _replace(path, yaml.safe_dump(data, sort_keys=False))


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
