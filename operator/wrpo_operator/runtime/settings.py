"""Settings of the operator: each is declared once, with its variable, default, bounds and help text.

`__main__` creates the command's options from the fields. An option takes precedence over its environment variable, and
an empty variable counts as unset.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from wrpo_engine.contract.stages import STAGES
from wrpo_operator.api.pod_template import PodTemplatePolicy
from wrpo_operator.render import RenderSettings, StageCommand
from wrpo_operator.runtime.accelerators import AcceleratorSettings
from wrpo_operator.runtime.errors import SettingsError
from wrpo_operator.runtime.tls import read_authority
from wrpo_operator.sizing.profiles import Profile, ProfileError, parse_prices, parse_profiles

__all__ = ["Settings", "SettingsError", "flag_of", "load", "rule_of", "variable_of"]
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
RENDERED = RenderSettings()


def namespace_name(value: str) -> str:
    """Return the value if it is the name of a namespace, or empty; ValueError otherwise."""
    if value and not DNS_LABEL.fullmatch(value):
        raise ValueError(f"is {value!r}, which is not the name of a namespace: a-z, 0-9 and -, at most 63 characters")
    return value


def object_name(value: str) -> str:
    """Return the value if it is the name of a Kubernetes object; ValueError otherwise."""
    if not DNS_SUBDOMAIN.fullmatch(value):
        raise ValueError(f"is {value!r}, which is not the name of an object: a-z, 0-9, - and ., at most 253 characters")
    return value


def some_text(value: str) -> str:
    """Return the value unless it is empty; ValueError otherwise."""
    if not value:
        raise ValueError("must not be empty")
    return value


def http_url(value: str) -> str:
    """Return the value if it is a URL of HTTP or HTTPS, or empty; ValueError otherwise."""
    if value and not re.fullmatch(r"https?://[^\s/?#]+\S*", value):
        raise ValueError(f"is {value!r}, which is not a URL: http:// or https://, a host and a port")
    return value


def split_names(value: Any) -> Any:
    """Split the value of a variable at spaces."""
    return tuple(value.split()) if isinstance(value, str) else value


def parse_stage_env(text: Any) -> Any:
    """Parse the environment of all stages: a JSON object of strings."""
    raw = _json(text)
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise SettingsError('must be a JSON object from names to strings, e.g. {"HTTPS_PROXY": "http://proxy:3128"}')
    return raw


def parse_stage_commands(text: Any) -> Any:
    """Parse stand-in commands: {"sample": {"image": "...", "command": ["..."]}, ...}.

    For tests of an installation: the stage's pod runs this instead of the engine.
    """
    raw = _json(text)
    if not isinstance(raw, dict):
        raise SettingsError("must be a JSON object from stage kind to {image, command}")
    return {_kind(kind): _command(kind, entry) for kind, entry in raw.items()}


def parse_accelerator_profiles(text: Any) -> Any:
    """Parse profiles of accelerators: a JSON list."""
    return _parsed_by(parse_profiles, text, "[]")


def parse_accelerator_prices(text: Any) -> Any:
    """Parse prices of accelerators: a JSON object."""
    return _parsed_by(parse_prices, text, "{}")


NamespaceName = Annotated[str, AfterValidator(namespace_name)]
ObjectName = Annotated[str, AfterValidator(object_name)]
Text = Annotated[str, AfterValidator(some_text)]
Url = Annotated[str, AfterValidator(http_url)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Settings(BaseSettings):
    """All settings of the process."""

    model_config = SettingsConfigDict(env_prefix="WRPO_", env_ignore_empty=True, frozen=True)

    namespace: NamespaceName = Field(
        default="",
        validation_alias="WATCH_NAMESPACE",
        description="Namespace to watch. Empty watches all namespaces.",
        json_schema_extra={"metavar": "NAME"},
    )
    own_namespace: NamespaceName = Field(
        default="default",
        validation_alias="POD_NAMESPACE",
        description="Namespace of the leader-election Lease.",
        json_schema_extra={"metavar": "NAME"},
    )
    identity: Text = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        validation_alias="POD_NAME",
        description="Name of this process in the Lease and in Events.",
        json_schema_extra={"metavar": "NAME", "default": "host name and process ID"},
    )
    lease_name: ObjectName = Field(
        default="wrpo-operator",
        description="Name of the leader-election Lease.",
        json_schema_extra={"metavar": "NAME"},
    )
    sampler_image: Text = Field(
        default=RENDERED.sampler_image,
        description="Image of sampling and evaluation stages, unless the experiment sets spec.images.sampler.",
        json_schema_extra={"metavar": "IMAGE"},
    )
    trainer_image: Text = Field(
        default=RENDERED.trainer_image,
        description="Image of all other stages, unless the experiment sets spec.images.trainer.",
        json_schema_extra={"metavar": "IMAGE"},
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Pull policy of stage images."
    )
    stage_pull_secrets: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_names)] = Field(
        default=(),
        description="Secret with which stage images are pulled, in the namespace of each experiment. "
        "Repeat the option for several; the variable holds names separated by spaces.",
        json_schema_extra={"flag": "--stage-pull-secret", "metavar": "NAME"},
    )
    stage_env: Annotated[dict[str, str], NoDecode, BeforeValidator(parse_stage_env)] = Field(
        default={},
        description='Environment of all stages, e.g. {"HTTPS_PROXY": "http://proxy:3128"}. '
        "An experiment's spec.env takes precedence.",
        json_schema_extra={"metavar": "JSON"},
    )
    stage_service_account: ObjectName = Field(
        default=RENDERED.service_account,
        description="ServiceAccount of the stages. It has no rights, and its API token is not mounted.",
        json_schema_extra={"metavar": "NAME"},
    )
    manage_service_account: bool = Field(
        default=True, description="Create that ServiceAccount in the namespace of each experiment."
    )
    stage_commands: Annotated[dict[str, StageCommand], NoDecode, BeforeValidator(parse_stage_commands)] = Field(
        default={},
        description="Commands that replace the engine, for tests of an installation: "
        '{"train": {"image": "busybox", "command": ["sleep", "5"]}}.',
        json_schema_extra={"metavar": "JSON"},
    )
    progress_url: Url = Field(
        default="",
        description="URL at which stages reach the progress endpoint. Empty disables progress posts.",
        json_schema_extra={"metavar": "URL"},
    )
    progress_cert_file: str = Field(
        default="",
        description="PEM certificate chain of the progress endpoint. Empty serves plain HTTP.",
        json_schema_extra={"metavar": "FILE"},
    )
    progress_key_file: str = Field(
        default="", description="PEM private key of that certificate.", json_schema_extra={"metavar": "FILE"}
    )
    progress_ca_file: str = Field(
        default="",
        description="PEM certificate authority with which stages verify the progress endpoint. "
        "Empty uses the authorities that their images trust.",
        json_schema_extra={"metavar": "FILE"},
    )
    progress_port: Port = Field(default=8081, description="Port of the progress endpoint. 0 disables the endpoint.")
    health_port: Port = Field(default=8080, description="Port of /healthz, /readyz and /metrics. 0 uses any free port.")
    bind: Text = Field(
        default="127.0.0.1",
        description="Address to which both endpoints bind. The chart sets the address of the pod.",
        json_schema_extra={"metavar": "ADDRESS"},
    )
    allow_security_overrides: bool = Field(
        default=False,
        description="Allow spec.podTemplate to override security settings within the restricted Pod Security Standard.",
    )
    accelerators: bool = Field(
        default=True,
        description="Choose the accelerators of stages that set none, from the nodes, the queue or profiles. "
        "If disabled, such stages run on CPUs.",
    )
    read_nodes: bool = Field(
        default=True, description="Read the accelerators from the labels of nodes, which needs the right to list nodes."
    )
    read_queues: bool = Field(
        default=True,
        description="Read the accelerators of an experiment with a queue from Kueue's ClusterQueues and "
        "ResourceFlavors, which needs the right to list them.",
    )
    accelerator_profiles: Annotated[Sequence[Profile], NoDecode, BeforeValidator(parse_accelerator_profiles)] = Field(
        default=(),
        description="Accelerators that neither nodes nor queues describe: "
        '[{"name": "h100", "memoryGiB": 80, "perNode": 8, "nodes": 4}].',
        json_schema_extra={"metavar": "JSON"},
    )
    accelerator_prices: Annotated[dict[str, float], NoDecode, BeforeValidator(parse_accelerator_prices)] = Field(
        default={},
        description='Prices of one accelerator for an hour, e.g. {"NVIDIA-H100-80GB-HBM3": 2.5}.',
        json_schema_extra={"metavar": "JSON"},
    )
    metrics_per_experiment: bool = Field(
        default=False,
        description="Export the progress of each experiment as a metric with one time series per experiment.",
    )
    workers: int = Field(default=16, ge=1, le=64, description="Number of experiments reconciled concurrently.")
    resync_seconds: Seconds = Field(
        default=300, description="Maximum time between two reconciles of an experiment, in seconds."
    )
    audit_seconds: Seconds = Field(
        default=60,
        description="Time between full relists, which verify the watches, in seconds. "
        "Full relists run less often when they would exceed 5 % of the time.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of the messages that are logged."
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="Format of log lines: JSON objects or plain text."
    )
    kubeconfig: str | None = Field(
        default=None,
        validation_alias="KUBECONFIG",
        description="Kubeconfig file.",
        json_schema_extra={"metavar": "FILE", "default": "service account of the pod, else ~/.kube/config"},
    )
    context: str | None = Field(
        default=None,
        description="Context of the kubeconfig file.",
        json_schema_extra={"metavar": "NAME", "default": "its current context"},
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read options and environment variables, and no files."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @field_validator("own_namespace")
    @classmethod
    def _or_default(cls, value: str) -> str:
        return value or "default"

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if bool(self.progress_cert_file) != bool(self.progress_key_file):
            raise SettingsError(
                "--progress-cert-file and --progress-key-file belong together. Set both for TLS, or neither."
            )
        wants_tls = self.progress_url.startswith("https://")
        if self.progress_port and self.progress_url and wants_tls != bool(self.progress_cert_file):
            raise SettingsError(
                f"--progress-url is {self.progress_url} but the endpoint serves "
                f"{'TLS' if self.progress_cert_file else 'plain HTTP'}. Change the URL's scheme or the certificate."
            )
        return self

    @cached_property
    def render(self) -> RenderSettings:
        """Settings of rendering; SettingsError if a file cannot be used."""
        return RenderSettings(
            sampler_image=self.sampler_image,
            trainer_image=self.trainer_image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.stage_pull_secrets,
            extra_env=self.stage_env,
            service_account=self.stage_service_account,
            progress_url=self.progress_url or None,
            progress_ca=read_authority(self.progress_ca_file),
            commands=self.stage_commands,
        )

    @property
    def pod_template_policy(self) -> PodTemplatePolicy:
        """Policy about the fields of spec.podTemplate."""
        return PodTemplatePolicy(allow_security_overrides=self.allow_security_overrides)

    @property
    def accelerator_settings(self) -> AcceleratorSettings:
        """Sources of the inventory of accelerators."""
        return AcceleratorSettings(
            enabled=self.accelerators,
            read_nodes=self.read_nodes,
            read_queues=self.read_queues,
            profiles=tuple(self.accelerator_profiles),
            prices=self.accelerator_prices,
        )


def load(options: Mapping[str, Any]) -> Settings:
    """Return the settings of options, by field, and environment; SettingsError names invalid values."""
    fields = Settings.model_fields
    try:
        settings = Settings(**{str(fields[name].validation_alias or name): value for name, value in options.items()})
    except ValidationError as error:
        raise SettingsError("\n".join(dict.fromkeys(_described(found, options) for found in error.errors()))) from None
    _ = settings.render
    return settings


def flag_of(name: str) -> str:
    """Return the option of a field."""
    return str(_extra(Settings.model_fields[name]).get("flag") or f"--{name.replace('_', '-')}")


def variable_of(name: str) -> str:
    """Return the environment variable of a field."""
    return str(Settings.model_fields[name].validation_alias or f"WRPO_{name.upper()}")


def default_of(name: str) -> str:
    """Return the default of a field for its help; empty if it has none."""
    field = Settings.model_fields[name]
    default = _extra(field).get("default", field.default)
    return str(default).lower() if isinstance(default, bool) else str(default or "")


def metavar_of(name: str) -> str:
    """Return the placeholder of a field's value in the help."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return f"[{'|'.join(get_args(field.annotation))}]"
    return str(_extra(field).get("metavar") or ("INTEGER" if field.annotation is int else "NUMBER"))


