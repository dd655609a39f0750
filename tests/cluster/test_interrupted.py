"""A run that is ended at any moment keeps its records, says how to judge them, and leaves no generator behind."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_replicas.cluster.native import NativeCluster
from llm_replicas.invocation import command_name
from llm_replicas.load.records import read_records
from tests.cluster.gatecommand import Ended, Gate, finish, served, start, wait_for, write_plan

pytestmark = pytest.mark.cluster

PLAN_SECONDS = 25.0
# Counted from the moment the run folder exists.
MOMENTS = random.Random(7)
CASES = [
    (number, round(MOMENTS.uniform(0, 12), 1)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
]
# Locust needs two seconds to start on a quiet machine; then the first answers end and are recorded.
SURELY_RECORDED_SECONDS = 7
# Once a second Locust looks for its parent; then it gives up what is in flight, which takes up to two.
GENERATOR_SECONDS = 10


@dataclass(frozen=True)
class Interrupted:
    """A gate that was ended: how, and what had been recorded just before."""

    number: signal.Signals
    moment: float
    ended: Ended
    folder: Path
    recorded: int
    judged: Ended


@pytest.fixture(scope="module")
def serving(serving_cluster: NativeCluster) -> Iterator[str]:
    """The namespace of a release that serves."""
    with served(serving_cluster, "interrupted"):
        yield "interrupted"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name}-after-{case[1]:g}s")
def interrupted(
    serving_cluster: NativeCluster,
    serving: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Interrupted:
    """A gate, ended at a random moment, and judged afterwards."""
    number, moment = request.param
    tmp = tmp_path_factory.mktemp("interrupted")
    plan = write_plan(tmp / "plan.yaml", seconds=PLAN_SECONDS)
    gate = Gate(serving_cluster.kubeconfig, serving, tmp / "runs", ("--no-install", "--plan", str(plan)))

    process = gate.start()
    wait_for(lambda: bool(gate.folders))
    time.sleep(moment)  # the moment is what is tested
    (folder,) = gate.folders
    recorded = read_records(folder).num_rows
    process.send_signal(number)
    ended = finish(process)
    wait_for(lambda: generators(folder) == [], GENERATOR_SECONDS)

    return Interrupted(number, moment, ended, folder, recorded, finish(start("judge", str(folder), "--json")))


def generators(folder: Path) -> list[str]:
    """Processes whose command line names the run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "--llm-run" in command and str(folder) in command:
            found.append(path.parent.name)
    return found


def test_the_exit_code_says_that_it_was_interrupted(interrupted: Interrupted) -> None:
    expected = -signal.SIGKILL if interrupted.number == signal.SIGKILL else 130

    assert interrupted.ended.code == expected, interrupted.ended.err
    assert interrupted.ended.out == ""


def test_the_message_says_where_the_records_are_and_how_to_judge_them(interrupted: Interrupted) -> None:
    folder = interrupted.folder
    # A killed program says nothing any more; what it said when it began must do.
    expected = f"run folder {folder}"
    if interrupted.number != signal.SIGKILL:
        expected = f"the records so far are in {folder}: judge them with: {command_name()} judge {folder}"

    assert expected in interrupted.ended.err


def test_every_record_that_was_there_is_kept(interrupted: Interrupted) -> None:
    records = read_records(interrupted.folder)

    assert records.num_rows >= interrupted.recorded
    assert interrupted.recorded > 0 or interrupted.moment < SURELY_RECORDED_SECONDS
    assert len(set(records.column("request_id").to_pylist())) == records.num_rows


def test_what_is_left_gets_a_verdict_that_is_no_pass(interrupted: Interrupted) -> None:
    judged = interrupted.judged

    assert judged.code in {1, 3, 4}, judged.err
    assert judged.verdict["verdict"] != "pass"
    assert (interrupted.folder / "report.html").stat().st_size > 0
