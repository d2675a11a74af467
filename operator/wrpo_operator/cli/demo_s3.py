"""Quick start on S3: its two files with another storage, and the bucket and Secret that they refer to."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping

from wrpo_operator.runtime.resources import JsonObject

NAMESPACE = "quickstart-s3"
"""Differs from that of the demo on a volume, so that both can exist at the same time."""
SECRET = "quickstart-bucket"  # noqa: S105 - a name
BUCKET = "wrpo-demo"
URI = f"s3://{BUCKET}/quickstart"
_ANOTHER_ACCOUNT = ("AWS_SESSION_TOKEN", "AWS_PROFILE")


def experiment_on_s3(manifest: JsonObject, endpoint: str) -> JsonObject:
    """Return the experiment with spec.storage replaced."""
    storage = {"s3": {"uri": URI, "endpoint": endpoint, "credentialsSecretName": SECRET}}
    return {**manifest, "spec": {**manifest["spec"], "storage": storage}}


def assets_on_s3(documents: Iterable[JsonObject], endpoint: str) -> list[JsonObject]:
    """Return the assets Job with the bucket instead of the claim as its destination."""
    return [_job_on_s3(document, endpoint) for document in documents if document["kind"] != "PersistentVolumeClaim"]


def _job_on_s3(job: JsonObject, endpoint: str) -> JsonObject:
    job = copy.deepcopy(job)
    pod = job["spec"]["template"]["spec"]
    claims = {volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] not in claims]
    for container in pod["containers"]:
        mounts = container["volumeMounts"]
        roots = {mount["mountPath"] for mount in mounts if mount["name"] in claims}
        container["volumeMounts"] = [mount for mount in mounts if mount["name"] not in claims]
        container["command"] = [URI if part in roots else part for part in container["command"]]
        container["env"] += [
            {"name": "AWS_ENDPOINT_URL", "value": endpoint},
            # Models are created there before the upload.
            {"name": "WRPO_SCRATCH", "value": "/tmp"},  # noqa: S108 - an emptyDir of the pod
        ]
        container["envFrom"] = [{"secretRef": {"name": SECRET}}]
    return job


def surroundings(credentials: Mapping[str, str]) -> list[JsonObject]:
    """Return the namespace and the Secret with the credentials of the pods."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": NAMESPACE},
            "stringData": dict(credentials),
        },
    ]


def use_credentials(credentials: Mapping[str, str]) -> None:
    """Set the server's credentials in this process, in place of any account in the user's environment."""
    for name in _ANOTHER_ACCOUNT:
        os.environ.pop(name, None)
    os.environ.update(credentials)


def make_bucket(endpoint: str) -> None:
    """Create the bucket unless it exists, and wait until it can be written."""
    from wrpo_engine.storage import BucketRoot, S3Location

    BucketRoot(S3Location(uri=URI, endpoint=endpoint), os.environ).create()
