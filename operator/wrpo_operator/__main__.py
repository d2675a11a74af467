"""`python -m wrpo_operator run`: starts the operator; nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click

from wrpo_operator.api.pod_template import PodTemplatePolicy
from wrpo_operator.app import run as start
from wrpo_operator.render.settings import RenderSettings
from wrpo_operator.runtime.kube import NoConnectionError
from wrpo_operator.runtime.log import configure
from wrpo_operator.runtime.settings import (
    Settings,
    SettingsError,
    check_namespace,
    default_identity,
    stage_commands,
    stage_env,
)
from wrpo_operator.runtime.tls import read_authority

DEFAULTS = RenderSettings()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn WRPOExperiment objects into Jobs and PyTorchJobs: the WRPO operator."""


@main.command(
    epilog="Every flag can be set by the variable in brackets. Credentials: --kubeconfig, else KUBECONFIG, "
    "else the pod's service account, else ~/.kube/config."
)
@click.option(
    "--namespace",
    envvar="WATCH_NAMESPACE",
    show_envvar=True,
    default="",
    metavar="NAME",
    help="Reconcile experiments of this namespace only. Empty: of the whole cluster.",
)
@click.option(
    "--own-namespace",
    envvar="POD_NAMESPACE",
    show_envvar=True,
    default="default",
    show_default=True,
    help="Where the leader election's Lease lies.",
)
@click.option(
    "--identity",
    envvar="POD_NAME",
    show_envvar=True,
    default=default_identity,
    help="Name of this process in the Lease and in events. Default: host and process number.",
)
@click.option("--lease-name", envvar="WRPO_LEASE_NAME", show_envvar=True, default="wrpo-operator", show_default=True)
@click.option(
    "--sampler-image",
    envvar="WRPO_SAMPLER_IMAGE",
    show_envvar=True,
    default=DEFAULTS.sampler_image,
    show_default=True,
    help="Image of sampling and evaluation where the experiment names none.",
)
@click.option(
    "--trainer-image",
    envvar="WRPO_TRAINER_IMAGE",
    show_envvar=True,
    default=DEFAULTS.trainer_image,
    show_default=True,
    help="Image of all other stages where the experiment names none.",
)
@click.option(
    "--image-pull-policy",
    envvar="WRPO_IMAGE_PULL_POLICY",
    show_envvar=True,
    default="IfNotPresent",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
    show_default=True,
)
@click.option(
    "--stage-pull-secret",
    "stage_pull_secrets",
    envvar="WRPO_STAGE_PULL_SECRETS",
    show_envvar=True,
    multiple=True,
    metavar="NAME",
    help="Secret of each experiment's namespace to pull stages' images with. May be given several times; the variable "
    "holds names separated by spaces.",
)
@click.option(
    "--stage-env",
    envvar="WRPO_STAGE_ENV",
    show_envvar=True,
    default="",
    metavar="JSON",
    help='Environment of all stages, e.g. {"HTTPS_PROXY": "http://proxy:3128"}; an experiment\'s own goes first.',
)
@click.option(
    "--stage-service-account",
    envvar="WRPO_STAGE_SERVICE_ACCOUNT",
    show_envvar=True,
    default=DEFAULTS.service_account,
    show_default=True,
    help="ServiceAccount stages run as; it has no rights and mounts no API token.",
)
@click.option(
    "--manage-service-account/--no-manage-service-account",
    envvar="WRPO_MANAGE_SERVICE_ACCOUNT",
    show_envvar=True,
    default=True,
    show_default=True,
    help="Make that ServiceAccount in each experiment's namespace.",
)
@click.option(
    "--stage-commands",
    envvar="WRPO_STAGE_COMMANDS",
    show_envvar=True,
    default="",
    metavar="JSON",
    help='Stand-in commands, for tests: {"train": {"image": "busybox", "command": ["sleep", "5"]}}.',
)
@click.option(
    "--progress-url",
    envvar="WRPO_PROGRESS_URL",
    show_envvar=True,
    default="",
    help="URL at which stages reach this process's progress endpoint. Empty: stages post no progress.",
)
@click.option(
    "--progress-cert-file",
    envvar="WRPO_PROGRESS_CERT_FILE",
    show_envvar=True,
    default="",
    metavar="FILE",
    help="PEM certificate chain of the progress endpoint. Empty: plain HTTP.",
)
@click.option(
    "--progress-key-file",
    envvar="WRPO_PROGRESS_KEY_FILE",
    show_envvar=True,
    default="",
    metavar="FILE",
    help="PEM key of that certificate.",
)
@click.option(
    "--progress-ca-file",
    envvar="WRPO_PROGRESS_CA_FILE",
    show_envvar=True,
    default="",
    metavar="FILE",
    help="PEM authority that stages check the endpoint by. Empty: those that their images trust.",
)
@click.option(
    "--progress-port",
    envvar="WRPO_PROGRESS_PORT",
    show_envvar=True,
    default=8081,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the progress endpoint. 0: none.",
)
@click.option(
    "--health-port",
    envvar="WRPO_HEALTH_PORT",
    show_envvar=True,
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of /healthz, /readyz and /metrics. 0: any free one.",
)
@click.option(
    "--bind",
    envvar="WRPO_BIND",
    show_envvar=True,
    default="127.0.0.1",
    show_default=True,
    help="Address of both endpoints. The chart gives the pod's own.",
)
@click.option(
    "--allow-security-overrides/--no-allow-security-overrides",
    envvar="WRPO_ALLOW_SECURITY_OVERRIDES",
    show_envvar=True,
    default=False,
    show_default=True,
    help="Let spec.podTemplate lift security settings within the restricted standard.",
)
@click.option(
    "--metrics-per-experiment/--no-metrics-per-experiment",
    envvar="WRPO_METRICS_PER_EXPERIMENT",
    show_envvar=True,
    default=False,
    show_default=True,
    help="Show each experiment's progress in /metrics under its name: one series for each.",
)
@click.option(
    "--workers",
    envvar="WRPO_WORKERS",
    show_envvar=True,
    default=16,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Experiments reconciled at the same time.",
)
@click.option(
    "--resync-seconds",
    envvar="WRPO_RESYNC_SECONDS",
    show_envvar=True,
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Every experiment is reconciled at least this often.",
)
@click.option(
    "--audit-seconds",
    envvar="WRPO_AUDIT_SECONDS",
    show_envvar=True,
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="How often the watches are checked against a list.",
)
@click.option(
    "--log-level",
    envvar="WRPO_LOG_LEVEL",
    show_envvar=True,
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)
@click.option(
    "--log-format",
    envvar="WRPO_LOG_FORMAT",
    show_envvar=True,
    default="json",
    show_default=True,
    type=click.Choice(["json", "text"]),
)
@click.option("--kubeconfig", default=None, help="Credentials file.")
@click.option("--context", default=None, help="Context of the credentials file.")
def run(**flags: Any) -> None:
    """Watch WRPOExperiments and run them until SIGTERM."""
    configure(flags["log_level"], flags["log_format"])
    try:
        settings = settings_of(flags)
        asyncio.run(start(settings, kubeconfig=flags["kubeconfig"], context=flags["context"]))
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except NoConnectionError as error:
        raise click.ClickException(str(error)) from error


