"""Test of the operator's image for `make image-test`: build it twice, and run an experiment in it.

Needs buildah or podman to build, and podman to run. WRPO_BASE_IMAGE names another base image, which needs Python 3.11
with its venv module. WRPO_BUILD_FLAGS holds further flags of the build and WRPO_CONTAINER_FLAGS of `podman run`, for
machines that need them. The build's pip uses the same registry as pip here, but sees no directory of this machine.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "localhost/wrpo/operator:image-test"
AGAIN = f"{IMAGE}-again"
CA_FILE = "/run/secrets/pip-ca.pem"
SOURCES = ("extra-index-url", "find-links", "index-url", "proxy", "trusted-host")
"""pip's settings of package sources, in addition to `cert`."""
LOOK_INSIDE = """
import importlib.util, json, os, pathlib, shutil
files = [path for path in pathlib.Path('/opt/wrpo').rglob('*') if path.is_file() and not path.is_symlink()]
print(json.dumps({
    'user': [os.getuid(), os.getgid()],
    'modules': [name for name in ('torch', 'vllm', 'deepspeed', 'pip') if importlib.util.find_spec(name)],
    'programs': [name for name in ('pip', 'pip3', 'cc', 'gcc') if shutil.which(name)],
    'of the build': [name for name in ('/src', '/etc/pip.conf', '/run/secrets', '/opt/pip') if os.path.exists(name)],
}), sum(path.stat().st_size for path in files))
"""


def main() -> None:
    """Build, inspect and run the image; exit with a message for the first step that fails or cannot run here."""
    builder = shutil.which("buildah") or shutil.which("podman")
    podman = shutil.which("podman")
    if builder is None or podman is None:
        missing = "buildah or podman" if builder is None else "podman"
        sys.exit(f"image-test needs {missing}, which this machine lacks. Nothing was built or tested.")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        settings = pip_settings(Path(directory))
        build(builder, IMAGE, settings)
        built_s = time.monotonic() - began
        build(builder, AGAIN, [*settings, "--no-cache"])
    image = inspect(podman, IMAGE)
    if inspect(podman, AGAIN)["Id"] != image["Id"]:
        sys.exit(f"a second build from the same inputs produced a different image: compare {IMAGE} and {AGAIN}")
    # With the name given only once, podman would remove the image's other names too.
    subprocess.run([podman, "untag", AGAIN, AGAIN], check=True)
    own = look_inside()
    e2e = [sys.executable, "scripts/e2e.py", "--pods", "simulated", "--operator-container", IMAGE]
    if subprocess.run(e2e, cwd=ROOT, check=False).returncode:
        sys.exit("the experiment failed with the operator from the image")
    print(f"{IMAGE}: {image['Size'] / 1e6:.0f} MB, {own / 1e6:.0f} MB of them in /opt/wrpo; built in {built_s:.0f} s")
    print("A second build without the cache gave the same image. It holds neither torch nor pip, runs as 65532 with a")
    print("read-only root file system, and has run a whole experiment on the embedded control plane.")


def pip_settings(directory: Path) -> list[str]:
    """Return flags by which the build's pip uses this machine's registry; the image keeps none of them."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found: dict[str, str] = {}
    # Sorted: the environment's lines are first and take precedence.
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        found.setdefault(name.rpartition(".")[2], str(ast.literal_eval(value)))
    settings = {}
    for name in SOURCES:
        places = [place for place in found.get(name, "").split() if not place.startswith(("/", "file:"))]
        if places:
            settings[name] = " ".join(places)
    flags = []
    authority = found.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    if authority:
        settings["cert"] = CA_FILE
        flags = ["--secret", f"id={Path(CA_FILE).name},src={authority}"]
    file = directory / "pip.conf"
    file.touch(mode=0o600)
    lines = [f"{name} = {value}" for name, value in settings.items()]
    file.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    return [*flags, "--secret", f"id=pip.conf,src={file}"]


def build(builder: str, image: str, flags: list[str]) -> None:
    """Build from the checkout. Files get the date of the last commit, so that equal inputs give equal images."""
    base = os.environ.get("WRPO_BASE_IMAGE")
    arguments = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    stamp = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    # Layers name the images they come from, in which buildah and podman differ.
    arguments += ["--layers=false", "--timestamp", stamp or "0"]
    extra = shlex.split(os.environ.get("WRPO_BUILD_FLAGS", ""))
    file = "images/operator/Containerfile"
    subprocess.run([builder, "build", *flags, *extra, *arguments, "-f", file, "-t", image, "."], cwd=ROOT, check=True)


def inspect(podman: str, image: str) -> dict[str, Any]:
    """Return podman's facts about an image; CalledProcessError if there is none of this name."""
    (found,) = json.loads(subprocess.run([podman, "image", "inspect", image], capture_output=True, check=True).stdout)
    return dict(found)


def look_inside() -> int:
    """Fail unless the image runs as an ordinary user and holds only what it should; return the bytes of /opt/wrpo."""
    sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "operator")]
    from local_operator import podman_run

    command = podman_run("--entrypoint", "python", IMAGE, "-c", LOOK_INSIDE)
    found, _, size = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.rpartition(" ")
    wanted = {"user": [65532, 65532], "modules": [], "programs": [], "of the build": []}
    if json.loads(found) != wanted:
        sys.exit(f"in the image there is {found} but there should be {json.dumps(wanted)}")
    return int(size)


if __name__ == "__main__":
    main()
