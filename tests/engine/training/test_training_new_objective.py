"""A new objective is one entry, and a new form one more with its mathematics; an incomplete one fails at import.

The entries are written into copies of the two modules that hold them; nothing else is edited.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import wrpo_engine
import wrpo_operator
from wrpo_engine.contract import objectives
from wrpo_engine.training.objectives import preference as objective

TRAITS, MATH = "contract/objectives.py", "training/objectives/preference.py"
AFTER_SETTINGS = (
    '    IPO_MEAN = _SettingEntry("ipo_mean", neutral=False, no_effect="it chooses how {forms} reads its log-ratios")\n'
)
AFTER_FORMS = '    IPO = _FormEntry("IPO", needs_reference=True, settings=(Setting.TAU, Setting.IPO_MEAN))\n'
AFTER_OBJECTIVES = '    SFT_ONLY = _ObjectiveEntry("SFTOnly", form=None, has_source=False)\n'
IN_FORMS = "FORMS: Mapping[Form, FormMath] = {\n"

FUSED = '    FUSED = _ObjectiveEntry("Fused", form=Form.DPO, has_source=True)\n'
HINGE = '    HINGE = _ObjectiveEntry("Hinge", form=Form.HINGE, has_source=False)\n'
HINGE_FORM = (
    '    HINGE = _FormEntry("Hinge", needs_reference=True, settings=(Setting.BETA, Setting.GAMMA, Setting.TAU))\n'
)
INVERSE = "        inverse=lambda reading, params: reading.reward / params.beta / reading.length,\n"
HINGE_MATH = f"""    Form.HINGE: FormMath(
        reward=lambda values, lengths, params: scaled(values, params.beta),
        loss=lambda margin, params: (params.gamma - margin).clamp(min=0),
{INVERSE}    ),
"""


def edited(source: str, *changes: tuple[str, str]) -> str:
    """Insert texts behind their anchors."""
    for anchor, text in changes:
        assert source.count(anchor) == 1, anchor
        source = source.replace(anchor, anchor + text)
    return source


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("new-objective")
    for package in (wrpo_engine, wrpo_operator):
        origin = Path(package.__path__[0])
        shutil.copytree(origin, directory / origin.name, ignore=shutil.ignore_patterns("__pycache__"))
    traits, math = (directory / "wrpo_engine" / name for name in (TRAITS, MATH))
    traits.write_text(edited(traits.read_text(), (AFTER_FORMS, HINGE_FORM), (AFTER_OBJECTIVES, FUSED + HINGE)))
    math.write_text(edited(math.read_text(), (IN_FORMS, HINGE_MATH)))
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (directory, here, here.parent, here.parents[1])))
    command = [sys.executable, str(here / "new_objective.py"), str(directory)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path}, cwd=directory)
    loaded: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return loaded


def test_the_api_accepts_it_with_its_settings_and_refuses_those_of_others(result: dict[str, Any]) -> None:
    assert result["accepted"] == [{"server": [], "operator": []}] * 2
    messages = [
        (
            "spec.training: gamma is a margin of the SimPO and Hinge forms; set it to 0 or choose objective "
            "SimPO, Hinge or WRPO-SimPO"
        ),
        "spec.training: ipoMean belongs to the IPO forms; set it to false or choose objective IPO or WRPO-IPO",
        (
            "spec: curation.pairing WithinSource and BestWorst give pairs, and the WRPO objectives need triples; "
            "choose pairing WRPO, or objective DPO, SimPO, IPO or Hinge"
        ),
        (
            "spec: curation.requireSourceBetter compares with source responses, which only the WRPO objectives use; "
            "set it to false or choose a WRPO objective"
        ),
    ]
    assert result["refused"] == [{"server": [text], "operator": [f"{text}."]} for text in messages]


def test_the_operator_passes_it_to_the_engine_which_does_not_read_defaults_as_explicit(result: dict[str, Any]) -> None:
    assert result["needs_source"] == {"Fused": True, "Hinge": False}
    assert result["objective"] == {name: name for name in ("Fused", "Hinge", "DPO", "WRPO-IPO")}


def test_it_is_trained_with_its_loss_and_watched_by_the_divergence_alarm(result: dict[str, Any]) -> None:
    fused, hinge = (result["metrics"][name] for name in ("Fused", "Hinge"))
    # At the first step policy and reference are equal: margins are 0.
    assert fused[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert hinge[0]["loss"] == 0.25
    assert {"alpha", "margin_source", "margin_target"} <= fused[0].keys()
    assert {"alpha", "rewards_source_chosen"}.isdisjoint(hinge[0])
    assert hinge[1]["loss"] != 0.25
    assert (fused[0]["reward_divergence"], fused[-1]["reward_divergence"]) == (0.0, 1.0)
    assert {row["reward_divergence"] for row in hinge} == {0.0}
    # As the other forms: the mean fall of steps 6 to 10 is more than 1 nat per token.
    assert result["watched"] == [0.0] * 9 + [1.0] * 3


def load(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a source text as a module of the package."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102
    return module


OBJECTIVE_OF_HINGE = (AFTER_OBJECTIVES, HINGE)
BRIGHT = '    BRIGHT = _SettingEntry("bright", neutral=1.0, no_effect="only {forms} shines")\n'
INCOMPLETE: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]], str]] = {
    "an objective without a form": (
        [(AFTER_OBJECTIVES, '    TOY = _ObjectiveEntry("Toy", has_source=True)\n')],
        [],
        "missing 1 required positional argument: 'form'",
    ),
    "an objective that does not say whether it has a source": (
        [(AFTER_OBJECTIVES, '    TOY = _ObjectiveEntry("Toy", form=Form.DPO)\n')],
        [],
        "missing 1 required positional argument: 'has_source'",
    ),
    "an objective that is a name only": (
        [(AFTER_OBJECTIVES, '    TOY = "Toy"\n')],
        [],
        "missing 2 required positional arguments: 'form' and 'has_source'",
    ),
    "a form without settings": (
        [(AFTER_FORMS, '    HINGE = _FormEntry("Hinge", needs_reference=True)\n'), OBJECTIVE_OF_HINGE],
        [],
        "missing 1 required positional argument: 'settings'",
    ),
    "a form that no objective has": ([(AFTER_FORMS, HINGE_FORM)], [], "^no objective has Hinge; remove it or give it"),
    "a setting without a reason": (
        [(AFTER_SETTINGS, '    BRIGHT = _SettingEntry("bright", neutral=1.0)\n')],
        [],
        "missing 1 required positional argument: 'no_effect'",
    ),
    "a setting that no objective has": (
        [(AFTER_SETTINGS, BRIGHT)],
        [],
        "^no objective has bright; remove it or give it to one$",
    ),
    "a form without mathematics": (
        [(AFTER_FORMS, HINGE_FORM), OBJECTIVE_OF_HINGE],
        [],
        r"^\['Hinge'\] have no reward, loss and inverse; add them to FORMS$",
    ),
    "mathematics without an inverse": (
        [(AFTER_FORMS, HINGE_FORM), OBJECTIVE_OF_HINGE],
        [(IN_FORMS, HINGE_MATH.replace(INVERSE, ""))],
        "missing 1 required keyword-only argument: 'inverse'",
    ),
    "a setting that is no field of the parameters": (
        [(AFTER_SETTINGS, BRIGHT), (AFTER_FORMS, HINGE_FORM.replace("Setting.TAU", "Setting.BRIGHT")),
         OBJECTIVE_OF_HINGE],
        [(IN_FORMS, HINGE_MATH)],
        r"^TrainParams\.bright must exist and have the default 1\.0$",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("traits", "math", "message"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_a_definition_that_lacks_anything_raises_at_import(
    traits: list[tuple[str, str]], math: list[tuple[str, str]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_both() -> None:
        load(objectives.__name__, edited(source_of(objectives), *traits), monkeypatch)
        load(objective.__name__, edited(source_of(objective), *math), monkeypatch)

    with pytest.raises(TypeError, match=message):
        load_both()


def source_of(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text()


def test_complete_definitions_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = edited(source_of(objectives), (AFTER_FORMS, HINGE_FORM), OBJECTIVE_OF_HINGE)
    load(objectives.__name__, traits, monkeypatch)
    math = load(objective.__name__, edited(source_of(objective), (IN_FORMS, HINGE_MATH)), monkeypatch)
    assert [form.value for form in math.FORMS] == ["Hinge", "DPO", "SimPO", "IPO"]
