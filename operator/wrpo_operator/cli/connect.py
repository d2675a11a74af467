"""Cluster connection of commands and its options."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import yaml

if TYPE_CHECKING:
    from wrpo_operator.runtime.kube import HttpKube

P = ParamSpec("P")
T = TypeVar("T")
STATE_DIR = Path(".wrpo") / "dev"
"""State of the embedded cluster, below the working directory."""


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster and a namespace."""

    kubeconfig: str | None
    context: str | None
    namespace: str
    embedded: bool = False
    """Whether it is the embedded cluster of this directory."""


def choose(
    kubeconfig: str | None, context: str | None, namespace: str | None, *, state_dir: Path = STATE_DIR
) -> Target:
    """Return the target: --kubeconfig, else the embedded cluster if it is up, else KUBECONFIG or ~/.kube/config."""
    embedded = False
    if kubeconfig is None:
        own = embedded_kubeconfig(state_dir)
        if own is not None:
            kubeconfig, embedded = str(own), True
    source = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return Target(kubeconfig, context, namespace or default_namespace(source, context), embedded)


def embedded_kubeconfig(state_dir: Path = STATE_DIR) -> Path | None:
    """Return the embedded cluster's kubeconfig if it runs."""
    if not state_dir.exists():
        return None
    from wrpo_devcluster import lifecycle

    status = lifecycle.status(state_dir)
    return status.kubeconfig if status.is_running else None


def default_namespace(paths: str, context: str | None) -> str:
    """Return the context's namespace, as kubectl would; `default` where none is set."""
    for path in paths.split(os.pathsep):
        try:
            config: Any = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError):
            continue
        wanted = context or config.get("current-context")
        for entry in config.get("contexts") or ():
            if entry.get("name") == wanted:
                return str((entry.get("context") or {}).get("namespace") or "default")
    return "default"


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --kubeconfig, --context and -n; the command gets them as one `target`."""

    @click.option(
        "--kubeconfig",
        metavar="FILE",
        help="Kubeconfig; default: the embedded cluster of this directory if it is up "
        "(`wrpo dev up`), else $KUBECONFIG, else ~/.kube/config.",
    )
    @click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
    @click.option("-n", "--namespace", metavar="NAME", help="Namespace; default: that of the context.")
    @functools.wraps(command)
    def with_target(*args: Any, kubeconfig: str | None, context: str | None, namespace: str | None, **rest: Any) -> Any:
        return command(*args, target=choose(kubeconfig, context, namespace), **rest)

    return with_target


async def with_client(target: Target, work: Callable[[HttpKube], Awaitable[T]]) -> T:
    """Run `work` with a client of the target and close it."""
    from wrpo_operator.runtime.kube import HttpKube

    client = await HttpKube.connect(target.kubeconfig, target.context)
    try:
        return await work(client)
    finally:
        await client.close()


def errors_to_click(command: Callable[P, T]) -> Callable[P, T]:
    """Convert API and transport errors to a message and exit code 1."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        from wrpo_operator.runtime.kube import KubeError

        try:
            return command(*args, **kwargs)
        except KubeError as error:
            hint = (
                " Check that the cluster is up; `wrpo dev status` shows the embedded one." if error.unreachable else ""
            )
            raise click.ClickException(f"{error.message}{hint}") from error

    return guarded


@contextmanager
def engine_errors_to_click() -> Iterator[None]:
    """Convert the engine's errors about a storage to a message, a hint and exit code 1."""
    from wrpo_engine.storage import EngineError

    try:
        yield
    except EngineError as error:
        hint = f"\n{error.hint}" if error.hint else ""
        raise click.ClickException(f"{error.message}{hint}") from error
