"""The operator's settings: flags and environment, read once at the start."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wrpo_engine.config import StageKind
from wrpo_operator.api.pod_template import STRICT, PodTemplatePolicy
from wrpo_operator.render import RenderSettings, StageCommand

DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")


class SettingsError(ValueError):
    """A flag or variable has a value that cannot work."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the process is started with."""

    namespace: str | None
    """Namespace whose experiments are reconciled; None is the whole cluster."""
    own_namespace: str
    """Where the Lease lies."""
    identity: str
    """Who this process is, in the Lease and in events: the pod's name."""
    render: RenderSettings
    manage_service_account: bool
    bind: str = "127.0.0.1"
    health_port: int = 8080
    progress_port: int = 8081
    """0 turns the progress endpoint off."""
    progress_cert_file: str = ""
    """PEM chain of the progress endpoint; empty serves plain HTTP."""
    progress_key_file: str = ""
    pod_template_policy: PodTemplatePolicy = STRICT
    metrics_per_experiment: bool = False
    """Show each experiment's progress under its own name, which makes as many series as there are experiments."""
    lease_name: str = "wrpo-operator"
    workers: int = 16
    audit_s: float = 60.0
    resync_s: float = 300.0
    """Every experiment is reconciled at least this often."""
    log_level: str = "info"
    log_format: str = "json"

    def __post_init__(self) -> None:
        if bool(self.progress_cert_file) != bool(self.progress_key_file):
            raise SettingsError(
                "--progress-cert-file and --progress-key-file belong together. Set both for TLS, or neither."
            )
        wants_tls = (self.render.progress_url or "").startswith("https://")
        if self.progress_port and wants_tls != bool(self.progress_cert_file) and self.render.progress_url:
            raise SettingsError(
                f"--progress-url is {self.render.progress_url} but the endpoint serves "
                f"{'TLS' if self.progress_cert_file else 'plain HTTP'}. Change the URL's scheme or the certificate."
            )


def check_namespace(value: str, flag: str) -> str | None:
    """Return a namespace, or None for the empty string."""
    if value and not DNS_LABEL.match(value):
        raise SettingsError(f"{flag} is {value!r}, which is no namespace name. Leave it empty for the whole cluster.")
    return value or None


def default_identity(environ: Mapping[str, str] = os.environ) -> str:
    """Return the pod's name, or host and process outside a pod."""
    return environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"


def stage_commands(text: str) -> dict[StageKind, StageCommand]:
    """Read stand-in commands: {"sample": {"image": "...", "command": ["..."]}, ...}.

    For tests of a cluster's plumbing: the stage's pod runs this instead of the engine.
    """
    if not text.strip():
        return {}
    try:
        raw: Any = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"stage commands are not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise SettingsError("stage commands must be an object from stage kind to {image, command}")
    return {_kind(kind): _command(kind, entry) for kind, entry in raw.items()}


def stage_env(text: str) -> dict[str, str]:
    """Read the environment of all stages: a JSON object of strings."""
    try:
        raw: Any = json.loads(text or "{}")
    except ValueError as error:
        raise SettingsError(f"the stages' environment is not JSON: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise SettingsError("the stages' environment must be an object from names to strings")
    return raw


def _kind(text: str) -> StageKind:
    try:
        return StageKind(text)
    except ValueError:
        kinds = ", ".join(kind.value for kind in StageKind)
        raise SettingsError(f"stage commands name the stage {text!r}; stages are {kinds}") from None


def _command(kind: str, entry: Any) -> StageCommand:
    command = entry.get("command") if isinstance(entry, dict) else None
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise SettingsError(f"the stage command of {kind} needs `command`, a non-empty list of strings; got {entry!r}")
    image = entry.get("image")
    return StageCommand(image=str(image) if image else None, command=tuple(command))
