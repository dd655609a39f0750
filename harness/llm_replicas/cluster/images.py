"""Builds the project's images without a registry, from their real Containerfiles, into archives in the cache.

An archive is named after the digest of everything it is made of, so an unchanged image costs nothing.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.cluster import builder, debian, hostsettings
from llm_replicas.cluster.buildah import Buildah
from llm_replicas.cluster.cache import (
    GIGABYTE,
    cache_dir,
    digest_of,
    digest_of_folder,
    keep_newest,
    locked,
    make_dir,
    require_space,
)
from llm_replicas.cluster.checkout import checkout
from llm_replicas.cluster.progress import OnProgress, Step, silent
from llm_replicas.cluster.tools import BIN_VARIABLE
from llm_replicas.errors import EnvironmentProblem, UsageError

STANDIN_IMAGE = "localhost/llm-replicas-standin:dev"
ROUTER_IMAGE = "localhost/llm-replicas-envoy:dev"
PAUSE_IMAGE = "localhost/llm-replicas-pause:1"

_KEPT_ARCHIVES = 2
_SPACE = 4 * GIGABYTE
_STORAGE_LIMIT = 8 * GIGABYTE
#: Names the key of the base that the storage holds.
_COMMITTED = "base.committed"
_KUBERNETES_PINS = Path("ci/tools/kubernetes/go.mod")


@dataclass(frozen=True)
class Image:
    """One folder under images/ and the reference that its build gets."""

    name: str
    reference: str
    on_debian: bool = True
    #: Writes files that the Containerfile copies and that are not in the folder.
    prepare: Callable[[Path, Path], None] | None = None


def _compile_pause(root: Path, context: Path) -> None:
    """Compile the pinned Kubernetes module's pause program into the build's folder."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        msg = "Cannot build the pause image: no C compiler. Install one with: apt-get install gcc libc6-dev"
        raise EnvironmentProblem(msg)
    pins = root / _KUBERNETES_PINS.parent
    where = ["go", "mod", "download", "k8s.io/kubernetes"]
    builder.run(where, purpose="Fetching the Kubernetes module", cwd=pins, env=_go_environment())
    listing = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"],
        cwd=pins,
        env=_go_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    source = Path(listing.stdout.strip()) / "build" / "pause" / "linux" / "pause.c"
    command = [compiler, "-Os", "-Wall", "-static", "-s", "-o", str(context / "pause"), str(source)]
    builder.run(command, purpose="Compiling pause")


def _go_environment() -> dict[str, str]:
    return {**os.environ, "GOWORK": "off"}


IMAGES = {
    image.name: image
    for image in (
        Image("standin", STANDIN_IMAGE),
        Image("router", ROUTER_IMAGE),
        Image("pause", PAUSE_IMAGE, on_debian=False, prepare=_compile_pause),
    )
}


def image_key(image: Image, root: Path) -> str:
    """Return the digest of everything an image is made of."""
    folder = root / "images" / image.name
    if not (folder / "Containerfile").is_file():
        msg = f"There is no {folder / 'Containerfile'}: this checkout cannot build the image {image.name}."
        raise EnvironmentProblem(msg)
    parts = [image.reference, digest_of_folder(folder)]
    if image.on_debian:
        parts.append(debian.key())
    if image.prepare is not None:
        parts.append((root / _KUBERNETES_PINS).read_text())
    return digest_of(*(part.encode() for part in parts))


def archive_path(name: str) -> Path:
    """Return where the archive of an image lies once it is built."""
    image = _named(name)
    return cache_dir() / "images" / f"{image.name}-{image_key(image, checkout())}.tar"


