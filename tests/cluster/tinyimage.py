"""An image of 2 MB to test clusters with: Debian's static busybox in a docker-archive written by hand."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

NAME = "localhost/llm-replicas-tiny:1"
APPLETS = ("sh", "sleep", "cat", "hostname", "httpd", "wget", "nslookup", "mkdir", "touch", "true")


def write_tiny_archive(path: Path) -> Path:
    layer = _layer(_busybox())
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for member, content in ((name, config), ("layer.tar", layer), ("manifest.json", manifest)):
            _add(archive, member, content)
    return path


def _layer(busybox: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        _add(layer, "bin/busybox", busybox, mode=0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def _busybox() -> bytes:
    installed = shutil.which("busybox")
    if installed and b"not a dynamic" in subprocess.run(["ldd", installed], capture_output=True, check=False).stderr:
        return Path(installed).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        # apt drops to its own user, who must be able to write there.
        Path(folder).chmod(0o777)
        subprocess.run(["apt-get", "download", "-qq", "busybox-static"], cwd=folder, check=True)
        package = next(Path(folder).glob("*.deb"))
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True)
        return next(Path(folder).glob("**/bin/busybox")).read_bytes()
