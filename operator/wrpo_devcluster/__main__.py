"""Command line of the embedded control plane: `python -m wrpo_devcluster`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import click

from wrpo_devcluster import lifecycle
from wrpo_devcluster.bootstrap import PRESETS, crd_files, install_crds
from wrpo_devcluster.cluster import Cluster
from wrpo_devcluster.config import ClusterConfig, SimulatedRule, load_config, parse_rules, simulated_config
from wrpo_devcluster.delays import NONE, REALISTIC
from wrpo_devcluster.memory import collect_rarely
from wrpo_devcluster.products import CPU, PRODUCTS, parse_nodes
from wrpo_devcluster.stack import call_with_deep_stack

_STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lifecycle.DEFAULT_STATE_DIR,
    show_default=True,
    help="Where everything is kept: objects, pods, logs, volumes, keys.",
)


@click.group()
def main() -> None:
    """Run a Kubernetes-compatible control plane on one machine, without containers or root.

    Pods run as processes of your user. The server listens on loopback with TLS. Only you can read its kubeconfig.
    """


@main.command()
@_STATE_DIR
@click.option("--cpu", help="CPUs of the node, e.g. 8 or 500m; default: this machine's.")
@click.option("--memory", help="Memory of the node, e.g. 16Gi; default: this machine's.")
@click.option("--gpus", type=click.IntRange(0, 64), default=0, show_default=True, help="nvidia.com/gpu of the node.")
@click.option(
    "--with-crds",
    multiple=True,
    default=tuple(PRESETS),
    show_default=True,
    help=f"CRDs to install: {', '.join(PRESETS)}, a YAML file or a directory of them. Can be repeated.",
)
@click.option("--allow-host-path", is_flag=True, help="Let pods use hostPath volumes.")
@click.option(
    "--simulated",
    is_flag=True,
    help="Start no processes: pods follow the annotations fake.test/run-seconds, fake.test/exit-code and "
    "fake.test/pull-error, on two nodes with 8 GPUs each unless --nodes is given. For tests of controllers.",
)
@click.option(
    "--nodes",
    metavar="PRODUCT=NODESxEACH,...",
    help="With --simulated: nodes with accelerators, labelled and tainted as on real clusters, e.g. h100=4x8,l40s=2x4, "
    f"and one without. Products: {', '.join((*PRODUCTS, CPU))}.",
)
@click.option(
    "--pod-rules",
    "rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='With --simulated: a JSON list of {"labels": {...}, "annotations": {...}}. Pods with the labels follow the '
    "annotations, e.g. fake.test/termination-message.",
)
@click.option(
    "--realistic",
    is_flag=True,
    help="With --simulated: pods wait 1 to 3 s, Jobs complete 1 to 3 s later, lists of Events take time.",
)
@click.option(
    "--image", multiple=True, metavar="IMAGE=COMMAND", help="Command of containers of an image, if they set none."
)
@click.option(
    "--s3", is_flag=True, help="Also run an S3 server (SeaweedFS) on loopback. Every later start runs it too."
)
@click.option(
    "--warm",
    metavar="MODULE",
    help="Fork containers of a program from a process that has imported it, as MODULE says; '' turns this off.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=lifecycle.START_S,
    show_default=True,
    help="Seconds to wait until ready.",
)
def up(
    state_dir: Path,
    cpu: str | None,
    memory: str | None,
    gpus: int,
    with_crds: tuple[str, ...],
    allow_host_path: bool,
    simulated: bool,
    nodes: str | None,
    rules: Path | None,
    realistic: bool,
    image: tuple[str, ...],
    s3: bool,
    warm: str | None,
    timeout_s: float,
) -> None:
    """Start the control plane in the background unless it runs, and print its kubeconfig."""
    config: ClusterConfig | None = None
    if realistic and not simulated:
        raise click.ClickException("--realistic sets the delays of simulated pods: pass --simulated too")
    if (nodes or rules) and not simulated:
        raise click.ClickException("--nodes and --pod-rules describe a simulated cluster: pass --simulated too")
    if nodes and gpus:
        raise click.ClickException("--nodes and --gpus exclude each other: --nodes has the accelerators of each node")
    changes = bool(cpu or memory or gpus or image or allow_host_path or simulated)
    if changes and lifecycle.status(state_dir).is_running:
        raise click.ClickException("these options need a start, and the control plane is running: run `down` first")
    if changes or load_config(state_dir.resolve()) is None:
        if simulated:
            config = _simulated(state_dir, cpu=cpu, memory=memory, gpus=gpus, nodes=nodes)
            config = replace(config, rules=_pod_rules(rules), delays=REALISTIC if realistic else NONE)
        else:
            config = lifecycle.default_config(state_dir, cpu=cpu, memory=memory, gpus=gpus)
        config = replace(config, allow_host_path=allow_host_path)
    with _friendly():
        config = lifecycle.with_images(config, image) if config else None
        info = lifecycle.up(state_dir, config=config, with_crds=with_crds, s3=s3, warm=warm, timeout_s=timeout_s)
        click.echo(f"control plane: {info.url} (pid {info.pid})\nexport KUBECONFIG={info.kubeconfig}")
        if info.s3 is not None:
            click.echo(f"S3: {info.s3.endpoint}\nexport AWS_SHARED_CREDENTIALS_FILE={info.s3.credentials_file}")


def _simulated(state_dir: Path, *, cpu: str | None, memory: str | None, gpus: int, nodes: str | None) -> ClusterConfig:
    """Return the configuration of a simulated cluster."""
    with _friendly():
        described = parse_nodes(nodes, cpu=cpu or "128", memory=memory or "1024Gi") if nodes else ()
    return simulated_config(state_dir, cpu=cpu or "32", memory=memory or "128Gi", gpus=gpus or 8, nodes=described)


def _pod_rules(path: Path | None) -> tuple[SimulatedRule, ...]:
    """Return the rules of a file for simulated pods; none without one."""
    try:
        return parse_rules(path.read_text(encoding="utf-8")) if path else ()
    except ValueError as error:
        raise click.ClickException(f"--pod-rules {path} {error}") from error


@main.command()
@_STATE_DIR
@click.option(
    "--keep-pods", is_flag=True, help="Keep the pods' processes and the S3 server running. The next `up` adopts them."
)
def down(state_dir: Path, keep_pods: bool) -> None:
    """Stop the control plane, all pods and the S3 server. Objects, volumes and buckets are kept."""
    with _friendly():
        stopped = lifecycle.down(state_dir, keep_pods=keep_pods)
        click.echo("stopped" if stopped else "the control plane was not running")


@main.command()
@_STATE_DIR
def status(state_dir: Path) -> None:
    """Show whether the control plane runs. The exit code is 0 if it runs, else 3."""
    info = lifecycle.status(state_dir)
    if not info.is_running:
        click.echo(f"not running (state: {info.state_dir})")
        raise SystemExit(3)
    click.echo(f"running: {info.url} (pid {info.pid})\nkubeconfig: {info.kubeconfig}\nlog: {info.log_file}")
    if info.s3 is not None:
        state = f"pid {info.s3.pid}" if info.s3.pid else "not running"
        click.echo(
            f"S3: {info.s3.endpoint} ({state})\ncredentials: {info.s3.credentials_file}\nlog: {info.s3.log_file}"
        )


@main.command()
@_STATE_DIR
@click.confirmation_option("--yes", prompt="This removes all objects, logs, volumes and buckets. Continue?")
def reset(state_dir: Path) -> None:
    """Stop everything and remove all data of the control plane, volumes and buckets included."""
    with _friendly():
        lifecycle.reset(state_dir)
        click.echo(f"removed {state_dir}")


@main.command()
@_STATE_DIR
@click.option("--with-crds", multiple=True, help="CRDs to install: a preset, a YAML file or a directory.")
def serve(state_dir: Path, with_crds: tuple[str, ...]) -> None:
    """Run the control plane in the foreground until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    state_dir = state_dir.resolve()
    config = load_config(state_dir) or lifecycle.default_config(state_dir)
    stop: Future[None] = Future()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None if stop.done() else stop.set_result(None))
    with _friendly(), lifecycle.single_instance(state_dir):
        call_with_deep_stack(lambda: asyncio.run(_serve(config, with_crds, stop)))


async def _serve(config: ClusterConfig, with_crds: tuple[str, ...], stop: Future[None]) -> None:
    """Run the control plane until `stop` is done."""
    files = [file for choice in with_crds for file in crd_files(choice)]
    cluster = Cluster(config)
    try:
        await cluster.start()
        await install_crds(cluster.client, files)
        lifecycle.write_record(config.state_dir, cluster.url)
        collect_rarely()
        logging.getLogger(__name__).info("listening on %s", cluster.url)
        await asyncio.wrap_future(stop)
    finally:
        await cluster.stop(stop_pods=not lifecycle.should_keep_pods(config.state_dir))


@contextlib.contextmanager
def _friendly() -> Iterator[None]:
    try:
        yield
    except (lifecycle.LifecycleError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
