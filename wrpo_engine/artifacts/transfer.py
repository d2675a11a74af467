"""Whole files to and from a bucket: in parallel parts, with bounded memory, continuing after a break.

A download writes its parts in place and notes each in a journal beside the file. One that was killed goes on with the
parts that are missing; one whose connection broke goes on at the byte where it broke.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from wrpo_engine.artifacts.s3_client import SHA256_KEY, ConditionFailed, S3Bucket
from wrpo_engine.errors import DataError

PART_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20
_THREADS = 8
"""Memory of a transfer: threads times a block for downloads, threads times two parts at most for uploads."""


def upload(bucket: S3Bucket, path: Path, name: str, *, sha256: str) -> None:
    """Upload a file; it appears when all of it is there. The server verifies every part's checksum.

    boto3 aborts what it cannot finish; parts that a killed process leaves are invisible and go by a lifecycle rule.
    """
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    config = TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=_THREADS,
        max_io_queue=_THREADS,
        preferred_transfer_client="classic",
    )
    arguments = {"Metadata": {SHA256_KEY: sha256}, **bucket.checksum_arguments()}

    def request() -> None:
        with create_transfer_manager(bucket.client, config) as manager:
            manager.upload(str(path), bucket.bucket, bucket.key(name), extra_args=arguments).result()

    bucket.call(f"write {bucket.uri(name)}", request)


@dataclass(frozen=True, slots=True)
class _Part:
    index: int
    start: int
    end: int
    """Behind the last byte."""


def download(bucket: S3Bucket, name: str, partial: Path, *, size: int, etag: str, part_bytes: int = PART_BYTES) -> None:
    """Fill `partial` with the object of this size and ETag; DataError if it is another one by now."""
    journal = partial.with_name(f"{partial.name}s")
    header = json.dumps({"etag": etag, "size": size, "part_bytes": part_bytes})
    done = _read_journal(journal, header, partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if not done:
        partial.unlink(missing_ok=True)
        journal.write_text(header + "\n")
    parts = [
        _Part(index, start, min(start + part_bytes, size)) for index, start in enumerate(range(0, size, part_bytes))
    ]
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, size)
        writing = Lock()
        with journal.open("a") as lines:

            def fetch(part: _Part) -> None:
                _fetch(bucket, name, etag, descriptor, part)
                with writing:
                    lines.write(f"{part.index}\n")
                    lines.flush()

            _run(fetch, [part for part in parts if part.index not in done])
        os.fsync(descriptor)
    except ConditionFailed:
        journal.unlink(missing_ok=True)
        raise DataError(
            f"{bucket.uri(name)} was replaced while it was read",
            code="ArtifactDamaged",
            field="storage.s3.uri",
            hint="Write new versions under new names. The next attempt reads the new one.",
        ) from None
    finally:
        os.close(descriptor)
    journal.unlink()


def _run(fetch: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
    """Fetch parts in parallel; the first error stops those that have not begun."""
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="download") as threads:
        futures = [threads.submit(fetch, part) for part in parts]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


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
            raise ConnectionError(f"the answer ended at byte {position} of {part.end}")

    bucket.call(f"read {bucket.uri(name)}", request, progress=lambda: position)


def _read_journal(journal: Path, header: str, partial: Path) -> frozenset[int]:
    """Return the parts that an earlier process finished; none if it read another object."""
    try:
        first, *lines = journal.read_text().split("\n")
    except OSError:
        return frozenset()
    if first != header or not partial.exists():
        return frozenset()
    # Behind the last line break may stand half a number.
    return frozenset(int(line) for line in lines[:-1] if line.isdigit())
