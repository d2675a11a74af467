"""`wrpo artifacts` on real directories, with a cluster of made-up experiments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wrpo_engine.artifacts import InputEntry, VolumeStore
from wrpo_engine.config import ArtifactRef
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.cli import artifacts
from wrpo_operator.cli.main import main
from wrpo_operator.cli.references import references_of, with_inputs
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.runtime.kube import KubeError

JsonObject = dict[str, Any]
SPEC = {
    "target": {"model": "org/target"},
    "sources": [{"name": "a", "model": "org/a"}],
    "prompts": {"dataset": "org/prompts"},
    "reward": {"model": "org/reward"},
    "storage": {"volume": {"claimName": "artifacts"}},
    "training": {"objective": "SFTOnly"},
    "evaluation": {"enabled": False},
    "report": {"enabled": False},
}
NOW = datetime.now(UTC)
OLD, UNKNOWN = "00000000000000aa", "00000000000000bb"


def experiment(name: str, *, status: JsonObject | None = None, **spec: Any) -> JsonObject:
    metadata = {"name": name, "namespace": "ml", "generation": 1}
    return {"metadata": metadata, "spec": {**SPEC, **spec}, "status": status or {}}


def planned(stage: str) -> str:
    return next(node.hash for node in build_graph(parse_spec(SPEC)) if str(node.id) == stage)


class Storage:
    """A volume with artifacts of a chosen age."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def make(
        self, stage: str, hash_: str, *, days: float = 3, complete: bool = True, made_from: str | None = None
    ) -> Path:
        ref = ArtifactRef(stage=stage, hash=hash_)
        inputs = {}
        if made_from:
            upstream, _, key = made_from.rpartition("/")
            inputs["prompts"] = InputEntry(stage=upstream, hash=key, digest="0" * 64)
        writer = VolumeStore(self.root, lambda: NOW).writer(ref, config={}, inputs=inputs)
        writer.publish("parts/1", lambda path: _fill(path, 2048))
        if complete:
            writer.commit(files=["parts/1"])
        stamp = (NOW - timedelta(days=days)).timestamp()
        for path in writer.directory.rglob("*"):
            os.utime(path, (stamp, stamp))
        return writer.directory

    def addresses(self) -> set[str]:
        return {path.parent.parent.relative_to(self.root).as_posix() for path in self.root.rglob("parts/1")}


