"""One version: every file that writes it agrees, and a release changes all of them by one command."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.version import Version

from scripts import version
from wrpo_engine import __version__
from wrpo_operator.render.settings import RenderSettings


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for files in version.PLACES:
        for path in version.ROOT.glob(files):
            copy = tmp_path / path.relative_to(version.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return tmp_path


def test_every_place_has_the_version_of_the_source() -> None:
    assert version.differing() == []
    assert version.current() == __version__


def test_what_is_derived_has_it_too() -> None:
    assert importlib.metadata.version("wrpo") == str(Version(__version__))
    settings = RenderSettings()
    assert (settings.sampler_image, settings.trainer_image) == (
        f"wrpo/sampler:{__version__}",
        f"wrpo/trainer:{__version__}",
    )


def test_the_wheel_holds_the_markers_of_typed_packages() -> None:
    builder = WheelBuilder(str(version.ROOT))
    assert builder.metadata.version == str(Version(__version__))
    files = {included.distribution_path for included in builder.recurse_included_files()}
    assert {"wrpo_operator/py.typed", "wrpo_devcluster/py.typed", "wrpo_engine/py.typed"} <= files


def test_no_other_file_names_an_image_with_its_version() -> None:
    command = ["git", "-C", str(version.ROOT), "grep", "-lE", "wrpo/(operator|sampler|trainer):[0-9]"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    known = {str(path.relative_to(version.ROOT)) for files in version.PLACES for path in version.ROOT.glob(files)}
    assert set(listing.stdout.split()) - known == set()


def test_a_place_that_differs_is_named(checkout: Path) -> None:
    chart = checkout / "charts" / "wrpo-operator" / "Chart.yaml"
    chart.write_text(re.sub(r"^version: .*$", "version: 9.9.9", chart.read_text(encoding="utf-8"), flags=re.MULTILINE))
    message = (
        f"charts/wrpo-operator/Chart.yaml:5: version 9.9.9, but wrpo_engine/__init__.py has {__version__}; "
        f"run scripts/version.py --set {__version__}"
    )
    assert version.differing(checkout) == [message]


def test_a_new_version_is_written_everywhere(checkout: Path) -> None:
    before = [(path, line) for path, line, _ in version.mentions(checkout)]
    version.write("1.20.0-rc.1", checkout)
    assert [(path, line) for path, line, _ in version.mentions(checkout)] == before
    assert {found for *_, found in version.mentions(checkout)} == {"1.20.0-rc.1"}


def test_a_place_without_a_version_is_an_error(checkout: Path) -> None:
    (checkout / "examples" / "quickstart-assets.yaml").write_text("")
    with pytest.raises(ValueError, match=r"^examples/quickstart-assets\.yaml: no version by the pattern .*"):
        version.differing(checkout)


def test_a_version_that_is_not_semantic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--set v1: must be a semantic version such as 0\.2\.0 or 0\.2\.0-rc\.1$"):
        version.write("v1")
