"""Service account tokens: signing, verification, and TokenReviews."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wrpo_devcluster.apiserver.apis.request import AUTHENTICATED, User
from wrpo_devcluster.apiserver.storage.store import Store

ISSUER = "https://kubernetes.default.svc"
_CLAIM = "kubernetes.io"


class TokenError(ValueError):
    """Invalid token; the message is what a TokenReview shows."""


class Tokens:
    """Issuer and verifier of tokens, with a key in the state directory."""

    def __init__(self, state_dir: Path, store: Store, clock: Callable[[], datetime]) -> None:
        self._key = _load_key(state_dir / "service-account.key")
        self._public = self._key.public_key()
        self._store = store
        self._clock = clock

    def issue(
        self,
        namespace: str,
        service_account: str,
        *,
        audiences: Sequence[str],
        expires_s: int,
        pod: tuple[str, str] | None,
    ) -> str:
        """Return a signed token of a service account, bound to a pod (name, uid) if there is one.

        It is valid for `expires_s` seconds. Raise TokenError if the account does not exist.
        """
        record = self._store.get("/serviceaccounts", namespace, service_account)
        if record is None:
            raise TokenError(f'serviceaccounts "{service_account}" not found in namespace {namespace!r}')
        now = int(self._clock().timestamp())
        bound: dict[str, Any] = {
            "namespace": namespace,
            "serviceaccount": {"name": service_account, "uid": record.obj["metadata"]["uid"]},
        }
        if pod is not None:
            bound["pod"] = {"name": pod[0], "uid": pod[1]}
        claims = {
            "iss": ISSUER,
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
            "aud": list(audiences) or [ISSUER],
            "iat": now,
            "nbf": now,
            "exp": now + expires_s,
            "jti": str(uuid.uuid4()),
            _CLAIM: bound,
        }
        return jwt.encode(claims, self._key, algorithm="ES256")

    def verify(self, token: str, audiences: Sequence[str]) -> tuple[User, list[str]]:
        """Return the user of a valid token and those of the requested audiences for which it is valid."""
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=["ES256"],
                issuer=ISSUER,
                options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except jwt.InvalidTokenError as problem:
            raise TokenError("invalid bearer token") from problem
        if claims["exp"] <= self._clock().timestamp():
            raise TokenError("[invalid bearer token, service account token has expired]")
        matching = [audience for audience in claims["aud"] if audience in audiences]
        if not matching:
            listed = '", "'.join(claims["aud"])
            wanted = '", "'.join(audiences)
            raise TokenError(
                f'[invalid bearer token, token audiences ["{listed}"] is invalid for the target audiences ["{wanted}"]]'
            )
        return self._user(claims), matching

    def _user(self, claims: dict[str, Any]) -> User:
        bound = claims[_CLAIM]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        record = self._store.get("/serviceaccounts", namespace, account["name"])
        if record is None or record.obj["metadata"]["uid"] != account["uid"]:
            raise TokenError("[invalid bearer token, service account has been deleted]")
        extra: list[tuple[str, tuple[str, ...]]] = [
            ("authentication.kubernetes.io/credential-id", (f"JTI={claims['jti']}",))
        ]
        if "pod" in bound:
            pod = self._store.get("/pods", namespace, bound["pod"]["name"])
            if pod is None or pod.obj["metadata"]["uid"] != bound["pod"]["uid"]:
                raise TokenError("[invalid bearer token, pod has been deleted]")
            extra.append(("authentication.kubernetes.io/pod-name", (bound["pod"]["name"],)))
            extra.append(("authentication.kubernetes.io/pod-uid", (bound["pod"]["uid"],)))
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
        return User(claims["sub"], groups, account["uid"], tuple(extra))


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
    loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} is not an EC private key; delete it to have a new one made")
    return loaded
