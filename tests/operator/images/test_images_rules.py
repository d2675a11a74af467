"""The Containerfiles: pinned bases, an ordinary user, no caches, no shell; and `make image-test` without podman."""

from __future__ import annotations

import configparser
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from wrpo_operator.cli.install import CHECKOUT

FILES = {path.parent.name: path for path in sorted((CHECKOUT / "images").glob("*/Containerfile"))}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments), continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.fixture
def image_test() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_test", CHECKOUT / "images" / "image_test.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_image_for_each_role() -> None:
    assert set(FILES) == {"operator", "sampler", "trainer"}


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_a_base_has_a_version_and_can_be_pinned_by_digest(path: Path) -> None:
    steps = instructions(path)
    arguments = dict(rest.partition("=")[::2] for word, rest in steps if word == "ARG")
    assert re.search(r":[^:/]*\d", arguments["BASE_IMAGE"])
    assert not arguments["BASE_IMAGE"].endswith(":latest")
    assert arguments["BASE_DIGEST"] == ""
    bases = {rest.partition(" AS ")[0] for word, rest in steps if word == "FROM"}
    assert bases == {"${BASE_IMAGE}${BASE_DIGEST}"}


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_it_ends_as_the_user_that_pods_run_as_and_starts_without_a_shell(path: Path) -> None:
    steps = instructions(path)
    assert [rest for word, rest in steps if word == "USER"][-1] == "65532:65532"
    (entry,) = [rest for word, rest in steps if word == "ENTRYPOINT"]
    assert entry.startswith("[")
    assert entry.endswith("]")
    assert steps.index(("USER", "65532:65532")) > max(i for i, (word, _) in enumerate(steps) if word in {"RUN", "COPY"})


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_nothing_is_kept_that_is_only_needed_to_build(path: Path) -> None:
    for word, rest in instructions(path):
        assert word != "ADD"
        if word == "WORKDIR":
            assert rest.startswith("/")
        if word != "RUN":
            continue
        assert not re.search(r"\bsudo\b|curl [^|]*\|", rest)
        for install in re.findall(r"-m pip [^&]*install[^&]*", rest):
            assert "--no-cache-dir" in install
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())
def test_pip_gets_its_settings_as_secrets_that_no_layer_keeps(path: Path) -> None:
    (install,) = [rest for word, rest in instructions(path) if word == "RUN" and re.search(r"-m pip .*install", rest)]
    assert "--mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=pip-ca.pem " in install


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copies = [rest.split()[:-1] for path in FILES.values() for word, rest in instructions(path) if word == "COPY"]
    assert allowed == {source for sources in copies if not sources[0].startswith("--from=") for source in sources}
    assert "*" in lines


def test_the_trainer_leaves_out_pins_that_pip_would_refuse() -> None:
    text = (CHECKOUT / "requirements" / "overrides.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#") and "sys_platform" not in line]
    left_out = re.findall(r"grep -v '\^([\w-]+)=='", FILES["trainer"].read_text(encoding="utf-8"))
    assert left_out == [re.split(r"[<>=]", line)[0] for line in lines]


def test_the_operators_image_installs_nothing_of_training() -> None:
    text = FILES["operator"].read_text(encoding="utf-8")
    assert '".[operator]"' in text
    assert "--constraint constraints.txt" in text
    assert "[engine]" not in text


def test_without_a_builder_the_image_test_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "images" / "image_test.py")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs buildah or podman" in done.stderr
    assert "Nothing was built or tested." in done.stderr


def test_the_build_asks_the_registry_that_pip_asks_here(
    image_test: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = """:env:.cert='/etc/ours.pem'
global.cert='/etc/other.pem'
global.constraint='/etc/constraints.txt'
global.extra-index-url='file:///srv/simple https://b.example/simple'
global.find-links='/srv/wheels'
global.index-url='https://user:word@a.example/simple'
"""
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, stdout=listed, stderr="")
    )
    flags = image_test.pip_settings(tmp_path)
    file = tmp_path / "pip.conf"
    assert flags == ["--secret", "id=pip-ca.pem,src=/etc/ours.pem", "--secret", f"id=pip.conf,src={file}"]
    assert file.stat().st_mode & 0o777 == 0o600
    settings = configparser.RawConfigParser()
    settings.read_string(file.read_text(encoding="utf-8"))
    assert dict(settings["global"]) == {
        "extra-index-url": "https://b.example/simple",
        "index-url": "https://user:word@a.example/simple",
        "cert": "/run/secrets/pip-ca.pem",
    }
