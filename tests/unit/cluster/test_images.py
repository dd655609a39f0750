"""Image archives: when they are built, what they are made of, and how a build reaches registries."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_replicas.cluster import builder, debian, hostsettings, images
from llm_replicas.cluster.buildah import Buildah, Mount
from llm_replicas.cluster.progress import Step
from llm_replicas.errors import EnvironmentProblem, UsageError

REAL_BUILD = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name) for name in ("buildah", "go", "cc")),
    reason="needs root, buildah, go and a C compiler",
)


class RecordingStorage:
    """Stands in for buildah: remembers what was asked, and writes an archive."""

    built: list[str]
    contexts: list[list[str]]
    fails = False

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def build(
        self,
        context: Path,
        reference: str,
        *,
        mounts: Sequence[Mount] = (),
        ignore: Path | None = None,
        on_line: builder.OnLine = lambda line: None,
    ) -> None:
        self.built.append(reference)
        self.contexts.append(sorted(path.name for path in context.iterdir()))
        on_line("STEP 1/2")

    def export(self, reference: str, archive: Path) -> None:
        archive.write_text("half of it")
        if self.fails:
            raise builder.BuildFailed("export failed")
        archive.write_text(reference)

    def drop_leftovers(self) -> None: ...


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[RecordingStorage]:
    """A checkout with a router image, an empty cache, and no real buildah."""
    root = tmp_path / "checkout"
    (root / "images" / "router").mkdir(parents=True)
    (root / "images" / "router" / "Containerfile").write_text("FROM base\n")
    (root / "ci" / "tools" / "kubernetes").mkdir(parents=True)
    (root / "ci" / "tools" / "tools.toml").touch()
    (root / "ci" / "tools" / "kubernetes" / "go.mod").write_text("pins")
    monkeypatch.setenv("LLM_REPLICAS_ROOT", str(root))
    monkeypatch.setenv("LLM_REPLICAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLM_REPLICAS_BIN", raising=False)

    class Storage(RecordingStorage):
        built: list[str] = []  # noqa: RUF012  # a fresh class for each test
        contexts: list[list[str]] = []  # noqa: RUF012

    def make_base(tar: Path, apt_settings: str, *, on_line: builder.OnLine) -> None:
        tar.write_text("base")

    monkeypatch.setattr(images, "Buildah", Storage)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(debian, "build", make_base)
    monkeypatch.setattr(hostsettings, "build_mounts", lambda scratch: [])
    return Storage


def containerfile() -> Path:
    return Path(os.environ["LLM_REPLICAS_ROOT"]) / "images" / "router" / "Containerfile"


class TestArchive:
    def test_is_built_on_the_base_and_carries_the_reference(self, storage: type[RecordingStorage]) -> None:
        archive = images.build_image("router")

        assert storage.built == [debian.REFERENCE, images.ROUTER_IMAGE]
        assert archive.read_text() == images.ROUTER_IMAGE

    def test_is_found_again_without_building(self, storage: type[RecordingStorage]) -> None:
        first = images.build_image("router")
        seen: list[Step] = []

        assert images.build_image("router", seen.append) == first
        assert storage.built.count(images.ROUTER_IMAGE) == 1
        assert [step.state for step in seen] == ["cached"]

    def test_is_built_anew_when_a_file_changes_but_the_base_is_not(
        self, storage: type[RecordingStorage]
    ) -> None:
        first = images.build_image("router")
        containerfile().write_text("FROM base\nUSER 1\n")

        assert images.build_image("router") != first
        assert storage.built == [debian.REFERENCE, images.ROUTER_IMAGE, images.ROUTER_IMAGE]

    def test_is_built_anew_when_a_file_becomes_executable(self, storage: type[RecordingStorage]) -> None:
        first = images.archive_path("router")
        containerfile().chmod(0o755)

        assert images.archive_path("router") != first

    def test_ignores_compiled_python(self, storage: type[RecordingStorage]) -> None:
        first = images.archive_path("router")
        compiled = containerfile().parent / "__pycache__"
        compiled.mkdir()
        (compiled / "engine.pyc").write_text("bytes")

        assert images.archive_path("router") == first

    def test_appears_only_when_it_is_whole(
        self, storage: type[RecordingStorage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "fails", True)
        with pytest.raises(builder.BuildFailed):
            images.build_image("router")

        folder = images.archive_path("router").parent
        assert not list(folder.glob("*router*"))

    def test_of_the_last_two_versions_is_kept(self, storage: type[RecordingStorage]) -> None:
        for text in ("one", "two", "three"):
            containerfile().write_text(text)
            newest = images.build_image("router")

        archives = list(newest.parent.glob("router-*.tar"))
        assert len(archives) == 2
        assert newest in archives

    def test_of_a_bundle_is_used_instead_of_building(
        self, storage: type[RecordingStorage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "bundle" / "images").mkdir(parents=True)
        (tmp_path / "bundle" / "images" / "router.tar").write_text("packed")
        monkeypatch.setenv("LLM_REPLICAS_BIN", str(tmp_path / "bundle" / "bin"))

        assert images.build_image("router").read_text() == "packed"
        assert storage.built == []


class TestRefusals:
    def test_an_unknown_image_lists_the_known_ones(self) -> None:
        with pytest.raises(UsageError, match=r"no image named 'envoy'.*standin, router, pause"):
            images.build_image("envoy")

    def test_a_checkout_without_the_folder_is_named(self, storage: type[RecordingStorage]) -> None:
        with pytest.raises(EnvironmentProblem, match=r"images/standin/Containerfile"):
            images.build_image("standin")

    def test_building_without_root_is_refused(
        self, storage: type[RecordingStorage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)

        with pytest.raises(EnvironmentProblem, match="needs root"):
            images.build_image("router")

    def test_no_c_compiler_names_the_package(
        self, storage: type[RecordingStorage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pause = Path(os.environ["LLM_REPLICAS_ROOT"]) / "images" / "pause"
        pause.mkdir()
        (pause / "Containerfile").write_text("FROM scratch\n")
        monkeypatch.setattr("shutil.which", lambda name: None)

        with pytest.raises(EnvironmentProblem, match=r"no C compiler.*apt-get install gcc"):
            images.build_image("pause")

    def test_no_buildah_names_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(EnvironmentProblem, match="apt-get install buildah"):
            Buildah(tmp_path / "storage")


class TestHostSettings:
    """A build reaches registries the way the host does."""

    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def test_the_hosts_certificates_are_mounted_and_named_to_pip(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = tmp_path / "authority.pem"
        bundle.touch()
        monkeypatch.setenv("PIP_CERT", str(bundle))

        mounts = {mount.target: mount.source for mount in hostsettings.build_mounts(tmp_path)}

        assert mounts["/etc/ssl/build-host.pem"] == bundle
        assert "cert = /etc/ssl/build-host.pem" in mounts["/etc/pip.conf"].read_text()

    def test_the_hosts_package_index_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")

        assert "index-url = https://mirror.example/simple" in hostsettings.pip_settings()

    def test_a_plain_host_gives_pip_no_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in [name for name in os.environ if name.startswith("PIP_")]:
            if variable != "PIP_CONFIG_FILE":
                monkeypatch.delenv(variable)

        assert hostsettings.pip_settings() == "[global]\n"

    def test_only_apts_lines_about_reaching_mirrors_are_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = tmp_path / "apt-config"
        fake.write_text(
            "#!/bin/sh\n"
            "cat <<'END'\n"
            'Acquire "";\n'
            'Acquire::http::Proxy "http://cache.example:3142";\n'
            'Acquire::Check-Valid-Until "false";\n'
            'Acquire::IndexTargets::deb::Packages::MetaKey "$(COMPONENT)/binary";\n'
            'Acquire::https::Verify-Peer "";\n'
            "END\n"
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

        assert hostsettings.apt_settings().splitlines() == [
            'Acquire::http::Proxy "http://cache.example:3142";',
            'Acquire::Check-Valid-Until "false";',
        ]


class TestDebianSources:
    """The base image comes from the mirror that the host uses for the same release."""

    def test_are_read_from_the_new_style(self) -> None:
        text = (
            "Types: deb\nURIs: http://mirror.example/debian\n"
            "Suites: bookworm bookworm-updates trixie\nComponents: main contrib\n"
            "\n"
            "Types: deb\nEnabled: no\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n"
        )

        assert debian.new_style_sources(text) == [
            "deb http://mirror.example/debian bookworm main",
            "deb http://mirror.example/debian bookworm-updates main",
        ]

    def test_are_read_from_the_old_style(self) -> None:
        text = (
            "# deb http://off.example bookworm main\n"
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n"
            "deb-src http://mirror.example/debian bookworm main\n"
            "deb http://vendor.example stable main\n"
        )

        assert debian.old_style_sources(text) == ["deb http://mirror.example/debian bookworm main"]


@pytest.mark.cluster
@REAL_BUILD
class TestRealBuild:
    def test_of_the_pause_image_leaves_no_mount(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_REPLICAS_CACHE", str(tmp_path))
        monkeypatch.delenv("LLM_REPLICAS_BIN", raising=False)

        archive = images.build_image("pause")

        listing = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout
        assert "manifest.json" in listing
        assert archive.stat().st_size < 2_000_000
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()

    def test_interrupted_leaves_no_mount_and_no_process(self, tmp_path: Path) -> None:
        program = (
            "from llm_replicas.cluster import builder, buildah\n"
            f"inside = 'cd {tmp_path}; mount -t tmpfs none . && touch $PWD/mounted; echo up; '\n"
            "inside += 'exec sleep 61.5'\n"
            "command = [*buildah.NAMESPACES, 'sh', '-c', inside]\n"
            "builder.run(command, purpose='test', on_line=lambda line: print(line, flush=True))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        mounted_outside = (tmp_path / "mounted").exists()

        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)

        deadline = time.monotonic() + 5
        while sleepers() and time.monotonic() < deadline:
            time.sleep(0.02)  # the kernel ends the namespace's processes on its own time
        assert not mounted_outside
        assert not sleepers()
        assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def sleepers() -> list[Path]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes() == b"sleep\x0061.5\x00":
                found.append(entry)
        except OSError:  # gone meanwhile
            continue
    return found
