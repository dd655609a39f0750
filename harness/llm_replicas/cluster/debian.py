"""Makes the Debian base image from packages, as its publisher does, where no image registry is at hand."""

import shutil
from pathlib import Path

from llm_replicas.cluster import builder
from llm_replicas.cluster.buildah import NAMESPACES
from llm_replicas.cluster.cache import digest_of
from llm_replicas.errors import EnvironmentProblem

SUITE = "bookworm"
REFERENCE = f"docker.io/library/debian:{SUITE}-slim"

# What "slim" means: no documentation and no translations, but licences stay.
_SLIM = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/lintian/*",
)
# Beyond the essential ones and apt; the priority "required" would add perl and half as much again.
_PACKAGES = ("mount", "passwd", "tzdata")
_SUITES = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
_OLD_STYLE_FIELDS = 3


def key() -> str:
    """Return what the content of the base depends on, as a short digest."""
    return digest_of(*(line.encode() for line in (SUITE, _MERGED_USR, *_PACKAGES, *_SLIM, *_sources())))


def build(tar: Path, apt_settings: str, *, on_line: builder.OnLine) -> None:
    """Write the base's root file system as a tar file."""
    if shutil.which("mmdebstrap") is None:
        msg = (
            "Cannot make the Debian base image: mmdebstrap is not installed. "
            "Install it with: apt-get install mmdebstrap"
        )
        raise EnvironmentProblem(msg)
    settings = [f"--aptopt={line}" for line in apt_settings.splitlines()]
    command = [
        *NAMESPACES,
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        f"--include={','.join(_PACKAGES)}",
        # Lays the symbolic links of the merged /usr first; else a package with perl comes along to make them.
        f"--hook-dir={_MERGED_USR}",
        *(f"--dpkgopt={option}" for option in _SLIM),
        *settings,
        # The host's settings served this build only.
        '--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"',
        SUITE,
        str(tar),
        *_sources(),
    ]
    builder.run(command, purpose=f"Making the Debian {SUITE} base image", on_line=on_line)


def _sources() -> list[str]:
    """Return the host's own source lines for this suite, or none, which means the public archive.

    A host that reaches Debian only through a mirror says so in its own sources.
    """
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    lines: list[str] = []
    for file in files:
        if file.suffix == ".sources":
            lines += new_style_sources(file.read_text())
        elif file.suffix == ".list" and file.is_file():
            lines += old_style_sources(file.read_text())
    return lines if any(line.split()[2] == SUITE for line in lines) else []


def new_style_sources(text: str) -> list[str]:
    """Return a deb822 file's enabled sources of this suite, a line each."""
    lines = []
    for stanza in text.split("\n\n"):
        fields = {}
        for line in stanza.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line.startswith(("#", " ")):
                fields[name.strip().lower()] = value.split()
        if "deb" not in fields.get("types", []) or "main" not in fields.get("components", []):
            continue
        if fields.get("enabled", ["yes"])[0].lower() in {"no", "false", "0"}:
            continue
        lines += [
            f"deb {uri} {suite} main"
            for uri in fields.get("uris", [])
            for suite in fields.get("suites", [])
            if suite in _SUITES
        ]
    return lines


def old_style_sources(text: str) -> list[str]:
    """Return a sources.list's lines of this suite, without options."""
    lines = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words or words[0] != "deb":
            continue
        if words[1].startswith("["):
            end = next(i for i, word in enumerate(words) if word.endswith("]"))
            words = [words[0], *words[end + 1 :]]
        if len(words) > _OLD_STYLE_FIELDS and words[2] in _SUITES and "main" in words[3:]:
            lines.append(f"deb {words[1]} {words[2]} main")
    return lines
