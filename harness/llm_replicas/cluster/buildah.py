"""Buildah with a storage of our own, in namespaces of its own.

The storage lies in the cache, so the images and containers of the host's owner are never touched.
Each call runs in a fresh mount and process namespace: whatever it mounts is gone, and whatever it
started is dead, the moment it ends, also when it ends by Ctrl-C or a crash.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.cluster import builder
from llm_replicas.cluster.cache import make_dir
from llm_replicas.errors import EnvironmentProblem

#: Runs a command in a mount and a process namespace of its own, which end with it.
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")


@dataclass(frozen=True)
class Mount:
    """A file of the host that a build may read; it does not become part of the image."""

    source: Path
    target: str


class Buildah:
    """Builds, names and exports images in one storage folder."""

    def __init__(self, storage: Path) -> None:
        if shutil.which("buildah") is None:
            msg = "Cannot build images: buildah is not installed. Install it with: apt-get install buildah"
            raise EnvironmentProblem(msg)
        self._storage = make_dir(storage)
        # The host's own storage settings (drivers, options, shared image stores) are for the host's images.
        settings = storage / "storage.conf"
        settings.write_text("[storage]\n")
        self._environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(settings)}
        self._policy = storage / "policy.json"
        # Hosts without the containers-common package have no policy, and buildah refuses to start.
        self._policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))

    def build(
        self,
        context: Path,
        reference: str,
        *,
        mounts: Sequence[Mount] = (),
        ignore: Path | None = None,
        on_line: builder.OnLine = lambda line: None,
    ) -> None:
        """Build the Containerfile of a folder, without the files that `ignore` lists.

        Base images must be in the storage already: nothing is pulled.
        """
        volumes = [f"--volume={m.source}:{m.target}:ro" for m in mounts]
        arguments = [
            "bud",
            "--layers",
            "--pull-never",
            # The docker format has health checks, the OCI format has none.
            "--format=docker",
            "--network=host",
            "--isolation=chroot",
            f"--signature-policy={self._policy}",
            *volumes,
            *([f"--ignorefile={ignore}"] if ignore is not None else []),
            f"--tag={reference}",
            f"--file={context / 'Containerfile'}",
            str(context),
        ]
        self._run(arguments, purpose=f"Building {reference}", on_line=on_line)

    def export(self, reference: str, archive: Path) -> None:
        """Write an image as a docker archive that carries its reference."""
        arguments = [
            "push",
            f"--signature-policy={self._policy}",
            reference,
            f"docker-archive:{archive}:{reference}",
        ]
        self._run(arguments, purpose=f"Exporting {reference}")

    def drop_leftovers(self) -> None:
        """Delete the working containers of stopped builds; the layers stay, as a cache."""
        if (self._storage / "root").is_dir():
            self._run(["rm", "--all"], purpose="Removing old build containers")

    def _run(
        self, arguments: Sequence[str], *, purpose: str, on_line: builder.OnLine = lambda line: None
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="llm-replicas-build-") as runroot:
            command = [
                *NAMESPACES,
                "buildah",
                f"--root={self._storage / 'root'}",
                f"--runroot={runroot}",
                f"--storage-driver={_driver(self._storage)}",
                *arguments,
            ]
            builder.run(command, purpose=purpose, env=self._environment, on_line=on_line)


def _driver(folder: Path) -> str:
    """Choose overlay, or plain copies where the folder is itself on an overlay (inside a container)."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, filesystem, *_ = line.split()
        if folder.resolve().is_relative_to(target) and len(target) >= len(best):
            best, kind = target, filesystem
    supported = "overlay" in Path("/proc/filesystems").read_text().split()
    return "overlay" if supported and kind not in {"overlay", "overlayfs"} else "vfs"
