"""The tool builder, against a `go` that only writes down how it was called."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_replicas.cluster import cache, packing, tools
from llm_replicas.cluster.builder import BuildFailed
from llm_replicas.cluster.checkout import checkout
from llm_replicas.cluster.progress import Step
from llm_replicas.errors import EnvironmentProblem, UsageError

GO_MOD = """\
module example.com/tools/fruit

go 1.26.3

require example.com/fruit v1.2.3 // indirect

tool (
	example.com/fruit/cmd/apple
	example.com/fruit/cmd/pear
)
"""

MANIFEST = """\
[fruit]
module = "example.com/fruit"
space_gb = 1
tags = ["no_stone", "no_seed"]
ldflags = "-s -X v.full={version} -X v.major={major} -X v.minor={minor}"

[fruit.binaries]
apple = "example.com/fruit/cmd/apple"
pear = "example.com/fruit/cmd/pear"
"""

FAKE_GO = """\
#!/bin/sh
if [ "$1" = env ]; then
  printf '%s\\n' "go${FAKE_GO_VERSION:-1.26.8}" amd64 "$FAKE_GO_CACHE" "${FAKE_TOOLCHAIN:-local}"
  exit
fi
for last in "$@"; do :; done
printf '%s|' "$CGO_ENABLED" "$GOWORK" "$@" >>"$FAKE_GO_LOG"
echo >>"$FAKE_GO_LOG"
case $last in
  *"${FAKE_GO_BREAKS:-nothing}") echo "${FAKE_GO_SAYS:-undefined: seed}"; exit 1 ;;
  *"${FAKE_GO_HANGS:-nothing}") sleep 20 ;;
