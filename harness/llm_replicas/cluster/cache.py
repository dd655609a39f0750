"""The cache folder: where it lies, locks in it, space on it, and which old entries go."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_replicas.errors import EnvironmentProblem

GIGABYTE = 1_000_000_000


def cache_dir() -> Path:
    """Return $LLM_REPLICAS_CACHE, or llm-replicas under the user's cache folder."""
    named = os.environ.get("LLM_REPLICAS_CACHE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llm-replicas"


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file; `on_wait` is called once if somebody else has it.

    The kernel drops the lock with the last process that holds it, so a dead build never blocks the next.
    """
    make_dir(path.parent)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_dir(path: Path) -> Path:
    """Create a folder with its parents, or say why that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = (
            f"Cannot create {path}: {error.strerror}. "
            "Set LLM_REPLICAS_CACHE to a folder that this user can write."
        )
        raise EnvironmentProblem(msg) from error
    return path


def require_space(path: Path, needed: int, purpose: str) -> None:
    """Refuse early when the file system of `path` has fewer than `needed` bytes free."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        msg = (
            f"{purpose} needs {needed / GIGABYTE:.1f} GB in {path}, but {free / GIGABYTE:.1f} GB are free. "
            "Free some space, or set LLM_REPLICAS_CACHE (and GOCACHE for Go builds) to a larger disk."
        )
        raise EnvironmentProblem(msg)


def digest_of(*parts: bytes) -> str:
    """Return a short digest of byte strings; where one ends and the next begins matters."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:16]


def digest_of_folder(folder: Path) -> str:
    """Return a digest of a folder's file names, executable bits, links and contents."""
    parts: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts or path.name.endswith((".pyc", ".swp", "~")):
            continue
        name = str(path.relative_to(folder)).encode()
        if path.is_symlink():
            parts += [b"link", name, str(path.readlink()).encode()]
        elif path.is_file():
            executable = b"x" if path.stat().st_mode & 0o100 else b"-"
            parts += [executable, name, path.read_bytes()]
    return digest_of(*parts)


def keep_newest(entries: Iterable[Path], count: int, current: Path) -> None:
    """Delete all but the newest `count` files or folders; `current` always stays."""
    by_age = sorted((e for e in entries if e != current), key=lambda e: e.stat().st_mtime, reverse=True)
    for entry in by_age[max(0, count - 1) :]:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
