"""Start Locust on a run folder as a process of its own, follow it, and end it whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from llm_replicas.errors import EnvironmentProblem, InvalidRun, LlmReplicasError, UsageError
from llm_replicas.load.plan import load_plan

_POLL_SECONDS = 0.05
_TERMINATE_SECONDS = 15.0
# Locust's start, its start lead, its goodbye to the workers and its last report.
_SLACK_SECONDS = 45.0


class LoadRun:
    """The load of one run, from start to sealed-ready records.

    Use it as a context manager: leaving the block ends Locust, by SIGTERM first so that it can write its last
    records. The folder must hold ``plan.yaml``; the schedule is made if it is missing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        http_url: str,
        grpc_url: str | None = None,
        workers: int = 1,
    ) -> None:
        if workers < 1:
            raise UsageError(f"workers {workers}: accepted is 1 or more")
        self.folder = folder
        self._plan = load_plan(folder / "plan.yaml")
        self._http_url = http_url
        self._grpc_url = grpc_url
        self._workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log: IO[bytes] | None = None
        self._deadline = 0.0

    @property
    def log_path(self) -> Path:
        """What Locust said."""
        return self.folder / "generator" / "locust.log"

    @property
    def pids(self) -> list[int]:
        """The processes of the generator, the one that is waited for first."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start Locust: one process, or a master and its workers."""
        if (self.folder / "started.json").exists():
            raise UsageError(f"{self.folder}: a run was made in it already; give a new folder")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("ab")
        self._deadline = time.monotonic() + self._plan.seconds + self._plan.drain_seconds + _SLACK_SECONDS
        if self._workers == 1:
            self._spawn([])
            return
        # A port that is free now: the workers must be told it, and Locust does not tell which one it took.
        port = _free_port()
        address = ["--master-host", "127.0.0.1", "--master-port", str(port)]
        self._spawn(
            [
                *("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port)),
                *("--expect-workers", str(self._workers), "--expect-workers-max-wait", "30"),
            ]
        )
        for _ in range(self._workers):
            self._spawn(["--worker", *address])

    def wait_started(self, timeout_seconds: float = 60.0) -> float:
        """Wait until the sending begins; returns the epoch moment from which all due times count."""
        deadline = time.monotonic() + timeout_seconds
        path = self.folder / "started.json"
        while not path.exists():
            self._raise_if_ended("before it began to send")
            if time.monotonic() > deadline:
                raise InvalidRun(
                    f"the load generator did not start within {timeout_seconds:g} s; see {self.log_path}"
                )
            time.sleep(_POLL_SECONDS)  # a file of another process; it comes once
        return float(json.loads(path.read_text(encoding="utf-8"))["wall_start"])

    def wait_until(self, wall: float) -> None:
        """Wait for an epoch moment while watching that the generator lives."""
        while (left := wall - time.time()) > 0:
            self._raise_if_ended("in the middle of the run", unless_fine=True)
            time.sleep(min(left, 0.25))  # the clock itself is what is waited for

    def wait_finished(self, timeout_seconds: float | None = None) -> None:
        """Wait until everything was sent and drained; a generator that fell short makes the run invalid."""
        deadline = self._deadline if timeout_seconds is None else time.monotonic() + timeout_seconds
        main = self._processes[0]
        while main.poll() is None:
            if time.monotonic() > deadline:
                self.stop()
                raise InvalidRun(
                    f"the load generator did not end in time and was stopped; see {self.log_path}"
                )
            time.sleep(_POLL_SECONDS)  # Popen.wait with a timeout polls as well
        self._raise_if_ended("", unless_fine=True)
        self.stop()

    def stop(self) -> None:
        """End what still runs. Workers end with their master; only these processes are signalled, by their
        pid.
        """
        living = [process for process in self._processes if process.poll() is None]
        for process in living:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _TERMINATE_SECONDS
        for process in living:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _spawn(self, arguments: list[str]) -> None:
        command = [
            *(sys.executable, "-m", "locust", "-f", str(_locustfile())),
            *("--headless", "--only-summary", "--loglevel", "INFO", "--host", self._http_url),
            *("--llm-run", str(self.folder.resolve()), "--llm-grpc-host", self._grpc_url or ""),
            *arguments,
        ]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                # Ctrl-C belongs to this program alone, which then ends Locust in order.
                start_new_session=True,
                env={**_clean_environment(), "LLM_STOP_WITH_PARENT": "1"},
            )
        except OSError as error:
            raise EnvironmentProblem(f"cannot start {command[0]}: {error.strerror}") from error
        self._processes.append(process)

    def _raise_if_ended(self, when: str, *, unless_fine: bool = False) -> None:
        code = self._processes[0].poll()
        if code is None or (unless_fine and code == 0):
            return
        said = self._last_words()
        if code == 2:
            raise LlmReplicasError(f"the load generator refused to run: {said}")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise InvalidRun(f"the load generator {how} {when}".rstrip() + f": {said}; see {self.log_path}")

    def _last_words(self) -> str:
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it said nothing"
        errors = [line for line in lines if "/ERROR/" in line]
        said = (errors or [line for line in lines if line.strip()] or ["it said nothing"])[-1]
        return said.partition("/ERROR/")[2].partition(": ")[2] or said


def _locustfile() -> Path:
    spec = find_spec("loadtests")
    if spec is None or spec.origin is None:
        raise EnvironmentProblem(
            "the package loadtests is not importable; "
            "install llm-replicas or add the repository root to PYTHONPATH"
        )
    return Path(spec.origin).parent / "locustfile.py"


def _clean_environment() -> dict[str, str]:
    """The environment without settings that would turn Locust or the plan into something else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "LLM_"))}
    paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _free_port() -> int:
    import socket  # noqa: PLC0415 - only the distributed mode needs it

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
