"""The progress endpoint's certificate, and the authority that stages verify it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from wrpo_devcluster.certificates import ensure_certificates
from wrpo_operator.runtime.errors import SettingsError
from wrpo_operator.runtime.settings import load
from wrpo_operator.runtime.tls import ServerCertificate, read_authority


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    from datetime import UTC, datetime

    made = ensure_certificates(tmp_path_factory.mktemp("pki"), datetime.now(UTC))
    return made.cert_file, made.key_file, made.ca_file


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
    files = {"progress_cert_file": cert, "progress_key_file": key, "progress_ca_file": ca}
    settings = load({"progress_url": "https://a:1", **files})
    assert settings.render.progress_ca == pki[2].read_text("ascii")
    assert read_authority("") is None
