"""Parts of the files of a directory in a bucket, read by ranges: for headers of files too large to copy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from wrpo_engine.artifacts.s3_client import ConditionFailed, Listed, S3Bucket
from wrpo_engine.artifacts.transfer import replaced


@dataclass(frozen=True)
class BucketFiles:
    """The directory `below` the storage root; see `RemoteFiles`."""

    bucket: S3Bucket
    below: str

    @cached_property
    def _listed(self) -> Mapping[str, Listed]:
        base = f"{self.below.strip('/')}/"
        # Consoles mark directories by empty objects.
        return {
            listed.key.removeprefix(base): listed
            for listed in self.bucket.listing(base)
            if not listed.key.endswith("/")
        }

    def sizes(self) -> Mapping[str, int]:
        """Return name -> size of every object of the directory."""
        return {name: listed.size for name, listed in self._listed.items()}

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Return a range of an object; TemporaryError if it was replaced since it was listed."""
        listed = self._listed[name]
        end = min(end, listed.size)
        if begin >= end:
            return b""

        def request() -> bytes:
            answer = self.bucket.client.get_object(
                Bucket=self.bucket.bucket,
                Key=self.bucket.key(listed.key),
                Range=f"bytes={begin}-{end - 1}",
                IfMatch=listed.etag,
            )
            with contextlib.closing(answer["Body"]) as body:
                content: bytes = body.read(end - begin)
            if len(content) < end - begin:
                raise ConnectionError(f"the reply ended at byte {begin + len(content)} of {end}")
            return content

        try:
            return self.bucket.call(f"read {self.bucket.uri(listed.key)}", request)
        except ConditionFailed:
            raise replaced(self.bucket, listed.key) from None
