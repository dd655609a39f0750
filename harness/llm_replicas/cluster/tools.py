"""Builds the pinned Go tools into the cache and hands out one folder with the binaries of several families.

A family is a folder under ci/tools with its own go.mod and go.sum; tools.toml says what is built from it.
Its place in the cache is named after everything the binaries depend on. Each binary gets its final name only
when it is complete, so a build that was stopped goes on where it was.
"""

import json
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.cluster import builder, packing
from llm_replicas.cluster.cache import (
    GIGABYTE,
    cache_dir,
    digest_of,
    keep_newest,
    locked,
    make_dir,
    require_space,
)
from llm_replicas.cluster.checkout import checkout
from llm_replicas.cluster.progress import OnProgress, State, Step, silent
from llm_replicas.errors import EnvironmentProblem, UsageError

#: Names a folder of ready binaries, for hosts that cannot build; nothing is built when it is set.
BIN_VARIABLE = "LLM_REPLICAS_BIN"

#: What the native cluster and the gate need.
GATE_FAMILIES = ("kubernetes", "containerd", "cni", "coredns", "helm")

_STAMP = "complete.json"
_KEPT_BUILDS = 2
_KEPT_VIEWS = 4


@dataclass(frozen=True)
class Family:
    """One row of tools.toml with what its go.mod says."""

    name: str
    folder: Path
    binaries: dict[str, str]
    tags: tuple[str, ...]
    ldflags: str
    space: int
    needed_go: str
    optional: bool


@dataclass(frozen=True)
class Go:
    """The Go tool chain of this host."""

    version: str
    architecture: str
    build_cache: Path
    may_download: bool


def load_families(root: Path | None = None) -> dict[str, Family]:
    """Read tools.toml and the go.mod of each family."""
    folder = (root or checkout()) / "ci" / "tools"
    with (folder / "tools.toml").open("rb") as handle:
        table = tomllib.load(handle)
    return {name: _family(folder / name, row) for name, row in table.items()}


def _family(folder: Path, row: dict[str, object]) -> Family:
    pins = (folder / "go.mod").read_text()
    module = str(row["module"])
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", pins, re.MULTILINE)
    needed = re.search(r"^go (\S+)", pins, re.MULTILINE)
    if found is None or needed is None:
        msg = f"{folder / 'go.mod'} does not pin {module} or names no Go version."
        raise UsageError(msg)
    version = found.group(1)
    major, minor, *_ = version.removeprefix("v").split(".")
    binaries, tags, space = row["binaries"], row.get("tags", []), row["space_gb"]
    assert isinstance(binaries, dict)  # noqa: S101  # the types of a file in this repository
    assert isinstance(tags, list)  # noqa: S101
    assert isinstance(space, int)  # noqa: S101
    return Family(
        name=folder.name,
        folder=folder,
        binaries={str(name): str(package) for name, package in binaries.items()},
        tags=tuple(str(tag) for tag in tags),
        ldflags=" ".join(str(row["ldflags"]).format(version=version, major=major, minor=minor).split()),
        space=space * GIGABYTE,
        needed_go=needed.group(1),
        optional=bool(row.get("optional", False)),
    )


def find_go() -> Go:
    """Return the host's Go, or say how to get one."""
    if shutil.which("go") is None:
        needed = max((f.needed_go for f in load_families().values()), key=_version_numbers)
        msg = (
            f"Cannot build the tools: no `go` in PATH, and Go {needed} or newer is needed. "
            f"Install it from https://go.dev/dl, or set {BIN_VARIABLE} to a folder of ready binaries "
            "(see `llm-replicas tools bundle`)."
        )
        raise EnvironmentProblem(msg)
    names = ("GOVERSION", "GOARCH", "GOCACHE", "GOTOOLCHAIN")
    # Outside of any module, so that this is the host's own version and not one a go.mod switched to.
    reply = subprocess.run(
        ["go", "env", *names], cwd="/", env=_environment(), capture_output=True, text=True, check=False
    )
    values = reply.stdout.splitlines()
    if reply.returncode != 0 or len(values) != len(names):
        said = reply.stderr.strip() or reply.stdout.strip()
        msg = f"`go env` does not work here, so nothing can be built: {said}. Repair the Go installation."
        raise EnvironmentProblem(msg)
    version, architecture, build_cache, toolchain = values
    return Go(version.removeprefix("go"), architecture, Path(build_cache), toolchain != "local")


def family_dir(family: Family, go: Go) -> Path:
    """Return the family's place in the cache."""
    manifest = json.dumps([family.binaries, family.tags, family.ldflags], sort_keys=True)
    key = digest_of(
        (family.folder / "go.mod").read_bytes(),
        (family.folder / "go.sum").read_bytes(),
        manifest.encode(),
        f"{go.version} {go.architecture}".encode(),
    )
    return cache_dir() / "tools" / f"{family.name}-{key}"


def is_built(family: Family, go: Go) -> bool:
    """Say whether every binary of the family is in the cache, from its stamp alone."""
    return (family_dir(family, go) / _STAMP).is_file()


def bin_dir(
    names: Sequence[str] = GATE_FAMILIES, on_progress: OnProgress = silent, niceness: int = 0
) -> Path:
    """Return one flat folder with the binaries of the named families, building what is missing."""
    families = _select(names)
    ready = os.environ.get(BIN_VARIABLE)
    if ready:
        return _check_ready(Path(ready), families)
    go = find_go()
    missing = [family for family in families if not is_built(family, go)]
    if missing:
        _build_all(missing, go, on_progress, niceness)
    places = [family_dir(family, go) for family in families]
    view = cache_dir() / "tools" / f"bin-{digest_of(*(place.name.encode() for place in places))}"
    if not view.is_dir():
        with locked(cache_dir() / "tools" / ".lock"):
            _make_view(view, families, places)
    return view


