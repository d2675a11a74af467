"""The operator's options: what they mean, where they may come from, what is refused and how."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from wrpo_operator.__main__ import given, main, run
from wrpo_operator.render import StageCommand
from wrpo_operator.runtime.settings import Settings, SettingsError, default_of, flag_of, load, variable_of
from wrpo_operator.sizing.profiles import parse_profiles

GIVEN: dict[str, tuple[str, object, str, object]] = {
    "namespace": ("team-a", "team-a", "b", "b"),
    "own_namespace": ("wrpo-system", "wrpo-system", " ", "default"),
    "identity": ("wrpo-operator-abc", "wrpo-operator-abc", "b", "b"),
    "lease_name": ("wrpo.leader", "wrpo.leader", "b", "b"),
    "sampler_image": ("a/sampler:1", "a/sampler:1", "b", "b"),
    "trainer_image": ("a/trainer:1", "a/trainer:1", "b", "b"),
    "image_pull_policy": ("Always", "Always", "Never", "Never"),
    "stage_pull_secrets": ("one  two", ("one", "two"), "three", ("three",)),
    "stage_env": ('{"A": "b"}', {"A": "b"}, "{}", {}),
    "stage_service_account": ("stages", "stages", "b", "b"),
    "manage_service_account": ("false", False, "--manage-service-account", True),
    "stage_commands": ('{"sft": {"command": ["x"]}}', {"sft": StageCommand(("x",))}, "{}", {}),
    "progress_url": ("http://a:8081", "http://a:8081", "", ""),
    "progress_port": ("0", 0, "65535", 65535),
    "health_port": ("9000", 9000, "0", 0),
    "bind": ("::1", "::1", "10.0.0.7", "10.0.0.7"),
    "allow_security_overrides": ("true", True, "--no-allow-security-overrides", False),
    "accelerators": ("off", False, "--accelerators", True),
    "read_nodes": ("0", False, "--read-nodes", True),
    "read_queues": ("false", False, "--read-queues", True),
    "accelerator_profiles": (
        '[{"name": "a", "memoryGiB": 80, "perNode": 8}]',
        parse_profiles([{"name": "a", "memoryGiB": 80, "perNode": 8}]),
        "[]",
        (),
    ),
    "accelerator_prices": ('{"NVIDIA-L40S": 1}', {"NVIDIA-L40S": 1.0}, "{}", {}),
    "metrics_per_experiment": ("YES", True, "--no-metrics-per-experiment", False),
    "workers": (" 4 ", 4, "64", 64),
    "resync_seconds": ("1.5", 1.5, "1", 1.0),
    "audit_seconds": ("30", 30.0, "90", 90.0),
    "log_level": ("debug", "debug", "error", "error"),
    "log_format": ("text", "text", "json", "json"),
    "kubeconfig": ("/a/config", "/a/config", "b", "b"),
    "context": ("dev", "dev", "b", "b"),
}
"""Of each field: what its variable holds and means, and what is given as its option and means."""
FILES = {"progress_cert_file", "progress_key_file", "progress_ca_file"}
"""Fields that name files, which are read."""


EARLIER_OPTIONS = """
--namespace --own-namespace --identity --lease-name --sampler-image --trainer-image --image-pull-policy
--stage-pull-secret --stage-env --stage-service-account --manage-service-account --stage-commands --progress-url
--progress-cert-file --progress-key-file --progress-ca-file --progress-port --health-port --bind
--allow-security-overrides --metrics-per-experiment --workers --resync-seconds --audit-seconds --log-level --log-format
--kubeconfig --context
"""
EARLIER_VARIABLES = """
LEASE_NAME SAMPLER_IMAGE TRAINER_IMAGE IMAGE_PULL_POLICY STAGE_PULL_SECRETS STAGE_ENV STAGE_SERVICE_ACCOUNT
MANAGE_SERVICE_ACCOUNT STAGE_COMMANDS PROGRESS_URL PROGRESS_CERT_FILE PROGRESS_KEY_FILE PROGRESS_CA_FILE PROGRESS_PORT
HEALTH_PORT BIND ALLOW_SECURITY_OVERRIDES METRICS_PER_EXPERIMENT WORKERS RESYNC_SECONDS AUDIT_SECONDS LOG_LEVEL
LOG_FORMAT
"""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def of_command(*line: str) -> Settings:
    """Return the settings of a command line."""
    return load(given(run.make_context("run", list(line))))


def invoke(*line: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["run", *line], env={"KUBECONFIG": "/nowhere", **(env or {})})


def refusal(*line: str, env: dict[str, str] | None = None) -> str:
    """Return the error that a command line ends with, on one line."""
    result = invoke(*line, env=env)
    assert result.exit_code == 2
    return " ".join(result.output.partition("Error: ")[2].split())


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - FILES))
def test_an_option_goes_before_its_variable_and_an_empty_variable_counts_as_unset(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, by_variable, option, by_option = GIVEN[name]
    default = getattr(of_command(), name)
    monkeypatch.setenv(variable_of(name), "")
    assert getattr(of_command(), name) == default
    monkeypatch.setenv(variable_of(name), variable)
    assert getattr(of_command(), name) == by_variable != default
    line = [option] if isinstance(by_variable, bool) else [flag_of(name), option]
    assert getattr(of_command(*line), name) == by_option != by_variable


def test_defaults_watch_all_namespaces_on_loopback() -> None:
    settings = of_command()
    assert (settings.namespace, settings.own_namespace, settings.bind) == ("", "default", "127.0.0.1")
    assert (settings.render.service_account, settings.render.progress_url) == ("wrpo-stage", None)
    assert settings.manage_service_account is True
    assert settings.identity == f"{socket.gethostname()}-{os.getpid()}"


def test_several_pull_secrets_are_given_by_repeating_the_option() -> None:
    settings = of_command("--stage-pull-secret", "one", "--stage-pull-secret", "two")
    assert settings.render.image_pull_secrets == ("one", "two")


def test_what_all_stages_get_reaches_rendering() -> None:
    settings = of_command(
        "--stage-env", '{"HTTPS_PROXY": "http://p:1"}', "--stage-commands", '{"sft": {"command": ["sleep", "1"]}}'
    )
    assert settings.render.extra_env == {"HTTPS_PROXY": "http://p:1"}
    assert settings.render.commands["sft"].command == ("sleep", "1")


REFUSED: dict[str, tuple[list[str], dict[str, str], str]] = {
    "a port beyond the last": (
        ["--health-port", "70000"], {}, "--health-port is '70000', which is not an integer from 0 to 65535."
    ),
    "a port that is no number, by its variable": (
        [], {"WRPO_HEALTH_PORT": "http"}, "WRPO_HEALTH_PORT is 'http', which is not an integer from 0 to 65535."
    ),
    "no workers": ([], {"WRPO_WORKERS": "0"}, "WRPO_WORKERS is '0', which is not an integer from 1 to 64."),
    "no time": (["--audit-seconds", "0.5"], {}, "--audit-seconds is '0.5', which is not a number of at least 1."),
    "an endless time": (
        [], {"WRPO_RESYNC_SECONDS": "inf"}, "WRPO_RESYNC_SECONDS is 'inf', which is not a number of at least 1."
    ),
    "an unknown level": (
        [], {"WRPO_LOG_LEVEL": "loud"}, "WRPO_LOG_LEVEL is 'loud', which is not one of debug, info, warning, error."
    ),
    "an unknown policy": (
        ["--image-pull-policy", "always"],
        {},
        "--image-pull-policy is 'always', which is not one of Always, IfNotPresent, Never.",
    ),
    "a word in place of a truth": (
        [],
        {"WRPO_METRICS_PER_EXPERIMENT": "maybe"},
        "WRPO_METRICS_PER_EXPERIMENT is 'maybe', which is not true or false.",
    ),
    "a namespace": (
        ["--namespace", "Team A"],
        {},
        "--namespace is 'Team A', which is not the name of a namespace: a-z, 0-9 and -, at most 63 characters.",
    ),
    "a lease": (
        [],
        {"WRPO_LEASE_NAME": "-a"},
        "WRPO_LEASE_NAME is '-a', which is not the name of an object: a-z, 0-9, - and ., at most 253 characters.",
    ),
    "no identity": (["--identity", " "], {}, "--identity must not be empty."),
    "a URL without a scheme": (
        ["--progress-url", "wrpo:8081"],
        {},
        "--progress-url is 'wrpo:8081', which is not a URL: http:// or https://, a host and a port.",
    ),
    "stand-ins that are no JSON": (
        ["--stage-commands", "{"],
        {},
        "--stage-commands is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
    ),
    "an environment of numbers": (
        [],
        {"WRPO_STAGE_ENV": '{"A": 1}'},
        'WRPO_STAGE_ENV must be a JSON object from names to strings, e.g. {"HTTPS_PROXY": "http://proxy:3128"}.',
    ),
    "a profile without its memory": (
        [],
        {"WRPO_ACCELERATOR_PROFILES": '[{"name": "a", "perNode": 8}]'},
        "WRPO_ACCELERATOR_PROFILES lacks [0].memoryGiB. Set it.",
    ),
    "profiles that are no list": (
        ["--accelerator-profiles", "{}"],
        {},
        '--accelerator-profiles must be a JSON list, e.g. [{"name": "h100", "memoryGiB": 80, "perNode": 8}].',
    ),
    "a price that is no number": (
        ["--accelerator-prices", '{"NVIDIA-L40S": "1"}'],
        {},
        "--accelerator-prices has the price '1' for NVIDIA-L40S, which is not a number of at least 0.",
    ),
    "a certificate without a key": (
        ["--progress-cert-file", "a"],
        {},
        "--progress-cert-file and --progress-key-file belong together. Set both for TLS, or neither.",
    ),
    "an https URL without a certificate": (
        ["--progress-url", "https://a:1"],
        {},
        "--progress-url is https://a:1 but the endpoint serves plain HTTP. Change the URL's scheme or the certificate.",
    ),
    "an http URL with a certificate": (
        ["--progress-url", "http://a:1", "--progress-cert-file", "a", "--progress-key-file", "b"],
        {},
        "--progress-url is http://a:1 but the endpoint serves TLS. Change the URL's scheme or the certificate.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "env", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_setting_is_one_line_with_option_or_variable_value_and_rule(
    line: list[str], env: dict[str, str], message: str
) -> None:
    assert refusal(*line, env=env) == message


def test_two_bad_settings_are_both_named() -> None:
    assert refusal("--workers", "x", env={"WRPO_LOG_FORMAT": "xml"}) == (
        "--workers is 'x', which is not an integer from 1 to 64. "
        "WRPO_LOG_FORMAT is 'xml', which is not one of json, text."
    )


def test_without_credentials_nothing_starts() -> None:
    result = invoke("--kubeconfig", "/elsewhere")
    assert result.exit_code == 1
    assert "cannot read cluster credentials from /elsewhere" in " ".join(result.output.split())
    assert "from /nowhere" in " ".join(invoke().output.split())


def test_help_shows_option_variable_default_and_range_of_every_setting() -> None:
    text = " ".join(CliRunner().invoke(main, ["run", "--help"], terminal_width=10_000).output.split())
    for name, field in Settings.model_fields.items():
        default = f"; default: {default_of(name)}" if default_of(name) else ""
        assert f"{field.description} [env: {variable_of(name)}{default}" in text
        assert f" {flag_of(name)} " in text
    assert "[env: WRPO_WORKERS; default: 16; an integer from 1 to 64]" in text
    assert "--manage-service-account / --no-manage-service-account" in text


def test_options_and_variables_of_earlier_releases_are_still_read() -> None:
    names = {name: (flag_of(name), variable_of(name)) for name in Settings.model_fields}
    assert {pair[0] for pair in names.values()} >= set(EARLIER_OPTIONS.split())
    assert {pair[1] for pair in names.values()} >= {"WATCH_NAMESPACE", "POD_NAMESPACE", "POD_NAME"} | {
        f"WRPO_{name}" for name in EARLIER_VARIABLES.split()
    }


def test_settings_do_not_change_after_the_start() -> None:
    settings: Any = load({})
    with pytest.raises(ValueError, match="frozen"):
        settings.workers = 3


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(click.NoSuchOption, match="--worker"):
        run.make_context("run", ["--worker", "3"])
    with pytest.raises(SettingsError, match="--workers is '0'"):
        load({"workers": "0"})
