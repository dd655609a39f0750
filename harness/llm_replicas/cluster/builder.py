"""Runs a build command: passes its output on, keeps the tail for the error, leaves no process behind."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llm_replicas.errors import EnvironmentProblem

OnLine = Callable[[str], None]

_TAIL_LINES = 40
_NO_SPACE = "no space left on device"


class BuildFailed(EnvironmentProblem):
    """A build command ended with an error; the message carries the end of its output."""


def run(
    command: Sequence[str],
    *,
    purpose: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: OnLine = lambda line: None,
) -> None:
    """Run a command to its end; on any interruption kill all of its processes first."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    # When this process dies without a chance to clean up, the kernel kills the command as well.
    tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    process = subprocess.Popen(
        [*tether, *command],
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        assert process.stdout is not None  # noqa: S101  # Popen was given a pipe
        for line in process.stdout:
            tail.append(line.rstrip())
            on_line(tail[-1])
        code = process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code != 0:
        raise BuildFailed(_explain(purpose, command, code, list(tail)))


def _explain(purpose: str, command: Sequence[str], code: int, tail: list[str]) -> str:
    lines = [f"{purpose} failed (exit status {code})."]
    if any(_NO_SPACE in line.lower() for line in tail):
        lines.append(
            "The disk is full. Free some space, or set LLM_REPLICAS_CACHE (and GOCACHE and TMPDIR) "
            "to a larger one; what was built so far is kept."
        )
    lines += ["Command: " + " ".join(command), "End of its output:", *(f"  {line}" for line in tail)]
    return "\n".join(lines)