def rule_of(name: str) -> str:
    """Return the rule of a field's values, e.g. "an integer from 1 to 64"; empty if a validator reports it."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    if field.annotation is bool:
        return "true or false"
    if field.annotation not in {int, float}:
        return ""
    low = next((f"{found.ge:g}" for found in field.metadata if isinstance(found, Ge)), None)
    high = next((f"{found.le:g}" for found in field.metadata if isinstance(found, Le)), None)
    what = "an integer" if field.annotation is int else "a number"
    return f"{what} from {low} to {high}" if high else f"{what} of at least {low}"


def _described(error: Any, options: Mapping[str, Any]) -> str:
    """Return one line of an error: option or variable, value, rule."""
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    if not error["loc"]:
        return message
    at = str(error["loc"][0])
    name = next(name for name in Settings.model_fields if at in {name, variable_of(name)})
    where = flag_of(name) if name in options else variable_of(name)
    return f"{where} {message}." if message else f"{where} is {error['input']!r}, which is not {rule_of(name)}."


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _parsed_by(parse: Callable[[Any], Any], text: Any, empty: str) -> Any:
    """Return what `parse` makes of a JSON text."""
    try:
        return parse(_json(text, empty)) if isinstance(text, str) else text
    except ProfileError as error:
        raise SettingsError(str(error)) from error


def _json(text: Any, empty: str = "{}") -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text or empty)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"is not JSON: {error}") from error


def _kind(text: str) -> str:
    if text not in STAGES:
        raise SettingsError(f"names the stage {text!r}. Stages are {', '.join(STAGES)}")
    return text


def _command(kind: str, entry: Any) -> StageCommand:
    command = entry.get("command") if isinstance(entry, dict) else None
    if not isinstance(command, list) or not command or not all(isinstance(part, str) for part in command):
        raise SettingsError(f"needs `command`, a non-empty list of strings, for {kind}; got {entry!r}")
    image = entry.get("image")
    return StageCommand(image=str(image) if image else None, command=tuple(command))
