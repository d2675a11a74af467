"""The release's version: `wrpo_engine/__init__.py` holds it, and every other file that must write it agrees.

    python scripts/version.py              prints it
    python scripts/version.py --check      names every place that differs
    python scripts/version.py --set 0.2.0  writes a new one everywhere

The distribution's metadata and the operator's default images are derived from the source and are not listed here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("wrpo_engine/__init__.py")
VERSION = r"(?P<version>\d+\.\d+\.\d+(?:-[0-9A-Za-z.]+)?)"
IMAGE = rf"\bwrpo/(?:operator|sampler|trainer):{VERSION}"

PLACES: Mapping[str, Sequence[str]] = {
    str(SOURCE): [rf'^__version__ = "{VERSION}"$'],
    "charts/wrpo-operator/Chart.yaml": [rf"^version: {VERSION}$", rf'^appVersion: "{VERSION}"$'],
    "charts/wrpo-operator/values.yaml": [IMAGE],
    "charts/wrpo-operator/README.md": [IMAGE],
    "examples/quickstart-assets.yaml": [IMAGE],
    "images/*/Containerfile": [IMAGE],
    "tests/operator/render/golden/*.yaml": [IMAGE],
}
"""Pattern of files: the patterns by which each group of files must hold the version at least once."""


def current(root: Path = ROOT) -> str:
    """Return the version that the source holds."""
    return next(version for path, _, version in mentions(root) if path == SOURCE)


def mentions(root: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield (file, line, version) of every place.

    Raises ValueError for a pattern that finds none, because the version would be forgotten there.
    """
    for files, patterns in PLACES.items():
        for pattern in patterns:
            found = [
                (path.relative_to(root), text.count("\n", 0, match.start()) + 1, match["version"])
                for path in sorted(root.glob(files))
                for text in [path.read_text(encoding="utf-8")]
                for match in re.finditer(pattern, text, re.MULTILINE)
            ]
            if not found:
                raise ValueError(f"{files}: no version by the pattern {pattern}; correct PLACES in scripts/version.py")
            yield from found


def differing(root: Path = ROOT) -> list[str]:
    """Return a message for each place whose version is not that of the source."""
    version = current(root)
    return [
        f"{path}:{line}: version {found}, but {SOURCE} has {version}; run scripts/version.py --set {version}"
        for path, line, found in mentions(root)
        if found != version
    ]


def write(version: str, root: Path = ROOT) -> None:
    """Write the version to every place; ValueError if it is not a semantic version."""
    if re.fullmatch(VERSION, version) is None:
        raise ValueError(f"--set {version}: must be a semantic version such as 0.2.0 or 0.2.0-rc.1")
    for files, patterns in PLACES.items():
        for path in root.glob(files):
            text = path.read_text(encoding="utf-8")
            for pattern in patterns:
                text = re.sub(pattern, lambda m: m[0].replace(m["version"], version), text, flags=re.MULTILINE)
            path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, check or set the version; return 1 if places differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="name every place that differs")
    parser.add_argument("--set", metavar="VERSION", help="write this version to every place")
    options = parser.parse_args(arguments)
    if options.set:
        write(options.set)
    problems = differing() if options.check or options.set else []
    print("\n".join(problems) or current())
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
