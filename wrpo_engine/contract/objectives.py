"""Objectives, forms and settings: one entry each, from which operator and engine derive the rest.

A new objective is one member of `Objective`. A new form is one member of `Form` and its mathematics, the entry of
`FORMS` in `wrpo_engine.training.objectives.preference`. Rules of the API, checks of the engine, columns of the rows,
the reference and the texts that list objectives follow from the entries. An entry that lacks anything fails at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple, Self


class _SettingEntry(NamedTuple):
    value: str
    neutral: float | bool | dict[str, str | float]
    no_effect: str
    belongs: str = "belongs to"
    idle_in_sft: bool = False


class Setting(StrEnum):
    """A field of `TrainParams` that only some objectives have."""

    neutral: float | bool | dict[str, str | float]
    """The default, as JSON. The API accepts it with every objective."""
    no_effect: str
    """Why it has no effect with other objectives; `{forms}` is replaced by the forms that have it."""
    belongs: str
    """Verb that connects the setting with its forms in messages."""
    idle_in_sft: bool
    """True: SFTOnly accepts any value, as the first release did; no stage reads it."""

    def __new__(
        cls,
        value: str,
        neutral: float | bool | dict[str, str | float],
        no_effect: str,
        belongs: str,
        idle_in_sft: bool,
    ) -> Self:
        """Create a member whose value is the name of the field."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.neutral, member.no_effect = neutral, no_effect
        member.belongs, member.idle_in_sft = belongs, idle_in_sft
        return member

    ALPHA = _SettingEntry(
        "alpha",
        neutral={"schedule": "Linear", "max": 0.1},
        no_effect="it weighs the source response, which only the WRPO objectives have",
        idle_in_sft=True,
    )
    BETA = _SettingEntry(
        "beta", neutral=0.01, no_effect="only the {forms} forms scale their reward by it", idle_in_sft=True
    )
    GAMMA = _SettingEntry(
        "gamma", neutral=0.0, no_effect="only the {forms} forms have a target margin", belongs="is a margin of"
    )
    LABEL_SMOOTHING = _SettingEntry("label_smoothing", neutral=0.0, no_effect="only the {forms} forms define it")
    TAU = _SettingEntry("tau", neutral=0.1, no_effect="only the {forms} forms have it")
    LENGTH_NORMALIZED = _SettingEntry(
        "length_normalized", neutral=False, no_effect="it belongs to the {forms} forms; SimPO is always normalised"
    )
    IPO_MEAN = _SettingEntry("ipo_mean", neutral=False, no_effect="it chooses how {forms} reads its log-ratios")


class _FormEntry(NamedTuple):
    value: str
    needs_reference: bool
    settings: tuple[Setting, ...]


class Form(StrEnum):
    """A reward and a loss of its margin, for any number of preferred responses."""

    needs_reference: bool
    """True: the reward is made of log pi - log pi_ref; False: of log pi."""
    settings: tuple[Setting, ...]

    def __new__(cls, value: str, needs_reference: bool, settings: tuple[Setting, ...]) -> Self:
        """Create a member whose value is the name of the form."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.needs_reference, member.settings = needs_reference, settings
        return member

    DPO = _FormEntry(
        "DPO", needs_reference=True, settings=(Setting.BETA, Setting.LABEL_SMOOTHING, Setting.LENGTH_NORMALIZED)
    )
    SIMPO = _FormEntry("SimPO", needs_reference=False, settings=(Setting.BETA, Setting.GAMMA))
    IPO = _FormEntry("IPO", needs_reference=True, settings=(Setting.TAU, Setting.IPO_MEAN))


class _ObjectiveEntry(NamedTuple):
    value: str
    form: Form | None
    has_source: bool


class Objective(StrEnum):
    """Loss of the preference stage (arXiv:2412.03187); SFTOnly stops after SFT."""

    form: Form | None
    """None: there is no preference stage."""
    has_source: bool
    """True: the rows hold y_ws in addition to y_wt, weighted by alpha. These are the WRPO objectives."""

    def __new__(cls, value: str, form: Form | None, has_source: bool) -> Self:
        """Create a member whose value is the name in the spec."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.form, member.has_source = form, has_source
        return member

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that have an effect with this objective."""
        own = () if self.form is None else self.form.settings
        return (Setting.ALPHA, *own) if self.has_source else own

    WRPO_DPO = _ObjectiveEntry("WRPO-DPO", form=Form.DPO, has_source=True)
    WRPO_SIMPO = _ObjectiveEntry("WRPO-SimPO", form=Form.SIMPO, has_source=True)
    WRPO_IPO = _ObjectiveEntry("WRPO-IPO", form=Form.IPO, has_source=True)
    DPO = _ObjectiveEntry("DPO", form=Form.DPO, has_source=False)
    SIMPO = _ObjectiveEntry("SimPO", form=Form.SIMPO, has_source=False)
    IPO = _ObjectiveEntry("IPO", form=Form.IPO, has_source=False)
    SFT_ONLY = _ObjectiveEntry("SFTOnly", form=None, has_source=False)


def objectives_with(holds: Callable[[Objective], bool]) -> tuple[Objective, ...]:
    """Return the objectives of which something holds: those without source first, SFTOnly last, else as defined."""
    found = [objective for objective in Objective if holds(objective)]
    return tuple(sorted(found, key=lambda objective: (objective.form is None, objective.has_source)))


def objectives_of_pairs() -> tuple[Objective, ...]:
    """Return the objectives that train on pairs, without a source response."""
    return objectives_with(lambda objective: objective.form is not None and not objective.has_source)


def objectives_that_have(setting: Setting) -> tuple[Objective, ...]:
    """Return the objectives with which a setting has an effect."""
    return objectives_with(lambda objective: setting in objective.settings)


def objectives_that_accept(setting: Setting) -> tuple[Objective, ...]:
    """Return the objectives with which a setting may have any value."""
    return objectives_with(
        lambda objective: setting in objective.settings or (setting.idle_in_sft and objective.form is None)
    )


def forms_that_have(setting: Setting) -> tuple[Form, ...]:
    """Return the forms with which a setting has an effect; none for a setting of the source response."""
    return tuple(form for form in Form if setting in form.settings)


def listed(names: Iterable[str], conjunction: str) -> str:
    """Return names as in a sentence: "DPO, SimPO or IPO"."""
    *others, last = ("", *names)
    first = ", ".join(others[1:])
    return f"{first} {conjunction} {last}" if first else last


def no_effect_reason(setting: Setting) -> str:
    """Return why a setting has no effect with the objectives that do not have it."""
    return setting.no_effect.format(forms=listed(forms_that_have(setting), "and"))


def refusal_sentence(setting: Setting) -> str:
    """Return the sentence about other objectives for the description of a form's setting.

    It names the smaller group: the forms without the setting if they are fewer, else all other objectives.
    """
    without = [form for form in Form if setting not in form.settings]
    where = f"in the {listed(without, 'and')} forms" if 2 * len(without) < len(Form) else "with other objectives"
    value = setting.neutral
    # A switch is either off or refused; every other setting has a value that may be written.
    condition = "" if isinstance(value, bool | dict) else f" unless {value:g}"
    return f"Refused {where}{condition}."


def _require_users() -> None:
    unused = [setting for setting in Setting if not objectives_that_have(setting)]
    unused_forms = [form for form in Form if not any(objective.form is form for objective in Objective)]
    if unused or unused_forms:
        raise TypeError(f"no objective has {listed([*unused, *unused_forms], 'and')}; remove it or give it to one")


_require_users()
