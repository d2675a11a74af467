"""The demo on S3: the examples with nothing but their storage replaced, and no volume in what they make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from support.crd_validation import refusals

from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.cli import demo_s3
from wrpo_operator.cli.install import CHECKOUT
from wrpo_operator.cli.main import main
from wrpo_operator.cli.planning import manifests
from wrpo_operator.cli.show import read_artifact_file
from wrpo_operator.plan.graph import build_graph

JsonObject = dict[str, Any]
ENDPOINT = "http://127.0.0.1:8333"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def example(name: str) -> list[JsonObject]:
    return list(yaml.safe_load_all((CHECKOUT / "examples" / name).read_text(encoding="utf-8")))


@pytest.fixture
def quickstart() -> JsonObject:
    return example("quickstart.yaml")[0]


def pods_in(document: Any) -> list[JsonObject]:
    """Return all pod specs in an object: whatever has containers."""
    if isinstance(document, list):
        return [pod for entry in document for pod in pods_in(entry)]
    if not isinstance(document, dict):
        return []
    own = [document] if "containers" in document else []
    return own + [pod for entry in document.values() for pod in pods_in(entry)]


def test_the_experiment_on_s3_is_the_quickstart_with_another_storage_and_is_valid(quickstart: JsonObject) -> None:
    on_s3 = demo_s3.experiment_on_s3(quickstart, ENDPOINT)
    assert refusals(on_s3) == []
    assert on_s3["spec"].pop("storage") == {
        "s3": {"uri": demo_s3.URI, "endpoint": ENDPOINT, "credentialsSecretName": demo_s3.SECRET}
    }
    assert quickstart["spec"].pop("storage") == {"volume": {"claimName": "wrpo-storage"}}
    assert on_s3 == quickstart


def test_every_stage_on_s3_has_the_address_that_it_has_on_a_volume(quickstart: JsonObject) -> None:
    def addresses(document: JsonObject) -> dict[str, str]:
        return {str(node.id): node.hash for node in build_graph(parse_spec(document["spec"]))}

    of_benchmark = len({"bench"}) + 2 * len({"target", "sft", "trained"})
    assert len(addresses(quickstart)) == 19 + of_benchmark + len({"target", "smollm2", "chatterbot", "reward"})
    assert addresses(demo_s3.experiment_on_s3(quickstart, ENDPOINT)) == addresses(quickstart)


def test_no_pod_of_any_stage_on_s3_has_a_volume_that_outlives_it(quickstart: JsonObject) -> None:
    pods = pods_in(manifests(demo_s3.experiment_on_s3(quickstart, ENDPOINT), demo_s3.NAMESPACE))
    kinds = {kind for pod in pods for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "configMap", "projected"}
    sources = [container["envFrom"] for pod in pods for container in pod["containers"]]
    assert len(sources) > 13
    assert sources == [[{"secretRef": {"name": demo_s3.SECRET}}]] * len(sources)
    on_a_volume = pods_in(manifests(quickstart, "default"))
    assert all(any("persistentVolumeClaim" in volume for volume in pod["volumes"]) for pod in on_a_volume)


def test_the_assets_job_writes_to_the_bucket_and_the_claim_is_gone() -> None:
    documents = example("quickstart-assets.yaml")
    (job,) = demo_s3.assets_on_s3(documents, ENDPOINT)
    assert documents == example("quickstart-assets.yaml")
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    container = pod["containers"][0]
    assert container["command"] == ["wrpo-engine", "quickstart-assets", "--out", demo_s3.URI]
    assert {entry["name"]: entry["value"] for entry in container["env"]} == {
        "HOME": "/tmp",
        "AWS_ENDPOINT_URL": ENDPOINT,
        "WRPO_SCRATCH": "/tmp",
    }
    assert container["envFrom"] == [{"secretRef": {"name": demo_s3.SECRET}}]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_the_credentials_are_in_the_secret_that_the_pods_name() -> None:
    namespace, secret = demo_s3.surroundings(CREDENTIALS)
    assert namespace["metadata"] == {"name": demo_s3.NAMESPACE}
    assert secret["metadata"] == {"name": demo_s3.SECRET, "namespace": demo_s3.NAMESPACE}
    assert secret["stringData"] == CREDENTIALS


def test_another_account_in_the_environment_is_not_the_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c", "AWS_PROFILE": "d"}
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    demo_s3.use_credentials(CREDENTIALS)
    assert {name: os.environ.get(name) for name in theirs} == {
        **CREDENTIALS,
        "AWS_SESSION_TOKEN": None,
        "AWS_PROFILE": None,
    }


def test_the_demo_explains_what_s3_changes() -> None:
    output = CliRunner().invoke(main, ["demo", "--help"]).output
    assert "--s3" in output
    assert demo_s3.NAMESPACE in output


def test_a_file_of_an_artifact_on_a_volume_is_read_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_bytes(b"{}")
    assert read_artifact_file({}, str(tmp_path), "evaluation.json") == b"{}"
    with pytest.raises(click.ClickException, match=r"nothing.html cannot be read from here: No such file or directory"):
        read_artifact_file({}, str(tmp_path), "nothing.html")
