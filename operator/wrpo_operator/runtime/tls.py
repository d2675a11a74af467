"""The progress endpoint's certificate, reloaded when the mounted files change."""

from __future__ import annotations

import ssl
from pathlib import Path

from wrpo_operator.runtime.errors import SettingsError


class ServerCertificate:
    """A TLS context over two PEM files. Open connections keep their certificate."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded = b""
        try:
            self.reload()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"the progress endpoint's certificate {cert_file} with key {key_file} cannot be used: {error}. "
                "Set PEM files that belong together, or leave both options empty for plain HTTP."
            ) from error

    def reload(self) -> bool:
        """Load the files if they have changed; return whether they had. Raises OSError and ssl.SSLError."""
        content = b"".join(path.read_bytes() for path in self._files)
        if content == self._loaded:
            return False
        self.context.load_cert_chain(*self._files)
        self._loaded = content
        return True


def read_authority(path: str) -> str | None:
    """Return the PEM text at `path`; None for the empty path."""
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="ascii")
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError, ssl.SSLError) as error:
        raise SettingsError(
            f"the progress endpoint's authority {path} cannot be used: {error}. Set a file of PEM certificates."
        ) from error
    return text
