"""The two things that clusters change for the whole machine, and that the last of them to go puts back.

`ip netns` makes /run/netns a mount of its own, and the kernel's limit of inotify instances is too low for several
kubelets. What was there before is noted in one folder before it is changed; call everything here under the host lock.
"""

import contextlib
import shutil
from pathlib import Path

from llm_replicas.cluster.native.nodeinit import unmount

NOTES = Path("/run/llm-replicas")
NAMESPACES = Path("/run/netns")
WATCHERS = Path("/proc/sys/fs/inotify/max_user_instances")
# Every kubelet, containerd and container shim holds some; 128 is what the kernel allows a user at first.
ENOUGH_WATCHERS = 1024


def prepare() -> None:
    """Note what is there and raise what is too low; done again by every cluster, it changes nothing."""
    if not NAMESPACES.exists():
        _note("made-run-netns", "")
    limit = int(WATCHERS.read_text())
    if limit < ENOUGH_WATCHERS:
        _note("inotify-instances", str(limit))
        WATCHERS.write_text(str(ENOUGH_WATCHERS))


def restore() -> None:
    """Put everything back if no cluster is left on the machine."""
    if not NOTES.exists() or (NAMESPACES.exists() and any(NAMESPACES.glob("llmr-*"))):
        return
    before = NOTES / "inotify-instances"
    # Somebody who has set another limit since then wants that one.
    if before.exists() and WATCHERS.read_text().strip() == str(ENOUGH_WATCHERS) and before.read_text():
        WATCHERS.write_text(before.read_text())
    if (NOTES / "made-run-netns").exists() and NAMESPACES.exists() and not any(NAMESPACES.iterdir()):
        with contextlib.suppress(OSError):  # ends when it is no mount any more
            while True:
                unmount(NAMESPACES)
        NAMESPACES.rmdir()
    shutil.rmtree(NOTES)


def _note(name: str, content: str) -> None:
    """Keep what the first cluster found, complete or not at all."""
    NOTES.mkdir(exist_ok=True)
    if not (NOTES / name).exists():
        (NOTES / f"{name}.new").write_text(content)
        (NOTES / f"{name}.new").rename(NOTES / name)
