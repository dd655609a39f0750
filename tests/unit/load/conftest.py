from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_replicas.load.plan import load_plan
from llm_replicas.load.schedule import Due, dues, read_schedule, write_schedule

FAKE_TRITON = Path(__file__).with_name("fake_triton.py")


@dataclass(frozen=True)
class Server:
    """A running fake Triton."""

    http_url: str
    grpc_url: str


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start a fake Triton in a process of its own; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Server:
            process = subprocess.Popen(
                [sys.executable, str(FAKE_TRITON), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(_end, process)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"the fake Triton ended with {process.wait()} before it was ready"
            ports = json.loads(line)
            return Server(f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}")

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Path, list[Due]]]:
    """Make a run folder with a plan and its schedule; returns it with the requests that are due."""

    def make(**plan: Any) -> tuple[Path, list[Due]]:
        folder = tmp_path / "run"
        folder.mkdir()
        data = {
            "name": "p",
            "seed": 1,
            "model": "ensemble",
            "workload": {
                "trace": "conv",
                "prompt_divisor": 10,
                "output_divisor": 8,
                **plan.pop("workload", {}),
            },
            "drain_seconds": 10,
            "phases": [{"name": "a", "arrivals": "constant", "rate_per_second": 20, "requests": 60}],
            **plan,
        }
        (folder / "plan.yaml").write_text(yaml.safe_dump(data))
        write_schedule(load_plan(folder / "plan.yaml"), folder)
        return folder, dues(read_schedule(folder))

    return make
