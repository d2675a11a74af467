"""`wrpo dev` and `wrpo run`: commands for the embedded cluster."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from wrpo_devcluster import __main__ as devcluster
from wrpo_devcluster import lifecycle
from wrpo_operator.api import names
from wrpo_operator.cli.connect import STATE_DIR, Target, errors_to_click
from wrpo_operator.cli.install import apply_file, install_operator
from wrpo_operator.cli.planning import namespace_option, objects_in, spec_of
from wrpo_operator.runtime.resources import JsonObject, meta, name_of

WARM = "wrpo_engine.process.warm"
"""Module of the engine from whose process the embedded cluster forks stages. The operator does not import it."""


@click.group("dev", context_settings={"default_map": {"up": {"warm": WARM}}})
def dev_group() -> None:
    """Start, stop and remove the embedded cluster.

    It is a Kubernetes-compatible control plane in one process, and its pods are processes of your user. It listens on
    loopback only and stores everything in .wrpo/dev of this directory.

    \b
    Examples:
      wrpo dev up                       start or restart it
      export KUBECONFIG=.wrpo/dev/kubeconfig; kubectl get pods -A
      wrpo dev down                     stop it; objects and volumes are kept
      wrpo dev reset --yes              stop it and remove everything
    """  # noqa: D301  # click's mark for lines to keep


for _command in (devcluster.up, devcluster.down, devcluster.status, devcluster.reset):
    dev_group.add_command(_command)


@click.command("run")
@click.option(
    "-f",
    "--filename",
    required=True,
    metavar="FILE",
    help="File with one or more WRPOExperiments; it may contain further objects, e.g. a claim.",
)
@namespace_option
@errors_to_click
def run_command(filename: str, namespace: str) -> None:
    """Run FILE on the embedded cluster: start it, install the operator, apply, and watch to the end.

    The exit code is 0 if every experiment succeeded, else 1. Ctrl-C stops watching but not the experiment; run the
    command again to resume watching. `wrpo dev down` stops everything and keeps finished work.

    \b
    Example:
      wrpo run -f examples/quickstart.yaml
    """  # noqa: D301  # click's mark for lines to keep
    from wrpo_operator.cli.watch import GoneError, follow

    documents = objects_in(filename, names.KIND)
    for document in documents:
        spec_of(document)
    succeeded = True
    for name, target in started(filename, documents, namespace):
        try:
            outcome = follow(name, target)
        except GoneError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo(f"\n{name} continues. `wrpo status {name} -w` follows it.")
            raise SystemExit(130) from None
        if not outcome.succeeded:
            succeeded = False
            click.echo(f"{name}: {outcome.message}", err=True)
    raise SystemExit(0 if succeeded else 1)


def started(filename: str, documents: Iterable[JsonObject], namespace: str) -> list[tuple[str, Target]]:
    """Start the embedded cluster and apply a file; return the names of these documents, each with its place."""
    kubeconfig = start_embedded()
    click.echo(apply_file(kubeconfig, filename, namespace=namespace), nl=False)
    return [
        (name_of(each), Target(str(kubeconfig), None, str(meta(each).get("namespace") or namespace), embedded=True))
        for each in documents
    ]


def start_embedded() -> Path:
    """Start the embedded cluster and the operator in it; return the kubeconfig. Idempotent."""
    try:
        info = lifecycle.up(STATE_DIR, warm=WARM)
    except lifecycle.LifecycleError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"embedded cluster: {info.url}")
    install_operator(info.kubeconfig)
    click.echo("operator: installed and ready")
    return info.kubeconfig
