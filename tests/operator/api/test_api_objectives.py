"""The entries of the objectives: each complete, and everything that is said of them elsewhere follows from them."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_engine.config import TrainParams
from wrpo_engine.contract.objectives import (
    Form,
    Objective,
    Setting,
    listed,
    no_effect_reason,
    objectives_of_pairs,
    objectives_that_have,
    refusal_sentence,
)
from wrpo_operator.api.rules import RULES
from wrpo_operator.api.spec import Training


def test_the_traits_are_those_of_the_paper() -> None:
    with_source = [objective.value for objective in Objective if objective.has_source]
    without_reference = [form.value for form in Form if not form.needs_reference]
    assert (with_source, without_reference) == (["WRPO-DPO", "WRPO-SimPO", "WRPO-IPO"], ["SimPO"])
    assert {objective.value: objective.settings for objective in Objective} == {
        "WRPO-DPO": ("alpha", "beta", "label_smoothing", "length_normalized"),
        "WRPO-SimPO": ("alpha", "beta", "gamma"),
        "WRPO-IPO": ("alpha", "tau", "ipo_mean"),
        "DPO": ("beta", "label_smoothing", "length_normalized"),
        "SimPO": ("beta", "gamma"),
        "IPO": ("tau", "ipo_mean"),
        "SFTOnly": (),
    }
    assert objectives_of_pairs() == ("DPO", "SimPO", "IPO")
    assert objectives_that_have(Setting.BETA) == ("DPO", "SimPO", "WRPO-DPO", "WRPO-SimPO")


@pytest.mark.parametrize("setting", Setting)
@pytest.mark.parametrize("model", [TrainParams, Training])
def test_the_neutral_value_of_a_setting_is_the_default_of_its_field(model: type[Any], setting: Setting) -> None:
    default = model.model_fields[setting].default
    written = default.model_dump(mode="json") if setting is Setting.ALPHA else default
    assert (written, type(written)) == (setting.neutral, type(setting.neutral))


SENTENCES = {
    Setting.BETA: "Refused in the IPO forms unless 0.01.",
    Setting.GAMMA: "Refused with other objectives unless 0.",
    Setting.TAU: "Refused with other objectives unless 0.1.",
    Setting.LABEL_SMOOTHING: "Refused with other objectives unless 0.",
    Setting.LENGTH_NORMALIZED: "Refused with other objectives.",
    Setting.IPO_MEAN: "Refused with other objectives.",
}


@pytest.mark.parametrize("setting", [setting for setting in Setting if setting is not Setting.ALPHA])
def test_the_description_of_a_field_says_which_objectives_refuse_it(setting: Setting) -> None:
    description = Training.model_fields[setting].description
    assert description is not None
    assert refusal_sentence(setting) == SENTENCES[setting]
    assert description.endswith(refusal_sentence(setting))
    own = [form for form in Form if setting in form.settings]
    assert all(f"{form} forms" in description for form in own) or "other objectives" not in description


def test_the_reasons_name_the_forms_that_have_a_setting() -> None:
    assert {setting.value: no_effect_reason(setting) for setting in Setting} == {
        "alpha": "it weighs the source response, which only the WRPO objectives have",
        "beta": "only the DPO and SimPO forms scale their reward by it",
        "gamma": "only the SimPO forms have a target margin",
        "label_smoothing": "only the DPO forms define it",
        "tau": "only the IPO forms have it",
        "length_normalized": "it belongs to the DPO forms; SimPO is always normalised",
        "ipo_mean": "it chooses how IPO reads its log-ratios",
    }


def test_every_setting_has_one_rule_of_the_api() -> None:
    fields = [rule.message.split()[0] for rule in RULES if rule.models == (Training,)]
    assert fields == ["alpha", "beta", "gamma", "labelSmoothing", "tau", "lengthNormalized", "ipoMean"]


def test_names_are_listed_as_in_a_sentence() -> None:
    assert [listed(names, "or") for names in ((), ("a",), ("a", "b"), ("a", "b", "c"))] == [
        "",
        "a",
        "a or b",
        "a, b or c",
    ]