def settings_of(flags: Mapping[str, Any]) -> Settings:
    """Return the settings that the flags mean; SettingsError says which flag cannot work."""
    return Settings(
        namespace=check_namespace(flags["namespace"], "--namespace"),
        own_namespace=check_namespace(flags["own_namespace"], "--own-namespace") or "default",
        identity=flags["identity"],
        render=RenderSettings(
            sampler_image=flags["sampler_image"],
            trainer_image=flags["trainer_image"],
            image_pull_policy=flags["image_pull_policy"],
            image_pull_secrets=flags["stage_pull_secrets"],
            extra_env=stage_env(flags["stage_env"]),
            service_account=flags["stage_service_account"],
            progress_url=flags["progress_url"] or None,
            progress_ca=read_authority(flags["progress_ca_file"]),
            commands=stage_commands(flags["stage_commands"]),
        ),
        manage_service_account=flags["manage_service_account"],
        bind=flags["bind"],
        health_port=flags["health_port"],
        progress_port=flags["progress_port"],
        progress_cert_file=flags["progress_cert_file"],
        progress_key_file=flags["progress_key_file"],
        pod_template_policy=PodTemplatePolicy(allow_security_overrides=flags["allow_security_overrides"]),
        metrics_per_experiment=flags["metrics_per_experiment"],
        lease_name=flags["lease_name"],
        workers=flags["workers"],
        audit_s=flags["audit_seconds"],
        resync_s=flags["resync_seconds"],
        log_level=flags["log_level"],
        log_format=flags["log_format"],
    )


if __name__ == "__main__":
    main()
