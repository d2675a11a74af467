"""Transfer of whole files to and from a bucket: in parallel parts, with bounded memory, resumed after a break.

A download writes its parts in place and notes each in a journal next to the file. A killed download resumes with the
missing parts; after a broken connection it resumes at the byte where it broke.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from wrpo_engine.artifacts.parallel import in_parallel
from wrpo_engine.artifacts.s3_answers import needed
from wrpo_engine.artifacts.s3_client import ConditionFailed, Outcome, S3Bucket, Stat, UnsupportedConditionError, stat_of
from wrpo_engine.artifacts.s3_errors import is_missing, is_worth_waiting
from wrpo_engine.contract.storage import StorageField
from wrpo_engine.errors import TemporaryError

T = TypeVar("T")
PART_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20
_THREADS = 8
"""Memory of a transfer: threads times a block for downloads, threads times a part for uploads."""
_MOST_PARTS = 10_000
_UPLOAD_ATTEMPTS = 3


class _UploadGone(Outcome):
    """The server knows no such upload: it has aborted it, or its reply to the completion was lost."""


def upload(bucket: S3Bucket, path: Path, name: str, *, sha256: str, only_if_absent: bool = False) -> None:
    """Upload a file; it appears when all of it is there. The server verifies every part's checksum.

    ConditionFailed if it should be absent and is there, which may be by our own request whose reply was lost. What
    cannot be finished is aborted; parts that a killed process leaves are invisible and removed by a lifecycle rule.
    """
    size = path.stat().st_size
    if size <= PART_BYTES:
        bucket.put(name, path.read_bytes(), only_if_absent=only_if_absent, sha256=sha256)
        return
    parts = _parts(size, max(PART_BYTES, -(-size // _MOST_PARTS)))
    whole = _MultipartUpload(bucket, path, name, sha256, only_if_absent)
    for _ in range(_UPLOAD_ATTEMPTS):
        with contextlib.suppress(_UploadGone):
            whole.send(parts)
            return
    raise TemporaryError(
        f"cannot write {bucket.uri(name)}: the server lost the upload {_UPLOAD_ATTEMPTS} times before its completion",
        code="StorageBusy",
        field=StorageField.S3,
        hint="A lifecycle rule of the bucket may abort running uploads; otherwise see the server's log.",
    )


def upload_first(bucket: S3Bucket, path: Path, name: str, *, sha256: str) -> bool:
    """Upload a file unless an object of that name exists; return whether the object is then ours."""
    try:
        upload(bucket, path, name, sha256=sha256, only_if_absent=True)
    except ConditionFailed:
        # A request whose reply was lost finds its own object when repeated.
        stat = bucket.stat(name)
        return stat is not None and stat.sha256 == sha256
    except UnsupportedConditionError:
        # As on file systems without hard links: of writers at the same moment the last one wins.
        if bucket.stat(name) is not None:
            return False
        upload(bucket, path, name, sha256=sha256)
    return True


@dataclass(frozen=True, slots=True)
class _Part:
    index: int
    start: int
    end: int
    """Position after the last byte."""


@dataclass(frozen=True, slots=True)
class _MultipartUpload:
    """A file on its way to a bucket in parts."""

    bucket: S3Bucket
    path: Path
    name: str
    sha256: str
    only_if_absent: bool

    def send(self, parts: Sequence[_Part]) -> None:
        """Send all parts and complete the object. Raises _UploadGone if the server no longer knows the upload."""
        bucket = self.bucket
        target = {"Bucket": bucket.bucket, "Key": bucket.key(self.name)}
        upload_id = bucket.call(
            f"write {bucket.uri(self.name)}",
            lambda: needed(
                bucket.client.create_multipart_upload(
                    **target, **bucket.checksum_arguments(), **bucket.metadata(self.sha256)
                ),
                "UploadId",
            ),
        )
        address = {**target, "UploadId": upload_id}
        try:
            sent = _run(lambda part: self._send_part(part, address), parts)
            bucket.call(f"write {bucket.uri(self.name)}", lambda: self._complete(upload_id, sent))
        except BaseException:
            with contextlib.suppress(Exception):
                bucket.client.abort_multipart_upload(**address)
            raise

    def _send_part(self, part: _Part, address: dict[str, Any]) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(part.start)
            content = file.read(part.end - part.start)
        number = part.index + 1
        answer = self.bucket.call(
            f"write part {number} of {self.bucket.uri(self.name)}",
            lambda: self.bucket.client.upload_part(
                **address, PartNumber=number, Body=content, **self.bucket.checksum_arguments()
            ),
        )
        return {"PartNumber": number, **{key: answer[key] for key in ("ETag", "ChecksumSHA256") if key in answer}}

    def _complete(self, upload_id: str, sent: list[dict[str, Any]]) -> None:
        client = self.bucket.client
        try:
            self.bucket.conditional(
                client.complete_multipart_upload,
                self.name,
                only_if_absent=self.only_if_absent,
                UploadId=upload_id,
                MultipartUpload={"Parts": sent},
            )
        except client.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchUpload":
                raise _UploadGone from error
            raise


def _parts(size: int, part_bytes: int) -> list[_Part]:
    starts = enumerate(range(0, size, part_bytes))
    return [_Part(index, start, min(start + part_bytes, size)) for index, start in starts]


@dataclass(frozen=True, slots=True)
class Version:
    """What an object of a bucket must be for a download."""

    size: int
    etag: str


def download(bucket: S3Bucket, name: str, partial: Path, version: Version, *, part_bytes: int = PART_BYTES) -> None:
    """Fill `partial` with this version of an object; TemporaryError if the object has changed."""
    journal = _journal(partial)
    header = json.dumps({"etag": version.etag, "size": version.size, "part_bytes": part_bytes})
    done = _read_journal(journal, header, partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if not done:
        partial.unlink(missing_ok=True)
        journal.write_text(header + "\n")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, version.size)
        writing = Lock()
        with journal.open("a") as lines:

            def fetch(part: _Part) -> None:
                _fetch(bucket, name, version.etag, descriptor, part)
                with writing:
                    lines.write(f"{part.index}\n")
                    lines.flush()

            _run(fetch, [part for part in _parts(version.size, part_bytes) if part.index not in done])
        os.fsync(descriptor)
    except ConditionFailed:
        journal.unlink(missing_ok=True)
        raise replaced(bucket, name) from None
    finally:
        os.close(descriptor)
    journal.unlink()


def download_whole(bucket: S3Bucket, name: str, partial: Path, *, size: int, etag: str | None = None) -> Stat | None:
    """Fill `partial` with a small object by one request; return the reply's metadata, or None if there is no object.

    Nothing is read of one that has another size. With an ETag, TemporaryError if it is another one by now.
    """
    condition = {} if etag is None else {"IfMatch": etag}

    def request() -> tuple[Stat, Any] | None:
        try:
            answer = bucket.client.get_object(Bucket=bucket.bucket, Key=bucket.key(name), **condition)
            return stat_of(answer), answer["Body"]
        except bucket.client.exceptions.ClientError as error:
            if is_missing(error):
                return None
            raise

    try:
        answer = bucket.call(f"read {bucket.uri(name)}", request)
        if answer is None:
            return None
        stat, stream = answer
        with contextlib.closing(stream) as body:
            if stat.size == size:
                _fill(bucket, name, partial, stat, body)
    except ConditionFailed:
        raise replaced(bucket, name) from None
    return stat


def _fill(bucket: S3Bucket, name: str, partial: Path, stat: Stat, body: Any) -> None:
    """Write a reply's body; if it breaks off, request the missing rest separately."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    _journal(partial).unlink(missing_ok=True)
    with partial.open("wb", buffering=0) as file:
        position = 0
        try:
            for block in body.iter_chunks(_BLOCK_BYTES):
                position += file.write(block)
        except Exception as error:
            if not is_worth_waiting(error):
                raise
        if position < stat.size:
            _fetch(bucket, name, stat.etag, file.fileno(), _Part(0, position, stat.size))
        os.fsync(file.fileno())