def _fill(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


Asked = Callable[..., None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """`cluster(*answers)`: what the cluster lists, one answer after the other; the last one for ever."""
    # Where no embedded cluster is, as there may be in the checkout.
    monkeypatch.chdir(tmp_path)

    def set_up(*answers: list[JsonObject] | KubeError) -> None:
        left = list(answers)

        async def with_client(_target: Any, _work: Any) -> Any:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, KubeError):
                raise answer
            return answer

        monkeypatch.setattr(artifacts, "with_client", with_client)

    return set_up


def wrpo(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["artifacts", *arguments, "-n", "ml"])
    return result.exit_code, result.output


def test_ls_shows_size_state_and_who_refers(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", planned("prepare"))
    storage.make("sample/a", OLD, complete=False)
    storage.make("train", UNKNOWN)
    (storage.root / "train" / UNKNOWN / "manifest.json").write_text("{")
    (storage.root / "models" / "mine").mkdir(parents=True)
    (storage.root / "models" / "mine" / "config.json").write_text("{}")
    cluster([experiment("fusion"), experiment("other")])
    code, output = wrpo("ls", "--storage", str(storage.root))
    assert code == 0, output
    rows = [line.split(maxsplit=6) for line in output.splitlines()]
    assert rows[0] == ["STAGE", "HASH", "STATE", "SIZE", "FILES", "MODIFIED", "EXPERIMENTS"]
    assert [(row[0], row[2]) for row in rows[1:]] == [
        ("prepare", "Complete"),
        ("sample/a", "Unfinished"),
        ("train", "Damaged"),
    ]
    assert rows[1][6].endswith("ml/fusion, ml/other")
    assert rows[2][3:5] == ["2.0", "KiB"]
    code, output = wrpo("ls", "--storage", str(storage.root), "-o", "json")
    listed = json.loads(output)
    assert [row["experiments"] for row in listed] == [["ml/fusion", "ml/other"], [], []]
    assert "is not a valid manifest" in listed[2]["fault"]


def test_ls_without_a_cluster_says_that_it_does_not_know(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", OLD)
    cluster(KubeError(0, "Unreachable", "no route"))
    code, output = wrpo("ls", "--storage", str(storage.root))
    assert code == 0
    assert output.splitlines()[1].endswith("?")


def test_du_sums_up_by_stage(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", planned("prepare"), complete=False)
    storage.make("sample/a", OLD, complete=False)
    storage.make("sample/a", UNKNOWN, complete=False)
    cluster([experiment("fusion")])
    code, output = wrpo("du", "--storage", str(storage.root))
    assert code == 0
    rows = [line.split() for line in output.splitlines()[2:]]
    assert rows == [
        ["sample/a", "2", "4.0", "KiB", "4.0", "KiB"],
        ["prepare", "1", "2.0", "KiB", "0", "B"],
        ["total", "3", "6.0", "KiB", "4.0", "KiB"],
    ]


def test_gc_removes_only_what_is_old_and_referred_to_by_nobody(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", OLD)
    storage.make("sample/a", UNKNOWN, made_from=f"prepare/{OLD}")
    storage.make("sft", planned("sft"), complete=False)
    gone = storage.make("train", OLD)
    storage.make("train", UNKNOWN, days=0.5)
    half = storage.make("score/a", OLD, complete=False)
    stage = {"name": "sample/a", "state": "Succeeded", "hash": UNKNOWN, "artifact": f"sample/a/{UNKNOWN}"}
    cluster([experiment("fusion", status={"stages": [stage]})])
    before = storage.addresses()
    code, output = wrpo("gc", "--storage", str(storage.root))
    assert code == 0, output
    assert f"would remove train/{OLD}" in output
    assert f"would remove score/a/{OLD}" in output
    assert "2 artifacts, 4." in output.splitlines()[-1]
    assert storage.addresses() == before
    code, output = wrpo("gc", "--storage", str(storage.root), "--yes")
    assert code == 0, output
    assert before - storage.addresses() == {f"train/{OLD}", f"score/a/{OLD}"}
    assert not gone.exists()
    assert not half.parent.parent.exists()
    assert "removed 2 artifacts" in output


def test_gc_spares_what_an_experiment_that_came_meanwhile_refers_to(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", planned("prepare"))
    cluster([], [experiment("new")])
    code, output = wrpo("gc", "--storage", str(storage.root), "--yes")
    assert code == 0
    assert "removed 0 artifacts" in output
    assert storage.addresses() == {f"prepare/{planned('prepare')}"}


def test_gc_goes_by_age(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", OLD, days=0.5)
    cluster([])
    assert "0 artifacts" in wrpo("gc", "--storage", str(storage.root))[1]
    assert "1 artifacts" in wrpo("gc", "--storage", str(storage.root), "--min-age", "6h")[1]
    code, output = wrpo("gc", "--storage", str(storage.root), "--min-age", "soon")
    assert code == 2
    assert "'soon' is not an age" in output


REFUSALS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "no cluster": (KubeError(0, "Unreachable", "no route to host"), (), "cannot be listed (no route to host)"),
    "no right to list": (KubeError(403, "Forbidden", "forbidden: all namespaces"), (), "in all namespaces"),
    "a spec of another version": ([experiment("odd", target={"model": 3})], (), "ml/odd: this version cannot read"),
}


@pytest.mark.parametrize(("answer", "arguments", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_gc_refuses_when_it_cannot_know(
    storage: Storage, cluster: Asked, answer: Any, arguments: tuple[str, ...], words: str
) -> None:
    storage.make("prepare", OLD)
    cluster(answer)
    code, output = wrpo("gc", "--storage", str(storage.root), "--yes", *arguments)
    assert code == 1
    assert words in output
    assert storage.addresses() == {f"prepare/{OLD}"}


def test_gc_of_a_storage_whose_cluster_is_gone_has_to_be_asked_for(storage: Storage, cluster: Asked) -> None:
    storage.make("prepare", OLD)
    cluster(KubeError(0, "Unreachable", "no route"))
    code, output = wrpo("gc", "--storage", str(storage.root), "--yes", "--assume-no-experiments")
    assert code == 0, output
    assert storage.addresses() == set()
    code, output = wrpo("gc", "--yes", "--assume-no-experiments")
    assert code == 2
    assert "--assume-no-experiments needs --storage" in output


def test_what_lies_elsewhere_is_said(storage: Storage, cluster: Asked) -> None:
    cluster([experiment("fusion")])
    assert "claim artifacts, which is not mounted here" in wrpo("ls", "fusion")[1]
    assert "there is no experiment nobody in namespace ml" in wrpo("ls", "nobody")[1]
    assert "/nowhere is not a directory. Set --storage to an existing one." in wrpo("ls", "--storage", "/nowhere")[1]


def test_references_go_upstream_through_shared_inputs(storage: Storage) -> None:
    from wrpo_engine.artifacts.inventory import VolumeInventory

    storage.make("prepare", OLD)
    storage.make("sample/a", OLD, made_from=f"prepare/{OLD}")
    storage.make("score/a", OLD, made_from=f"sample/a/{OLD}")
    stages = [{"name": "score/a", "state": "Succeeded", "hash": OLD}]
    found = VolumeInventory(storage.root).artifacts()
    referred = with_inputs(references_of([experiment("x", status={"stages": stages})]), found)
    assert referred.of(f"prepare/{OLD}") == referred.of(f"sample/a/{OLD}") == {"ml/x"}
