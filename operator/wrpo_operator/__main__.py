"""Entry point of the operator: `python -m wrpo_operator run`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, get_origin

import click
from click.core import ParameterSource

from wrpo_operator.app import run as start
from wrpo_operator.runtime.errors import NoConnectionError, SettingsError
from wrpo_operator.runtime.log import configure
from wrpo_operator.runtime.settings import (
    Settings,
    default_of,
    flag_of,
    load,
    metavar_of,
    rule_of,
    variable_of,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """WRPO operator, which runs WRPOExperiment objects as Jobs and training resources."""


def option_of(name: str) -> click.Option:
    """Return the command's option for a field of the settings, which validate its value."""
    field, flag = Settings.model_fields[name], flag_of(name)
    rule = rule_of(name) if field.annotation in {int, float} else ""
    default = f"default: {default_of(name)}" if default_of(name) else ""
    notes = "; ".join(note for note in (f"env: {variable_of(name)}", default, rule) if note)
    help_text = f"{field.description}  [{notes}]"
    if field.annotation is bool:
        return click.Option([f"{flag}/--no-{flag.removeprefix('--')}", name], default=None, help=help_text)
    is_list = get_origin(field.annotation) is tuple
    return click.Option([flag, name], metavar=metavar_of(name), multiple=is_list, help=help_text)


def given(call: click.Context) -> Mapping[str, Any]:
    """Return the options on the command line, by field."""
    sources = {name: call.get_parameter_source(name) for name in call.params}
    return {name: value for name, value in call.params.items() if sources[name] is ParameterSource.COMMANDLINE}


@click.pass_context
def _run(call: click.Context, /, **_: Any) -> None:
    try:
        settings = load(given(call))
        configure(settings.log_level, settings.log_format)
        asyncio.run(start(settings))
    except SettingsError as error:
        raise click.UsageError(str(error), call) from error
    except NoConnectionError as error:
        raise click.ClickException(str(error)) from error


run = click.Command(
    "run",
    params=[option_of(name) for name in Settings.model_fields],
    callback=_run,
    help="Watch WRPOExperiments and run them until SIGTERM.",
    epilog="Each option can also be set by the environment variable in brackets; the option takes precedence.",
)
main.add_command(run)


if __name__ == "__main__":
    main()
