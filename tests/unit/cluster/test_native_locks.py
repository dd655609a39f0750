"""Who may change a cluster at one time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_replicas.cluster.native.locks import cluster_lock, host_lock
from llm_replicas.errors import EnvironmentProblem

HOLD = """
import sys
from pathlib import Path
from llm_replicas.cluster.native.locks import cluster_lock
with cluster_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_held_lock_is_reported_with_its_holder(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    with (
        pytest.raises(EnvironmentProblem, match=f"held by process {holder.pid}"),
        cluster_lock(tmp_path / "a.lock", seconds=0.2),
    ):
        pass
    holder.kill()
    holder.wait()


def test_a_killed_holder_blocks_nobody_and_no_file_is_left(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    holder.kill()
    holder.wait()

    with cluster_lock(tmp_path / "a.lock", seconds=5):
        assert (tmp_path / "a.lock").read_text() == str(os.getpid())

    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), cluster_lock(tmp_path / "a.lock"):
        raise ZeroDivisionError

    with cluster_lock(tmp_path / "a.lock", seconds=1):
        pass


def test_the_host_lock_can_be_taken_again() -> None:
    for _ in range(2):
        with host_lock(seconds=30):
            pass
