"""The Containerfiles: pinned bases, an ordinary user, no caches, no shell; `make image-test` without its tools."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wrpo_operator.cli.install import CHECKOUT

FILES = {path.parent.name: path for path in sorted((CHECKOUT / "images").glob("*/Containerfile"))}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments), continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


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
        for install in re.findall(r"pip install[^&]*", rest):
            assert "--no-cache-dir" in install
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


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
