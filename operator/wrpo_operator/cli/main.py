"""Command line `wrpo`, also `kubectl wrpo`."""

from __future__ import annotations

import importlib
from importlib import metadata

import click

COMMANDS = {
    "plan": "wrpo_operator.cli.planning:plan_command",
    "run": "wrpo_operator.cli.local:run_command",
    "status": "wrpo_operator.cli.show:status_command",
    "logs": "wrpo_operator.cli.show:logs_command",
    "report": "wrpo_operator.cli.show:report_command",
    "sweep": "wrpo_operator.cli.sweep:sweep_group",
    "compare": "wrpo_operator.cli.compare:compare_command",
    "lint": "wrpo_operator.cli.lint:lint_command",
    "artifacts": "wrpo_operator.cli.artifacts:artifacts_group",
    "dev": "wrpo_operator.cli.local:dev_group",
    "demo": "wrpo_operator.cli.demo:demo_command",
}
"""Entry points of the commands, imported on use to keep `wrpo --help` fast."""

SUMMARIES = {
    "plan": "Show what a file will do: stages, accelerators, time. Contacts a cluster only if asked to.",
    "run": "Run a file on the embedded cluster from start to end.",
    "status": "Show an experiment's stages, attempts, progress and blockers.",
    "logs": "Print the logs of an experiment's pods.",
    "report": "Print the location of an experiment's HTML report.",
    "sweep": "Plan, run and show sweeps: many variants of one experiment.",
    "compare": "Compare evaluated experiments, with intervals and paired differences.",
    "lint": "Check triples, prompts and artifacts of curation for faults.",
    "artifacts": "List the artifacts in a storage, sum up sizes, remove unreferenced ones.",
    "dev": "Start, stop and remove the embedded cluster.",
    "demo": "Run the quick start and print its results.",
}


CONNECTION = {"-n", "--namespace", "--kubeconfig", "--context"}
"""Options that are accepted before the command as well, as in `kubectl wrpo -n NAMESPACE status NAME`."""


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments after moving connection options behind the command."""
        given, rest = list[str](), list(args)
        while rest and (rest[0].partition("=")[0] in CONNECTION or (rest[0][:2] == "-n" and rest[0][:3] != "-n=")):
            count = 2 if rest[0] in CONNECTION else 1
            given, rest = [*given, *rest[:count]], rest[count:]
        return super().parse_args(ctx, [*rest[:1], *given, *rest[1:]] if rest else given)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command; None for an unknown name."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the summaries of the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(metadata.version("wrpo"))
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def main() -> None:
    """Run WRPO experiments: several source LLMs teach one target LLM.

    \b
    A first experiment on this machine:
      wrpo dev up                              start the embedded cluster
      wrpo run -f examples/quickstart.yaml     install the operator, run, watch

    \b
    On your own cluster (current kubeconfig):
      wrpo plan -f experiment.yaml             show the stages
      kubectl apply -f experiment.yaml
      wrpo status fusion                       show progress and blockers
      wrpo logs fusion train -f

    Commands use the embedded cluster of this directory if it is up, else your kubeconfig.
    """  # noqa: D301  # click's mark for lines to keep


if __name__ == "__main__":
    main()
