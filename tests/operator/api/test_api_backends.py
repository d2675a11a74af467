"""One entry per kind of child: what is derived from it, and that nothing is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wrpo_operator.api import messages
from wrpo_operator.api.backends import BACKENDS, CHART_FILE, CHILD_KINDS, HEADER, BackendKind, chart_facts, main
from wrpo_operator.api.conditions import Reason
from wrpo_operator.api.crd import schema
from wrpo_operator.api.names import child_name
from wrpo_operator.api.pod_template import protected_field_errors
from wrpo_operator.api.yamlio import dump

ROOT = Path(__file__).parents[3]
FIELD = schema()["properties"]["spec"]["properties"]["training"]["properties"]["backend"]


def test_the_charts_file_is_generated_from_the_entries() -> None:
    path = ROOT / "charts/wrpo-operator/files/backends.yaml"
    assert path.read_text() == HEADER + dump(chart_facts()), "run `make crds`"


def test_the_charts_file_is_printed_or_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["backends"])
    main()
    printed = capsys.readouterr().out
    assert printed == HEADER + dump(chart_facts())
    CHART_FILE.parent.mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["backends", "--write"])
    main()
    assert (CHART_FILE.read_text(), capsys.readouterr().out) == (printed, "")


def test_the_crd_offers_every_backend_and_names_its_product() -> None:
    assert FIELD["enum"] == list(BACKENDS)
    for backend in BACKENDS.values():
        assert backend.kind in FIELD["description"]
        assert backend.product in FIELD["description"]


RESERVED = sorted({key for kind in CHILD_KINDS.values() for key in kind.reserved})


@pytest.mark.parametrize("part", ["labels", "annotations"])
@pytest.mark.parametrize("reserved", [*RESERVED, "wrpo.ai"])
def test_what_belongs_to_a_controller_cannot_be_set_by_a_pod_template(reserved: str, part: str) -> None:
    keys = [f"{reserved}/x", f"alpha.{reserved}/x"] if "." in reserved else [reserved]
    for key in keys:
        assert protected_field_errors({"metadata": {part: {key: "x"}}}) == (
            f"spec.podTemplate.metadata.{part}[{key}] belongs to the operator. Remove it.",
        )
    near = [f"not{reserved}/x", f"{reserved}.example.com/x", f"{reserved}-x", f"example.com/{reserved}"]
    assert protected_field_errors({"metadata": {part: dict.fromkeys(near, "x")}}) == ()


def test_a_pod_template_cannot_give_pods_to_a_queue_but_may_choose_their_topology() -> None:
    key = "kueue.x-k8s.io/queue-name"
    assert protected_field_errors({"metadata": {"labels": {key: "gpus"}}}) == (
        f"spec.podTemplate.metadata.labels[{key}] belongs to the operator. Remove it.",
    )
    topology = {"kueue.x-k8s.io/podset-unconstrained-topology": "true"}
    assert protected_field_errors({"metadata": {"annotations": topology}}) == ()


@pytest.mark.parametrize("kind", CHILD_KINDS.values(), ids=CHILD_KINDS)
def test_the_suspend_field_is_read_where_it_is_written(kind: Any) -> None:
    assert not kind.is_suspended({})
    for suspend in (True, False):
        assert kind.is_suspended(kind.suspend_patch(suspend=suspend)["spec"]) is suspend


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_pods_of_the_longest_child_have_names_that_a_host_may_have(backend: BackendKind) -> None:
    """JobSet refuses a JobSet whose pods would have longer ones."""
    name = child_name("a" * 63, "train", "0123456789abcdef", 999, longest=backend.max_child_name)
    assert len(name) == backend.max_child_name
    assert len(name + backend.longest_suffix) <= 63


def test_a_missing_backend_is_told_with_its_product_and_a_foreign_init_container_with_the_way_around() -> None:
    assert messages.backend_missing("JobSet", ["TrainJob", "PyTorchJob"]) == (
        "The cluster does not know kind JobSet. Install JobSet; the experiment then continues. "
        "Or set training.backend to an installed one: PyTorchJob, TrainJob."
    )
    told = messages.noted(Reason.POD_SECURITY, "violates PodSecurity")
    assert told == (
        "violates PodSecurity. Allow the pod in the namespace, or change spec.podTemplate. PyTorchJob adds the init "
        "container `init-pytorch`; training.backend: TrainJob or JobSet does not."
    )
