"""Packs a folder of tools with the system programs they need, for hosts without apt or registries.

Inside are bin/ (what to put into LLM_REPLICAS_BIN), programs/ and lib/ (the system programs and their
shared libraries, reached through small wrappers in bin/) and images/ (archives to load into nodes).
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from llm_replicas.cluster import builder
from llm_replicas.cluster.cache import make_dir
from llm_replicas.errors import EnvironmentProblem

SYSTEM_PROGRAMS = {
    "etcd": "etcd-server",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
}

# The host's own loader has to go with the host's own C library, so these stay behind.
_GLIBC = re.compile(r"(ld-linux|libc\.so|libm\.so|libpthread|libdl\.so|librt\.so|libresolv|libutil)")
_LIBRARY = re.compile(r"=> (/\S+) \(")

_WRAPPER = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/../lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}" exec "$here/../programs/{name}" "$@"
"""

_README = """\
Tools of llm-replicas, packed on a machine with {glibc}; the host needs that glibc or a newer one.
Unpack anywhere and set LLM_REPLICAS_BIN to the absolute path of bin/.
runc starts itself a second time without its wrapper, so the host needs libseccomp.so.2 of its own.
Image archives in images/ are used instead of building them.
"""


def pack(binaries: Path, out: Path, images: dict[str, Path], on_line: builder.OnLine) -> None:
    """Write `out` (tar.xz) with the binaries of a folder, the system programs and image archives."""
    for needed, package in {"tar": "tar", "xz": "xz-utils", "ldd": "libc-bin"}.items():
        if shutil.which(needed) is None:
            raise EnvironmentProblem(_lacks(needed, package))
    make_dir(out.absolute().parent)
    partial = out.absolute().with_name(f".{out.name}.partial")
    # Beside the result: this disk must hold it anyhow, and /tmp may be small.
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=partial.parent) as scratch:
        top = make_dir(Path(scratch) / "llm-replicas-tools")
        shutil.copytree(binaries, top / "bin")
        for name, package in SYSTEM_PROGRAMS.items():
            _add_program(name, package, top)
        for name, archive in images.items():
            shutil.copy(archive, make_dir(top / "images") / f"{name}.tar")
        (top / "README").write_text(_README.format(glibc=_glibc_version()))
        try:
            command = [
                "tar",
                "-C",
                scratch,
                "--owner=0",
                "--group=0",
                "-I",
                "xz -T0",
                "-cf",
                str(partial),
                top.name,
            ]
            builder.run(command, purpose=f"Packing {out}", on_line=on_line)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)


def libraries_of(program: Path) -> list[Path]:
    """Return the shared libraries of a program, without the C library's own."""
    listing = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    found = [Path(path) for path in _LIBRARY.findall(listing)]
    return [path for path in found if not _GLIBC.match(path.name)]


def _add_program(name: str, package: str, top: Path) -> None:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise EnvironmentProblem(_lacks(name, package))
    program = Path(found).resolve()
    libraries = libraries_of(program)
    if not libraries:
        shutil.copy(program, top / "bin" / name)
        return
    shutil.copy(program, make_dir(top / "programs") / name)
    for library in libraries:
        shutil.copy(library.resolve(), make_dir(top / "lib") / library.name)
    wrapper = top / "bin" / name
    wrapper.write_text(_WRAPPER.format(name=name))
    wrapper.chmod(0o755)


def _lacks(program: str, package: str) -> str:
    return f"Cannot pack the tools: {program} is not installed. Install it with: apt-get install {package}"


def _glibc_version() -> str:
    listing = subprocess.run(["ldd", "--version"], capture_output=True, text=True, check=False).stdout
    return "glibc " + (listing.splitlines() or ["of unknown version"])[0].rpartition(" ")[2]
