"""What is written down before it is made, and what is found again after a crash."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llm_replicas.cluster.native import processes
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.processes import Process
from llm_replicas.errors import EnvironmentProblem


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def spawn(journal: Journal, tmp_path: Path, *command: str) -> Process:
    return processes.spawn(
        journal, "it", list(command), log=tmp_path / "it.log", environment={"PATH": os.environ["PATH"]}
    )


def test_entries_come_back_in_order(journal: Journal) -> None:
    journal.record("netns", name="a")
    journal.record("link", name="b")

    assert [(e.kind, e.facts) for e in journal.entries()] == [
        ("netns", {"name": "a"}),
        ("link", {"name": "b"}),
    ]
    assert [e.facts["name"] for e in journal.entries("link")] == ["b"]


def test_a_missing_journal_has_no_entries(journal: Journal) -> None:
    assert journal.entries() == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_left_out(journal: Journal, tmp_path: Path, cut: int) -> None:
    journal.record("netns", name="whole")
    journal.record("netns", name="torn")
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[: -cut - 1])

    assert [e.facts["name"] for e in journal.entries()] == ["whole"]


def test_a_process_is_recorded_with_its_start_time(journal: Journal, tmp_path: Path) -> None:
    process = spawn(journal, tmp_path, "sleep", "60")
    try:
        assert processes.recorded(journal) == [process]
        assert processes.alive(process)
    finally:
        processes.kill(process)
        processes.wait_gone([process], 5)


def test_a_program_whose_starter_died_before_recording_it_never_runs(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    gate = ["sh", "-c", processes._GATE, "sh", "touch", str(witness)]
    with subprocess.Popen(gate, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()  # as the kernel does for a dead starter

    assert child.returncode == 125
    assert not witness.exists()


def test_a_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        started = processes.start_time(stranger.pid)
        assert started is not None
        recorded = Process("it", stranger.pid, started - 1, processes.boot_id(), tmp_path / "log")

        processes.kill(recorded)
        time.sleep(0.05)  # a signal would have arrived by now

        assert not processes.alive(recorded)
        assert stranger.poll() is None
        stranger.kill()


def test_a_process_of_an_earlier_boot_is_never_signalled(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        recorded = Process("it", stranger.pid, processes.start_time(stranger.pid) or 0, "earlier", tmp_path / "log")

        processes.kill(recorded)
        time.sleep(0.05)  # a signal would have arrived by now

        assert stranger.poll() is None
        stranger.kill()


def test_the_very_process_is_killed(journal: Journal, tmp_path: Path) -> None:
    """Red twin of the two above: with the right start time the signal does arrive."""
    process = spawn(journal, tmp_path, "sleep", "60")

    processes.kill(process)
    processes.wait_gone([process], 5)

    assert not processes.alive(process)


def test_a_zombie_counts_as_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        os.kill(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while processes.start_time(child.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)

        assert processes.start_time(child.pid) is None


def test_a_process_that_ends_early_is_reported_with_the_end_of_its_log(journal: Journal, tmp_path: Path) -> None:
    process = spawn(journal, tmp_path, "sh", "-c", "echo the disk is full; exit 3")
    deadline = time.monotonic() + 5
    while processes.alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)

    with pytest.raises(EnvironmentProblem, match=r"it ended at once(.|\n)*the disk is full"):
        processes.refuse_dead([process])
