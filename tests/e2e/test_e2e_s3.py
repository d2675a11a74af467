"""A whole experiment on S3: the real engine and operator, a real S3 server, no volume; a pod and the server are killed.

No pod has anything but its own scratch directory and the bucket: what a stage reads, resumes from and leaves is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from e2e_real_support import LOOK_S, STAGES, engine_process, fill_claim, real_experiment
from e2e_support import EXTERNAL, NAMESPACE, SYSTEM, Kube
from support.patience import LONG_S, wait_until
from support.s3_server import S3Server
from support.stopping import stop_when

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.install import install_operator
from wrpo_operator.cli.main import main

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(EXTERNAL, reason="a foreign cluster reaches no server of this machine's loopback"),
]
BUCKET, PREFIX = "experiments", "team/one"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    running = S3Server(tmp_path_factory.mktemp("s3-server")).start()
    running.make_bucket(BUCKET)
    own = tmp_path_factory.mktemp("inputs")
    fill_claim(own)
    for path in own.rglob("*"):
        if path.is_file():
            running.client().upload_file(str(path), BUCKET, f"{PREFIX}/{path.relative_to(own)}")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, server: S3Server) -> Iterator[Kube]:
    state_dir = tmp_path_factory.mktemp("real-s3")
    config = replace(lifecycle.default_config(state_dir), backoff_scale=0.1)
    cluster = Kube(lifecycle.up(state_dir, config=config).kubeconfig, state_dir)
    try:
        install_operator(cluster.kubeconfig, namespace=SYSTEM, values={"auditSeconds": 15})
        cluster.run("kubectl", "create", "namespace", NAMESPACE)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}, "stringData": server.environ()}
        cluster.apply(secret)
        yield cluster
    finally:
        lifecycle.reset(state_dir)


def on_s3(name: str, server: S3Server, **spec: Any) -> dict[str, Any]:
    """One source and one epoch: the shortest experiment with every stage, and gangs of two pods."""
    experiment = real_experiment(name, "unused", **spec)
    experiment["spec"]["sources"] = [{"name": "a", "model": "storage://models/a"}]
    experiment["spec"]["training"]["epochs"] = 1
    s3 = {"uri": f"s3://{BUCKET}/{PREFIX}", "endpoint": server.endpoint, "credentialsSecretName": "bucket"}
    experiment["spec"]["storage"] = {"s3": s3}
    return experiment


def test_an_experiment_runs_on_a_bucket_alone_through_a_killed_pod_and_a_restarted_server(
    real: Kube, server: S3Server
) -> None:
    real.apply(on_s3("bucketed", server))
    key = wait_until("sample/a is planned", lambda: real.stage("bucketed", "sample/a").get("hash"))
    base = f"{PREFIX}/sample/a/{key}"
    pid = wait_until("sample/a runs", lambda: engine_process(real, "bucketed", "sample/a"), every_s=LOOK_S)
    stop_when([pid], "sample/a has published a part", lambda: server.keys(BUCKET, f"{base}/parts/"))
    is_late = f"{base}/manifest.json" in server.keys(BUCKET, base)
    kept = {entry["Key"]: entry["LastModified"] for entry in listed(server, f"{base}/parts/")}
    os.kill(pid, signal.SIGKILL)
    assert not is_late, "the work was done before the kill; the test must give the stage more to do"
    wait_until("sft runs", lambda: engine_process(real, "bucketed", "sft", replica="master"), every_s=LOOK_S)
    server.kill()
    server.start()
    status = real.wait_phase("bucketed", "Succeeded", LONG_S)

    assert {entry["name"] for entry in status["stages"]} == {name for name in STAGES if not name.endswith("/b")}
    assert {entry["state"] for entry in status["stages"]} == {"Succeeded"}
    later = {entry["Key"]: entry["LastModified"] for entry in listed(server, f"{base}/parts/")}
    assert kept
    assert {key: later[key] for key in kept} == kept, "the next pod made published parts anew"
    for entry in status["stages"]:
        manifest = json.loads(read(server, f"{entry['artifact']}/manifest.json"))
        assert manifest["files"], entry["name"]
        for file in manifest["files"]:
            content = read(server, f"{entry['artifact']}/{file['name']}")
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"]), file["name"]
        prefix = f"{PREFIX}/{entry['artifact']}/"
        listing = {item["Key"].removeprefix(prefix) for item in listed(server, prefix)}
        # Event files carry the clock's times: they lie beside the artifact, not in its manifest.
        listing = {name for name in listing if not name.startswith("tensorboard/")}
        assert listing == {"manifest.json", *(file["name"] for file in manifest["files"])}, entry["name"]


def test_the_trained_model_is_a_model_anyone_can_load(real: Kube, server: S3Server, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifact = real.stage("bucketed", "train")["artifact"]
    for entry in listed(server, f"{PREFIX}/{artifact}/model/"):
        path = tmp_path / Path(entry["Key"]).name
        path.write_bytes(server.client().get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template


def test_the_report_is_saved_from_the_bucket(
    real: Kube, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.environ().items():
        monkeypatch.setenv(key, value)
    saved = tmp_path / "report.html"
    where = ["--kubeconfig", str(real.kubeconfig), "-n", NAMESPACE]
    result = CliRunner().invoke(main, ["report", "bucketed", "--save", str(saved), *where])
    assert (result.exit_code, result.output) == (0, f"{saved}\n")
    assert saved.read_bytes() == read(server, f"{real.stage('bucketed', 'report')['artifact']}/report.html")


def test_a_second_apply_computes_nothing(real: Kube, server: S3Server) -> None:
    before = {entry["Key"]: entry["ETag"] for entry in listed(server, PREFIX)}
    real.apply(on_s3("again", server))
    status = real.wait_phase("again", "Succeeded")
    assert [entry["name"] for entry in status["stages"] if not entry.get("cached")] == []
    after = {entry["Key"]: entry["ETag"] for entry in listed(server, PREFIX)}
    assert {key: after[key] for key in before} == before


def test_a_missing_bucket_fails_the_experiment_in_the_engines_words(real: Kube, server: S3Server) -> None:
    experiment = on_s3("nowhere", server)
    experiment["spec"]["storage"]["s3"]["uri"] = "s3://nobody-made-this/x"
    real.apply(experiment)
    status = real.wait_phase("nowhere", "Failed")
    (failed,) = [entry for entry in status["conditions"] if entry["type"] == "Failed"]
    for word in ("StorageMissing", "spec.storage.s3.uri", "there is no bucket nobody-made-this", "Create the bucket"):
        assert word in failed["message"]


def listed(server: S3Server, prefix: str) -> list[dict[str, Any]]:
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry for page in pages for entry in page.get("Contents", ())]


def read(server: S3Server, name: str) -> bytes:
    content: bytes = server.client().get_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}")["Body"].read()
    return content


def test_artifacts_are_listed_with_who_refers_and_go_when_nobody_does(
    real: Kube, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.environ().items():
        monkeypatch.setenv(key, value)

    def wrpo(*arguments: str) -> str:
        where = ["--kubeconfig", str(real.kubeconfig), "-n", NAMESPACE]
        result = CliRunner().invoke(main, ["artifacts", *arguments, *where])
        assert result.exit_code == 0, result.output
        return result.output

    rows = {row["stage"]: row for row in json.loads(wrpo("ls", "bucketed", "-o", "json"))}
    assert set(rows) == {name for name in STAGES if not name.endswith("/b")}
    assert f"{NAMESPACE}/bucketed" in rows["train"]["experiments"]
    assert {row["state"] for row in rows.values()} == {"Complete"}
    assert "0 artifacts" in wrpo("gc", "bucketed", "--min-age", "0s", "--yes").splitlines()[-1]
    real.kubectl("delete", "wrpoexperiments", "--all", "--wait")
    storage = ["--storage", f"s3://{BUCKET}/{PREFIX}", "--endpoint", server.endpoint]
    before = server.keys(BUCKET, PREFIX)
    wrpo("gc", *storage, "--min-age", "0s")
    assert server.keys(BUCKET, PREFIX) == before
    wrpo("gc", *storage, "--min-age", "0s", "--yes")
    left = {key.removeprefix(f"{PREFIX}/").split("/")[0] for key in server.keys(BUCKET, PREFIX)}
    assert left == {"models", "prompts.jsonl"}