def _select(names: Sequence[str]) -> list[Family]:
    known = load_families()
    for name in names:
        if name not in known:
            msg = f"There is no tool family named {name!r}. The families are: {', '.join(known)}."
            raise UsageError(msg)
    return [known[name] for name in names]


def _check_ready(folder: Path, families: Iterable[Family]) -> Path:
    missing = sorted(
        name for family in families for name in family.binaries if not os.access(folder / name, os.X_OK)
    )
    if missing:
        msg = (
            f"{BIN_VARIABLE}={folder} lacks these executables: {', '.join(missing)}. "
            f"Unpack a complete bundle there, or unset {BIN_VARIABLE} to build them."
        )
        raise EnvironmentProblem(msg)
    return folder.absolute()


def _build_all(families: Sequence[Family], go: Go, on_progress: OnProgress, niceness: int) -> None:
    for family in families:
        _require_go(family, go)
    total = sum(len(family.binaries) for family in families)
    tools = make_dir(cache_dir() / "tools")

    def on_wait() -> None:
        on_progress(Step("tools", "waiting", 0, total, text="another build of the tools is running"))

    with locked(tools / ".lock", on_wait):
        waiting = [family for family in families if not is_built(family, go)]
        _require_build_space(waiting, tools, go)
        tally = _Tally(on_progress, total, total - sum(len(family.binaries) for family in waiting))
        for family in waiting:
            _build_family(family, go, tally, niceness)


def _require_go(family: Family, go: Go) -> None:
    if go.may_download or _version_numbers(go.version) >= _version_numbers(family.needed_go):
        return
    msg = (
        f"Go {go.version} is too old for the {family.name} tools: Go {family.needed_go} or newer is needed. "
        "Install a newer one from https://go.dev/dl, or set GOTOOLCHAIN=auto so that Go fetches it."
    )
    raise EnvironmentProblem(msg)


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("-", maxsplit=1)[0])[:3])


def _require_build_space(families: Sequence[Family], tools: Path, go: Go) -> None:
    if not families:
        return
    require_space(tools, GIGABYTE, "Keeping the tools")
    # Go's cache holds the most. A warm one needs less, but nobody can tell beforehand how much less.
    needed = max(family.space for family in families)
    populated = (go.build_cache / "00").is_dir()
    require_space(go.build_cache, GIGABYTE if populated else needed, "Building the tools (Go's build cache)")


@dataclass
class _Tally:
    """Counts complete binaries and tells the caller."""

    on_progress: OnProgress
    total: int
    done: int

    def tell(self, subject: str, state: State, *, seconds: float = 0.0, text: str = "") -> None:
        if state in {"finished", "cached"}:
            self.done += 1
        self.on_progress(Step(subject, state, self.done, self.total, seconds, text))


def _build_family(family: Family, go: Go, tally: _Tally, niceness: int) -> None:
    place = make_dir(family_dir(family, go))
    for leftover in place.glob(".*.partial"):
        leftover.unlink()
    for name, package in family.binaries.items():
        if (place / name).is_file():
            tally.tell(name, "cached")
            continue
        begin = time.monotonic()
        tally.tell(name, "started")
        partial = place / f".{name}.partial"
        _go_build(family, package, partial, niceness, _lines(tally, name))
        partial.replace(place / name)
        tally.tell(name, "finished", seconds=time.monotonic() - begin)
    partial = place / f".{_STAMP}.partial"
    partial.write_text(json.dumps({"go": go.version, "binaries": sorted(family.binaries)}))
    partial.replace(place / _STAMP)
    keep_newest(place.parent.glob(f"{family.name}-*"), _KEPT_BUILDS, place)


def _lines(tally: _Tally, subject: str) -> builder.OnLine:
    return lambda line: tally.tell(subject, "output", text=line)


def _go_build(family: Family, package: str, output: Path, niceness: int, on_line: builder.OnLine) -> None:
    command = ["nice", "-n", str(niceness)] if niceness else []
    command += ["go", "build", "-trimpath", "-buildvcs=false"]
    if family.tags:
        command += ["-tags", " ".join(family.tags)]
    command += ["-ldflags", family.ldflags, "-o", str(output), package]
    builder.run(
        command,
        purpose=f"Building {package.rpartition('/')[2]}",
        cwd=family.folder,
        env=_environment(),
        on_line=on_line,
    )


def _environment() -> dict[str, str]:
    # A workspace file or flags of the user's own would build something other than what is pinned.
    return {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}


def _make_view(view: Path, families: Sequence[Family], places: Sequence[Path]) -> None:
    """Lay hard links to all binaries into one folder; they outlive the removal of old builds."""
    if view.is_dir():
        return
    partial = view.with_name(f".{view.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_dir(partial)
    for family, place in zip(families, places, strict=True):
        for name in family.binaries:
            try:
                os.link(place / name, partial / name)
            except OSError:  # a file system without hard links
                (partial / name).symlink_to(place / name)
    partial.rename(view)
    keep_newest(view.parent.glob("bin-*"), _KEPT_VIEWS, view)


def bundle(
    out: Path,
    names: Sequence[str] = GATE_FAMILIES,
    on_progress: OnProgress = silent,
    images: dict[str, Path] | None = None,
) -> None:
    """Pack the binaries, the system programs beside them and image archives as tar.xz."""
    folder = bin_dir(names, on_progress)
    begin = time.monotonic()
    on_progress(Step(out.name, "started", 0, 1))
    packing.pack(
        folder, out, images or {}, lambda line: on_progress(Step(out.name, "output", 0, 1, text=line))
    )
    on_progress(Step(out.name, "finished", 1, 1, time.monotonic() - begin))