def replaced(bucket: S3Bucket, name: str) -> TemporaryError:
    """Return the error of an object that has another ETag than before."""
    return TemporaryError(
        f"{bucket.uri(name)} was replaced while it was read",
        code="StorageChanged",
        field=StorageField.S3_URI,
        hint="Write new versions under new names. The next attempt reads the new one.",
    )


def _journal(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}s")


def _run(move: Callable[[_Part], T], parts: Iterable[_Part]) -> list[T]:
    return in_parallel(move, parts, threads=_THREADS, name="transfer")


def _fetch(bucket: S3Bucket, name: str, etag: str, descriptor: int, part: _Part) -> None:
    position = part.start

    def request() -> None:
        nonlocal position
        if position >= part.end:
            return
        answer = bucket.client.get_object(
            Bucket=bucket.bucket, Key=bucket.key(name), Range=f"bytes={position}-{part.end - 1}", IfMatch=etag
        )
        with contextlib.closing(answer["Body"]) as body:
            for block in body.iter_chunks(_BLOCK_BYTES):
                os.pwrite(descriptor, block, position)
                position += len(block)
        if position < part.end:
            raise ConnectionError(f"the reply ended at byte {position} of {part.end}")

    bucket.call(f"read {bucket.uri(name)}", request, progress=lambda: position)


def _read_journal(journal: Path, header: str, partial: Path) -> frozenset[int]:
    """Return the parts that an earlier process finished; none if it read another object."""
    try:
        first, *lines = journal.read_text().split("\n")
    except OSError:
        return frozenset()
    if first != header or not partial.exists():
        return frozenset()
    # After the last line break there may be half a number.
    return frozenset(int(line) for line in lines[:-1] if line.isdigit())
