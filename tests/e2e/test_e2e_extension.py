"""A stage of another distribution, from a spec to a committed artifact and its place in the report.

One definition is installed where operator and stages run, and the CRD is generated there; nothing else of the project
knows the stage. Preparing, shouting and the report are the engine's; what needs models in between commits nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_real_support import Artifacts, claim_path
from e2e_support import EXTERNAL, NAMESPACE, SYSTEM, Kube, claim, experiment, make_namespace
from support.extensions import install

from wrpo_devcluster import lifecycle
from wrpo_engine import __version__
from wrpo_operator.cli.install import install_operator

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(EXTERNAL, reason="the distribution is installed where the embedded cluster's pods run"),
]

EMPTY = """
import json, os, pathlib, sys
from wrpo_engine.running import run
from wrpo_engine.stage import StageResult, StopRequest
def commit(ctx):
    ctx.output.commit(files=[])
    return StageResult(rows=0)
path = pathlib.Path(sys.argv[1])
stage = json.loads(path.read_text())["params"]["stage"]
sys.exit(run(stage, path, os.environ, stop=StopRequest(), load=lambda _: commit))
"""
NEEDING_MODELS = ("sample", "score", "curate-sft", "sft")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A cluster whose pods, the operator's among them, find the distribution."""
    state_dir = tmp_path_factory.mktemp("extended")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(install(tmp_path_factory.mktemp("shout"))))
        cluster = Kube(lifecycle.up(state_dir).kubeconfig, state_dir)
        generated = subprocess.run(
            [sys.executable, "-m", "wrpo_operator.api.crd"],
            env=lifecycle.default_config(state_dir).environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    command = ["python", "-c", EMPTY, "/etc/wrpo/stage.json"]
    try:
        make_namespace(cluster, SYSTEM, "restricted")
        make_namespace(cluster, NAMESPACE, "baseline")
        cluster.run("kubectl", "apply", "--server-side", "-f", "-", stdin=generated)
        values = {"stageCommandOverrides": {kind: {"command": command} for kind in NEEDING_MODELS}}
        install_operator(cluster.kubeconfig, namespace=SYSTEM, values={**values, "crds": {"install": False}})
        cluster.apply(claim())
        yield cluster
    finally:
        lifecycle.reset(state_dir)


def test_a_stage_of_another_distribution_runs_from_the_spec_to_its_artifact(extended: Kube) -> None:
    directory = claim_path(extended, "artifacts")
    directory.mkdir(parents=True, exist_ok=True)
    prompts = "".join(f'{{"prompt": "what is {number}?"}}\n' for number in range(7))
    (directory / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    spec: dict[str, Any] = {
        "prompts": {"dataset": "storage://prompts.jsonl", "sftFraction": 0.5, "evaluation": {"prompts": 1}},
        "report": {"enabled": True},
        "resources": {"shout": {"requests": {"cpu": "10m"}}},
        "deadlines": {"stages": {"shout": {"activeSeconds": 5555}}},
    }
    extended.apply(experiment("loud", **spec))
    status = extended.wait_phase("loud", "Succeeded")
    made = Artifacts.of(extended, "loud", "artifacts")

    assert [entry["name"] for entry in status["stages"]] == [
        "prepare", "sample/a", "score/a", "curate-sft", "sft", "shout", "report",
    ]  # fmt: skip
    shouted = (made.directory("shout") / "shouts.txt").read_text(encoding="utf-8").splitlines()
    assert len(shouted) == 3
    assert set(shouted) < {f"WHAT IS {number}?!!!" for number in range(7)}
    manifest = made.manifest("shout")
    assert (manifest["stage"], manifest["metrics"]) == ("shout", {"loudness": 3.0})
    assert set(manifest["inputs"]) == {"prompts"}

    assert extended.experiment("loud")["spec"]["deadlines"]["stages"] == {"shout": {"activeSeconds": 5555}}
    (job,) = extended.list("jobs", "wrpo.ai/experiment=loud,wrpo.ai/stage=shout")
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "10m"}}
    assert container["image"] == f"wrpo/sampler:{__version__}"

    page = (made.directory("report") / "report.html").read_text(encoding="utf-8")
    assert json.dumps(made.manifest("report")["inputs"]["shouts"]["hash"])[1:-1] in page
    assert "<dt>prompts sft</dt><dd>3</dd>" in page
    assert "<dt>shouts</dt><dd>3</dd>" in page
    assert "<dt>loudness</dt><dd>3</dd>" in page