esac
sleep "${FAKE_GO_SECONDS:-0}"
while [ "$1" != -o ]; do shift; done
echo "binary of $last" >"$2"
chmod 755 "$2"
"""


@pytest.fixture
def go_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one family, an empty cache, and the fake `go` first in PATH; returns the fake's log."""
    family = tmp_path / "checkout" / "ci" / "tools" / "fruit"
    family.mkdir(parents=True)
    (family / "go.mod").write_text(GO_MOD)
    (family / "go.sum").write_text("sums\n")
    (family.parent / "tools.toml").write_text(MANIFEST)
    (tmp_path / "checkout" / "images").mkdir()
    go = tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(FAKE_GO)
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("LLM_REPLICAS_ROOT", str(tmp_path / "checkout"))
    monkeypatch.setenv("LLM_REPLICAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(tools.BIN_VARIABLE, raising=False)
    monkeypatch.setenv("FAKE_GO_LOG", str(tmp_path / "go.log"))
    monkeypatch.setenv("FAKE_GO_CACHE", str(tmp_path))
    return tmp_path / "go.log"


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


class TestBuilding:
    def test_gives_one_folder_with_every_binary(self, go_log: Path) -> None:
        folder = tools.bin_dir(["fruit"])

        assert sorted(path.name for path in folder.iterdir()) == ["apple", "pear"]
        assert (folder / "pear").read_text() == "binary of example.com/fruit/cmd/pear\n"
        assert os.access(folder / "pear", os.X_OK)

    def test_uses_the_pinned_version_and_reproducible_flags(self, go_log: Path) -> None:
        tools.bin_dir(["fruit"])

        apple = calls(go_log)[0].split("|")
        assert apple[:6] == ["0", "off", "build", "-trimpath", "-buildvcs=false", "-tags"]
        assert "no_stone no_seed" in apple
        assert "-s -X v.full=v1.2.3 -X v.major=1 -X v.minor=2" in apple

    def test_builds_nothing_the_second_time(self, go_log: Path) -> None:
        first = tools.bin_dir(["fruit"])
        before = calls(go_log)

        assert tools.bin_dir(["fruit"]) == first
        assert calls(go_log) == before

    def test_reports_progress(self, go_log: Path) -> None:
        seen: list[Step] = []

        tools.bin_dir(["fruit"], seen.append)

        told = [(step.subject, step.state, step.done, step.total) for step in seen]
        assert told == [
            ("apple", "started", 0, 2),
            ("apple", "finished", 1, 2),
            ("pear", "started", 1, 2),
            ("pear", "finished", 2, 2),
        ]

    def test_resumes_after_the_binary_that_failed(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_GO_BREAKS", "pear")
        with pytest.raises(BuildFailed):
            tools.bin_dir(["fruit"])
        monkeypatch.delenv("FAKE_GO_BREAKS")

        tools.bin_dir(["fruit"])

        built = [call.rstrip("|").rpartition("/")[2] for call in calls(go_log)]
        assert built == ["apple", "pear", "pear"]

    @pytest.mark.parametrize("file", ["go.mod", "go.sum"])
    def test_builds_anew_when_a_pin_changes(self, go_log: Path, file: str) -> None:
        first = tools.bin_dir(["fruit"])
        pins = checkout() / "ci" / "tools" / "fruit" / file
        pins.write_text(pins.read_text() + "// changed\n")

        assert tools.bin_dir(["fruit"]) != first
        assert len(calls(go_log)) == 4

    def test_builds_anew_for_another_go(self, go_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = tools.bin_dir(["fruit"])
        monkeypatch.setenv("FAKE_GO_VERSION", "1.27.0")

        assert tools.bin_dir(["fruit"]) != first

    def test_keeps_the_last_two_builds(self, go_log: Path) -> None:
        sums = checkout() / "ci" / "tools" / "fruit" / "go.sum"
        for text in ("one", "two", "three"):
            sums.write_text(text)
            newest = tools.bin_dir(["fruit"])

        places = list((cache.cache_dir() / "tools").glob("fruit-*"))
        assert len(places) == 2
        assert (newest / "apple").is_file()

    def test_two_at_once_build_each_binary_once(self, go_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAKE_GO_SECONDS", "0.3")
        command = [sys.executable, "-c", "from llm_replicas.cluster.tools import bin_dir; bin_dir(['fruit'])"]

        both = [subprocess.Popen(command) for _ in range(2)]

        assert [process.wait(timeout=30) for process in both] == [0, 0]
        assert len(calls(go_log)) == 2

    def test_an_interrupted_build_leaves_no_process(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_GO_HANGS", "apple")
        program = "from llm_replicas.cluster.tools import bin_dir; bin_dir(['fruit'])"
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not calls(go_log) and time.monotonic() < deadline:
            time.sleep(0.02)  # the fake tells only through its log

        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)

        assert not running(str(go_log.parent))

    def test_a_killed_build_leaves_no_process(self, go_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAKE_GO_HANGS", "apple")
        program = "from llm_replicas.cluster.tools import bin_dir; bin_dir(['fruit'])"
        process = subprocess.Popen([sys.executable, "-c", program])
        deadline = time.monotonic() + 20
        while not calls(go_log) and time.monotonic() < deadline:
            time.sleep(0.02)  # the fake tells only through its log

        process.kill()
        process.wait(timeout=10)
        while running(str(go_log.parent / "path")) and time.monotonic() < deadline:
            time.sleep(0.02)  # the kernel delivers the tether's signal on its own time

        assert not running(str(go_log.parent / "path"))


def running(words: str) -> list[str]:
    """Return the command lines of live processes that contain the words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        if words in line:
            found.append(line)
    return found


class TestRefusals:
    def test_a_failed_build_shows_the_end_of_its_output(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_GO_BREAKS", "pear")

        with pytest.raises(BuildFailed, match=r"(?s)Building pear failed.*undefined: seed") as caught:
            tools.bin_dir(["fruit"])
        assert "go build" in str(caught.value)

    def test_a_full_disk_during_the_build_is_named(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_GO_BREAKS", "apple")
        monkeypatch.setenv("FAKE_GO_SAYS", "write: no space left on device")

        with pytest.raises(EnvironmentProblem, match=r"(?s)disk is full.*LLM_REPLICAS_CACHE"):
            tools.bin_dir(["fruit"])

    def test_a_small_disk_is_refused_before_the_build(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))

        with pytest.raises(EnvironmentProblem, match=r"needs 1\.0 GB .* 0\.0 GB are free"):
            tools.bin_dir(["fruit"])
        assert calls(go_log) == []

    def test_an_old_go_names_the_needed_version(self, go_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FAKE_GO_VERSION", "1.25.9")

        with pytest.raises(EnvironmentProblem, match=r"Go 1\.25\.9 is too old.*Go 1\.26\.3 or newer"):
            tools.bin_dir(["fruit"])

    def test_an_old_go_that_may_fetch_a_newer_one_is_accepted(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE_GO_VERSION", "1.25.9")
        monkeypatch.setenv("FAKE_TOOLCHAIN", "auto")

        assert (tools.bin_dir(["fruit"]) / "apple").is_file()

    def test_no_go_says_which_one_to_install(self, go_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(go_log.parent))

        with pytest.raises(EnvironmentProblem, match=r"no `go` in PATH, and Go 1\.26\.3"):
            tools.bin_dir(["fruit"])

    def test_an_unknown_family_lists_the_known_ones(self, go_log: Path) -> None:
        with pytest.raises(UsageError, match=r"no tool family named 'stone'.*fruit"):
            tools.bin_dir(["stone"])

    def test_a_cache_that_cannot_be_made_names_the_variable(
        self, go_log: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (go_log.parent / "file").touch()
        monkeypatch.setenv("LLM_REPLICAS_CACHE", str(go_log.parent / "file"))

        with pytest.raises(EnvironmentProblem, match="Set LLM_REPLICAS_CACHE"):
            tools.bin_dir(["fruit"])


class TestReadyFolder:
    def test_is_used_as_it_is(self, go_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("apple", "pear"):
            (tmp_path / name).write_text("ready")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv(tools.BIN_VARIABLE, str(tmp_path))

        assert tools.bin_dir(["fruit"]) == tmp_path
        assert calls(go_log) == []

    def test_that_lacks_a_binary_is_refused_by_name(
        self, go_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(tools.BIN_VARIABLE, str(tmp_path))

        with pytest.raises(EnvironmentProblem, match="lacks these executables: apple, pear"):
            tools.bin_dir(["fruit"])


class TestManifest:
    """The repository's own tools.toml."""

    families = tools.load_families()

    @pytest.mark.parametrize("name", families)
    def test_names_exactly_the_tools_that_are_pinned(self, name: str) -> None:
        family = self.families[name]
        pins = (family.folder / "go.mod").read_text()
        block = pins.partition("\ntool ")[2].partition("\n)" if "\ntool (" in pins else "\n")[0]
        pinned = {line.strip("(\t ") for line in block.splitlines() if line.strip("(\t ")}

        assert set(family.binaries.values()) == pinned

    def test_stamps_the_versions_that_users_see(self) -> None:
        assert "version.gitVersion=v1.36." in self.families["kubernetes"].ldflags
        assert "version.gitTreeState=clean" in self.families["kubernetes"].ldflags
        assert "version.version=v4." in self.families["helm"].ldflags
        assert "version.Version=v2." in self.families["containerd"].ldflags

    def test_covers_what_the_gate_needs(self) -> None:
        assert set(tools.GATE_FAMILIES) <= set(self.families)
        assert not any(self.families[name].optional for name in tools.GATE_FAMILIES)


@pytest.mark.skipif(
    any(shutil.which(name, path="/usr/bin:/usr/sbin:/sbin:/bin") is None for name in packing.SYSTEM_PROGRAMS),
    reason="needs the system programs that a bundle packs",
)
class TestBundle:
    def test_runs_from_the_folder_it_was_unpacked_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XZ_OPT", "-0")  # the quickest; the size does not matter here
        binaries = tmp_path / "bin"
        binaries.mkdir()
        (binaries / "apple").write_text("#!/bin/sh\necho apple\n")
        (binaries / "apple").chmod(0o755)
        image = tmp_path / "image.tar"
        image.write_text("layers")
        archive = tmp_path / "out" / "tools.tar.xz"

        packing.pack(binaries, archive, {"router": image}, lambda line: None)

        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path / "host", filter="tar")
        top = tmp_path / "host" / "llm-replicas-tools"
        for command, expected in {
            ("apple",): "apple",
            ("ip", "-V"): "iproute2",
            ("nft", "--version"): "nftables",
            ("runc", "--version"): "runc",
            ("etcd", "--version"): "etcd",
        }.items():
            reply = subprocess.run(
                [str(top / "bin" / command[0]), *command[1:]],
                env={"PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=True,
            )
            assert expected in reply.stdout
        assert (top / "images" / "router.tar").read_text() == "layers"

    def test_leaves_the_c_library_to_the_host(self) -> None:
        names = {path.name for path in packing.libraries_of(Path("/usr/sbin/nft").resolve())}

        assert any(name.startswith("libnftables") for name in names)
        assert not any(name.startswith(("libc.so", "ld-linux")) for name in names)
