"""The first process of a node: gives it file systems of its own, starts its daemons, reaps what they leave.

Runs as PID 1 of fresh mount, PID and UTS namespaces, by path and with the standard library only:
`python3 -I -S nodeinit.py node.json`. When it dies, everything on the node dies with it.

A daemon that ends is not started again: its name and exit status go into the file `ended`, which `up`
watches.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MS_BIND, MS_REC, MS_SHARED, MNT_DETACH = 0x1000, 0x4000, 0x100000, 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount as the system call does."""
    target_bytes = os.fsencode(target)
    if _libc.mount(source.encode(), target_bytes, kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """Take the topmost mount off a path, at once for everybody who does not have it open.

    The command `umount` would leave a folder of its own in /run.
    """
    if _libc.umount2(os.fsencode(target), MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, f"unmount {target}: {os.strerror(number)}")


def hide(target: Path, source: Path, kind: str, keep: list[Path]) -> None:
    """Put a folder of the node's own over one of the machine's; paths in `keep` below it stay visible."""
    if not target.is_dir() or target.is_symlink():
        return
    source.mkdir(parents=True, exist_ok=True)
    if kind == "memory":
        mount("tmpfs", source, "tmpfs", 0, "mode=755")
    for path in keep:
        if path.is_relative_to(target):
            copy = source / path.relative_to(target)
            copy.mkdir(parents=True, exist_ok=True)
            mount(str(path), copy, flags=MS_BIND)
    mount(str(source), target, flags=MS_BIND | MS_REC)


def prepare(node: dict[str, Any]) -> None:
    """Turn the copy of the machine's mounts into the node's own view."""
    socket.sethostname(node["name"])
    # Other clusters' namespaces must not be held by this node's copy of their mounts.
    with contextlib.suppress(OSError):  # it is no mount where no other cluster made it one
        unmount(Path("/run/netns"))
    mount("", Path("/"), flags=MS_REC | MS_SHARED)  # kubelet and runc expect what they mount to propagate
    mount("proc", Path("/proc"), "proc")
    keep = [Path(path) for path in node["keep"]]
    for private in node["private"]:
        hide(Path(private["target"]), Path(private["source"]), private["kind"], keep)
    # kubelet sets a few settings of the whole kernel. It finds these files there instead, each with the
    # value it
    # wants, so that the machine's own stay as they are.
    shields = Path(node["shields"])
    shields.mkdir(exist_ok=True)
    for setting, value in node["kernel_settings"].items():
        target = Path("/proc/sys") / setting
        if target.exists():
            file = shields / setting.replace("/", ".")
            file.write_text(f"{value}\n")
            mount(str(file), target, flags=MS_BIND)


def start(daemon: dict[str, Any], environment: dict[str, str]) -> int:
    """Start a daemon once the paths that it needs exist; returns its PID."""
    while not all(Path(path).exists() for path in daemon["after"]):
        time.sleep(0.05)  # PID 1 has nothing else to do; who waits for the node has the deadline
    with Path(daemon["log"]).open("ab") as log:
        return subprocess.Popen(
            daemon["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ).pid


def main() -> None:
    """Prepare the node, start its daemons, then reap for ever."""
    node = json.loads(Path(sys.argv[1]).read_text())
    prepare(node)
    names = {start(daemon, node["environment"]): daemon["name"] for daemon in node["daemons"]}
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            signal.pause()
            continue
        if pid in names:
            with Path(node["ended"]).open("a") as ended:
                ended.write(f"{names.pop(pid)} {os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
