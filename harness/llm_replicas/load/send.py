"""Sends a plan's load to a server that runs already: the ``load`` command, without faults and without a
verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loadtests
from llm_replicas.load.plan import load_plan
from llm_replicas.load.records import seal
from llm_replicas.load.run import LoadRun
from llm_replicas.load.schedule import phase_windows, write_schedule
from llm_replicas.runfolder import new_run_folder, write_yaml

Say = Callable[[str], None]


def shipped_plan(name: str) -> Path:
    """A plan that comes with the package, by name."""
    return Path(loadtests.__file__).parent / "plans" / f"{name}.yaml"


def load_only(
    plan_path: Path | None, url: str, grpc_url: str | None, runs: Path, name: str, workers: int, say: Say
) -> Path:
    """Send a plan's load to a server that runs already; returns the run folder with its sealed records."""
    plan = load_plan(plan_path or shipped_plan("smoke"))
    folder = new_run_folder(runs, name)
    write_yaml(folder / "plan.yaml", plan.as_yaml())
    write_schedule(plan, folder)
    say(f"run folder {folder}")
    try:
        with LoadRun(folder, http_url=url, grpc_url=grpc_url, workers=workers) as load:
            started = load.wait_started()
            for window in phase_windows(plan):
                say(f"phase {window.name}: {window.end_s - window.start_s:.0f} s")
                load.wait_until(started + window.end_s)
            say("load sent; waiting for the last streams")
            load.wait_finished()
    finally:
        seal(folder)
    return folder
