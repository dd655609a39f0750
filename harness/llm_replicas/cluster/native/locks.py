"""Who may change a cluster, and who may choose its place in the machine's network, at one time."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_replicas.errors import EnvironmentProblem

# A folder that every machine has; a lock on it leaves no file behind.
HOST_LOCK_FOLDER = Path("/run")


@contextmanager
def cluster_lock(path: Path, seconds: float = 120.0) -> Iterator[None]:
    """Hold the lock of one cluster; its file is gone again afterwards.

    The kernel drops the lock with the process that holds it, so a killed `up` never blocks `down`.
    """
    deadline = time.monotonic() + seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # the last cluster's `down` has just removed the folder
        try:
            _flock(descriptor, deadline, f"{path} (held by process {_holder(descriptor) or 'unknown'})")
            if not _still_there(descriptor, path):
                continue  # the holder before us removed the file: lock the new one
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


@contextmanager
def host_lock(seconds: float = 60.0) -> Iterator[None]:
    """Hold the one lock of this machine under which a subnet is chosen and claimed."""
    descriptor = os.open(HOST_LOCK_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _flock(descriptor, time.monotonic() + seconds, f"the network lock on {HOST_LOCK_FOLDER}")
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, deadline: float, what: str) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EnvironmentProblem(
                    f"another process is working on this cluster: {what}; wait for it to end, then try again"
                ) from None
            time.sleep(0.1)  # flock has no call that waits with a deadline
        else:
            return


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip()