def build_image(name: str, on_progress: OnProgress = silent) -> Path:
    """Return the image's docker archive, building it first if it is not in the cache."""
    image = _named(name)
    packed = _packed_archive(name)
    if packed is not None:
        on_progress(Step(image.reference, "cached", 1, 1))
        return packed
    archive = archive_path(name)
    if archive.is_file():
        archive.touch()  # the newest stay, and this one is in use
        on_progress(Step(image.reference, "cached", 1, 1))
        return archive
    _require_root()
    folder = make_dir(archive.parent)

    def on_wait() -> None:
        on_progress(Step(image.reference, "waiting", 0, 1, text="another build holds the image storage"))

    with locked(folder / ".lock", on_wait):
        if not archive.is_file():
            require_space(folder, _SPACE, f"Building {image.reference}")
            _build(image, archive, on_progress)
        keep_newest(folder.glob(f"{image.name}-*.tar"), _KEPT_ARCHIVES, archive)
    return archive


def _packed_archive(name: str) -> Path | None:
    """Return the archive that came in the bundle whose tools are in use, if there is one."""
    folder = os.environ.get(BIN_VARIABLE)
    archive = Path(folder).absolute().parent / "images" / f"{name}.tar" if folder else None
    return archive if archive is not None and archive.is_file() else None


def _build(image: Image, archive: Path, on_progress: OnProgress) -> None:
    begin = time.monotonic()
    on_progress(Step(image.reference, "started", 0, 1))

    def on_line(line: str) -> None:
        on_progress(Step(image.reference, "output", 0, 1, time.monotonic() - begin, line))

    _limit_storage(archive.parent)
    storage = Buildah(archive.parent / "storage")
    storage.drop_leftovers()
    with tempfile.TemporaryDirectory(prefix="llm-replicas-image-") as scratch_name:
        scratch = Path(scratch_name)
        if image.on_debian:
            _ensure_base(storage, archive.parent, scratch, on_line)
        with _context(image, scratch) as context:
            mounts = hostsettings.build_mounts(scratch) if image.on_debian else []
            ignore = checkout() / "images" / ".containerignore"
            storage.build(context, image.reference, mounts=mounts, ignore=ignore, on_line=on_line)
    with _written_whole(archive) as partial:
        storage.export(image.reference, partial)
    on_progress(Step(image.reference, "finished", 1, 1, time.monotonic() - begin))


def _limit_storage(folder: Path) -> None:
    """Start the layer cache afresh once the layers of past versions have piled up."""
    layers = folder / "storage" / "root"
    size = sum(path.lstat().st_size for path in layers.rglob("*")) if layers.is_dir() else 0
    if size > _STORAGE_LIMIT:
        (folder / _COMMITTED).unlink(missing_ok=True)
        shutil.rmtree(layers)


def _ensure_base(storage: Buildah, folder: Path, scratch: Path, on_line: builder.OnLine) -> None:
    """Put the Debian base under its publisher's name into the storage, unless it is there."""
    key = debian.key()
    tar = folder / f"base-{key}.tar"
    committed = folder / _COMMITTED
    if committed.is_file() and committed.read_text() == key:
        return
    if not tar.is_file():
        with _written_whole(tar) as partial:
            debian.build(partial, hostsettings.apt_settings(), on_line=on_line)
    context = make_dir(scratch / "base")
    (context / "Containerfile").write_text('FROM scratch\nADD base.tar /\nCMD ["bash"]\n')
    shutil.copy(tar, context / "base.tar")
    committed.unlink(missing_ok=True)
    storage.build(context, debian.REFERENCE, on_line=on_line)
    committed.write_text(key)
    keep_newest(folder.glob("base-*.tar"), 1, tar)


@contextmanager
def _context(image: Image, scratch: Path) -> Iterator[Path]:
    """Yield the folder to build: the image's own, or a copy with what its Containerfile still needs."""
    root = checkout()
    folder = root / "images" / image.name
    if image.prepare is None:
        yield folder
        return
    copy = scratch / "context"
    shutil.copytree(folder, copy)
    image.prepare(root, copy)
    yield copy


@contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to it only when the block succeeds."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _named(name: str) -> Image:
    if name not in IMAGES:
        msg = f"There is no image named {name!r}. The images are: {', '.join(IMAGES)}."
        raise UsageError(msg)
    return IMAGES[name]


def _require_root() -> None:
    if os.geteuid() != 0:
        msg = "Building images needs root (it mounts file systems). Run the command as root."
        raise EnvironmentProblem(msg)
