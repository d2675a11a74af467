"""Rewriting of mount paths to directories of this machine, and of service names to addresses.

There is no mount namespace, so a path under a volumeMount only works in a command, an argument or an environment
variable. A path that a program has built in is not rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Resolver = Callable[[str], str | None]
"""Host name as written in a manifest -> address, or None if it is no service of this cluster."""

_HOST = re.compile(r"(?:(?<=://)|(?<=@)|^|(?<=[=,\s]))([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?=$|:\d|[/,\s])")


def path_rewriter(mounts: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces every mount path in a text, the longest match first.

    A path is replaced where it starts a word: at the beginning, or after `=`, `:`, a blank, a quote and the like.
    """
    clean = {path.rstrip("/"): target for path, target in mounts.items() if path.rstrip("/")}
    if not clean:
        return lambda text: text
    paths = "|".join(re.escape(path) for path in sorted(clean, key=len, reverse=True))
    pattern = re.compile(rf"(?:(?<=file://)|(?<![\w./}}\)-]))({paths})(?![\w.-])")
    return lambda text: pattern.sub(lambda match: clean[match.group(1)], text)


def rewrite_hosts(text: str, resolve: Resolver, *, allow_bare: bool) -> str:
    """Replace service names by addresses: as host of a URL, before a port, or (dotted, or `allow_bare`) alone.

    A single word such as `train` in an argument may be a command as well as a service. It counts as a name only
    if it is the whole value of a variable.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        before, after = text[: match.start(1)], text[match.end(1) :]
        is_host = before.endswith(("://", "@")) or after.startswith(":")
        is_whole = not before and not after
        if not (is_host or ("." in name and not name.replace(".", "").isdigit()) or (allow_bare and is_whole)):
            return name
        return resolve(name) or name

    return _HOST.sub(replace, text)
