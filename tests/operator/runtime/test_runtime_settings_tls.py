"""The endpoint's certificate and what the settings refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from wrpo_devcluster.certificates import ensure_certificates
from wrpo_operator.__main__ import run, settings_of
from wrpo_operator.runtime.settings import SettingsError
from wrpo_operator.runtime.tls import ServerCertificate, read_authority


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    from datetime import UTC, datetime

    made = ensure_certificates(tmp_path_factory.mktemp("pki"), datetime.now(UTC))
    return made.cert_file, made.key_file, made.ca_file


def flags(*given: str) -> dict[str, object]:
    return run.make_context("run", list(given)).params


def test_a_certificate_is_loaded_again_only_when_it_has_changed(pki: tuple[Path, Path, Path], tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(pki[0].read_bytes())
    key.write_bytes(pki[1].read_bytes())
    certificate = ServerCertificate(cert, key)
    assert certificate.reload() is False
    cert.write_bytes(pki[0].read_bytes() + b"\n")
    assert certificate.reload() is True


def test_files_that_cannot_be_used_are_named(pki: tuple[Path, Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "tls.crt"
    broken.write_text("no certificate")
    with pytest.raises(SettingsError, match=f"certificate {broken} with key .* cannot be used"):
        ServerCertificate(broken, pki[1])
    with pytest.raises(SettingsError, match=f"authority {broken} cannot be used"):
        read_authority(str(broken))
    with pytest.raises(SettingsError, match="authority /nowhere cannot be used"):
        read_authority("/nowhere")


def test_the_authority_reaches_the_stages(pki: tuple[Path, Path, Path]) -> None:
    cert, key, ca = map(str, pki)
    settings = settings_of(
        flags("--progress-url", "https://a:1", "--progress-cert-file", cert, "--progress-key-file", key,
              "--progress-ca-file", ca)
    )  # fmt: skip
    assert settings.render.progress_ca == pki[2].read_text("ascii")
    assert read_authority("") is None


def test_what_the_administrator_gives_all_stages_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        flags(
            "--stage-pull-secret", "one", "--stage-pull-secret", "two", "--stage-env", '{"HTTPS_PROXY": "http://p:1"}'
        )
    )
    assert settings.render.image_pull_secrets == ("one", "two")
    assert settings.render.extra_env == {"HTTPS_PROXY": "http://p:1"}
    monkeypatch.setenv("WRPO_STAGE_PULL_SECRETS", "one two")
    assert settings_of(flags()).render.image_pull_secrets == ("one", "two")


MISMATCHED = {
    "an environment that is no JSON": (("--stage-env", "A=b"), "is not JSON"),
    "an environment of numbers": (("--stage-env", '{"A": 1}'), "from names to strings"),
    "a certificate without a key": (("--progress-cert-file", "a"), "belong together"),
    "an https URL without a certificate": (("--progress-url", "https://a:1"), "serves plain HTTP"),
    "an http URL with a certificate": (
        ("--progress-url", "http://a:1", "--progress-cert-file", "a", "--progress-key-file", "b"),
        "serves TLS",
    ),
}


@pytest.mark.parametrize(("given", "words"), MISMATCHED.values(), ids=MISMATCHED.keys())
def test_settings_that_do_not_fit_together_are_refused(given: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(flags(*given))
