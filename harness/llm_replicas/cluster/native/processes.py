"""Processes of a cluster: started only after they were recorded, and never mistaken for somebody else's."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.cluster.native.journal import Journal
from llm_replicas.errors import EnvironmentProblem

# The child waits for one line before it becomes the real program. If the starter dies before it has written
# the
# child into the journal, the child reads the end of the pipe and goes.
_GATE = 'read -r go || exit 125; exec "$@" </dev/null'

# Children of this very process have to be reaped by it; others belong to whoever inherited them.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True)
class Process:
    """A process that was started for a cluster; pid and start time together name it for ever on this boot."""

    name: str
    pid: int
    started: int
    boot: str
    log: Path


def boot_id() -> str:
    """Return the id of this boot of the machine; process start times count from it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        # The command name may hold spaces and parentheses, so fields are counted after its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def alive(process: Process) -> bool:
    """Return whether this very process still runs."""
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        del _children[process.pid]
    return process.boot == boot_id() and start_time(process.pid) == process.started


def spawn(
    journal: Journal,
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    cgroups: Iterable[Path] = (),
) -> Process:
    """Start a program in the background, in a session and in control groups of its own."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            ["sh", "-c", _GATE, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )
    assert child.stdin is not None  # noqa: S101  (asked for three lines above)
    try:
        process = Process(name, child.pid, start_time(child.pid) or 0, boot_id(), log)
        journal.record("process", name=name, pid=process.pid, started=process.started, boot=process.boot, log=str(log))
        for group in cgroups:
            (group / "cgroup.procs").write_text(str(child.pid))
        child.stdin.write(b"go\n")
    finally:
        child.stdin.close()
    _children[child.pid] = child
    return process


def recorded(journal: Journal) -> list[Process]:
    """Return every process that a cluster's journal names."""
    return [
        Process(f["name"], f["pid"], f["started"], f["boot"], Path(f["log"]))
        for f in (entry.facts for entry in journal.entries("process"))
    ]


def kill(process: Process) -> None:
    """Kill a process if it is still the one that was recorded."""
    if not alive(process):
        return
    try:
        # The descriptor pins the process: between the check and the signal its number cannot change hands.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if start_time(process.pid) == process.started:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def wait_gone(processes: Iterable[Process], seconds: float) -> None:
    """Wait until all are gone; raises with the names of those that are not."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left:
        left = [process for process in left if alive(process)]
        if left and time.monotonic() > deadline:
            names = ", ".join(f"{process.name} ({process.pid})" for process in left)
            raise EnvironmentProblem(
                f"still running {seconds:.0f} s after SIGKILL: {names}; a process in uninterruptible sleep "
                "(state D "
                "in ps) waits for the disk or the kernel: try again once it has gone"
            )
        if left:
            time.sleep(0.02)  # the kernel needs a moment to take a process apart


def first_child(pid: int) -> int | None:
    """Return the pid of a process's first child."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(children[0]) if children else None


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, for an error message."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text[-lines:]) or "(empty log)"


def refuse_dead(processes: Iterable[Process]) -> None:
    """Raise with the end of its log if one of these has ended."""
    for process in processes:
        if not alive(process):
            raise EnvironmentProblem(f"{process.name} ended at once; the end of its log:\n{tail(process.log)}")
