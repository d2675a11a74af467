"""The embedded control plane's S3 server (SeaweedFS) for tests: one process on loopback, killed and started at will."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.patience import LIMIT_S

from wrpo_devcluster.ports import free_ports
from wrpo_devcluster.s3_server import choose_ports, command_line, find_program, remove_sockets

ACCESS_KEY = "wrpo-tests"
SECRET_KEY = "wrpo-tests-secret"


@dataclass
class S3Server:
    """`start`, use `endpoint` and `client()`, `kill` or `stop`; `start` again finds the same buckets and address."""

    directory: Path
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _ports: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """What a pod gets from the credentials Secret."""
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

    def start(self) -> S3Server:
        if not self.port:
            self.port = free_ports(1)[0]
        self._ports = choose_ports()
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command_line(find_program(), self.directory, self.port, self._ports),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environ()},
                start_new_session=True,
            )
        self._wait_ready()
        return self

    def _wait_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process is not None
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                # The gateway listens before its file system can be written.
                self.client().list_buckets()
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
            else:
                return
        self.kill()
        log = (self.directory / "server.log").read_text(errors="replace")
        raise RuntimeError(f"the S3 server did not start:\n{log[-4000:]}")

    def client(self) -> Any:
        """Return a plain boto3 client with the right credentials, for looking at what is in a bucket."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self, name: str) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key=".ready", Body=b"")
                client.delete_object(Bucket=name, Key=".ready")
            except (BotoCoreError, ClientError):
                # The first volume is allotted a moment after the start.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(LIMIT_S)
        self._process = None
        remove_sockets([self.port, *self._ports.values()])
