"""Display of one experiment until its end, across restarts of the API server and of the operator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from rich.console import Console
from rich.live import Live

from wrpo_operator.cli.connect import Target, with_client
from wrpo_operator.cli.view import Changes, Outcome, outcome_of, render
from wrpo_operator.runtime.kube import KubeClient, KubeError
from wrpo_operator.runtime.resources import EXPERIMENTS, JsonObject, uid_of

POLL_S = 1.0


class GoneError(Exception):
    """The experiment was deleted while it was followed."""


def follow(name: str, target: Target, *, console: Console | None = None) -> Outcome:
    """Show a live table on a terminal, plain lines elsewhere, until the experiment has ended; return its outcome.

    Ctrl-C (KeyboardInterrupt) stops the display, not the experiment.
    """
    console = console or Console()

    async def work(client: KubeClient) -> Outcome:
        if console.is_terminal:
            return await _live(client, target.namespace, name, console)
        return await follow_lines(
            client,
            target.namespace,
            name,
            write=lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False),
        )

    return asyncio.run(with_client(target, work))


async def _live(client: KubeClient, namespace: str, name: str, console: Console) -> Outcome:
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        return await until_ended(client, namespace, name, show=lambda obj, note: live.update(render(obj, note=note)))


async def follow_lines(
    client: KubeClient, namespace: str, name: str, *, write: Callable[[str], None], poll_s: float = POLL_S
) -> Outcome:
    """Write one line for every change."""
    changes, noted = Changes(), ""

    def show(obj: JsonObject, note: str) -> None:
        nonlocal noted
        if note and note != noted:
            write(_stamped(note))
        noted = note
        for line in changes.lines(obj):
            write(_stamped(line))

    return await until_ended(client, namespace, name, show=show, poll_s=poll_s)


async def until_ended(
    client: KubeClient,
    namespace: str,
    name: str,
    *,
    show: Callable[[JsonObject, str], None],
    poll_s: float = POLL_S,
) -> Outcome:
    """Poll the experiment, call `show(object, note)`, and return its outcome.

    An unreachable server is polled until it responds. A missing experiment raises KubeError 404, or GoneError once it
    has been seen.
    """
    obj: JsonObject = {"metadata": {"namespace": namespace, "name": name}}
    uid = ""
    while True:
        try:
            obj = await client.get(EXPERIMENTS, name, namespace)
        except KubeError as error:
            if error.not_found and uid:
                raise GoneError(f"experiment {namespace}/{name} was deleted") from error
            if not (error.unreachable or error.code >= 500 or error.code == 429):
                raise
            show(obj, "the API server does not respond; waiting for it")
            await asyncio.sleep(poll_s)
            continue
        if uid and uid_of(obj) != uid:
            raise GoneError(f"experiment {namespace}/{name} was deleted and recreated")
        uid = uid_of(obj)
        show(obj, "")
        ended = outcome_of(obj)
        if ended is not None:
            return ended
        await asyncio.sleep(poll_s)


def _stamped(line: str) -> str:
    return f"{datetime.now().astimezone():%H:%M:%S} {line}"
