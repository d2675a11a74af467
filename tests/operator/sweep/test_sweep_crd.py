"""The CRD of sweeps: generated, small, with the rules that Python checks too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from support.builders import raw_spec
from support.crd_validation import refusals

from wrpo_operator.api.parsing import SpecError
from wrpo_operator.api.sweep import SWEEP_RULES, parse_sweep
from wrpo_operator.api.sweep_crd import HEADER, PAGE, PATH, sweep_crd, sweep_reference, sweep_schema
from wrpo_operator.api.sweep_status import MAX_HEADLINES, MAX_ROW_MESSAGE, SweepStatus, VariantStatus
from wrpo_operator.api.yamlio import dump

ROOT = Path(__file__).parents[3]
MOST_BYTES = 1024 * 1024
"""Of the status alone: etcd takes 1.5 MiB for the whole object."""


def test_the_written_files_are_what_the_models_say() -> None:
    written = HEADER + dump(sweep_crd())
    assert (ROOT / PATH).read_text(encoding="utf-8") == written, "run `make crds`"
    assert (ROOT / "charts/wrpo-operator/files" / PATH.name).read_text(encoding="utf-8") == written, "run `make crds`"
    assert (ROOT / PAGE).read_text(encoding="utf-8") == sweep_reference(), "run `make crds`"
    kubernetes_validate.validate(sweep_crd(), "1.37.0", strict=True)


def test_columns_and_short_names() -> None:
    names, (version,) = sweep_crd()["spec"]["names"], sweep_crd()["spec"]["versions"]
    assert (names["plural"], names["shortNames"]) == ("wrposweeps", ["wsweep", "wsweeps"])
    root = sweep_schema()["properties"]
    for column in version["additionalPrinterColumns"]:
        node: dict[str, Any] = {"properties": {**root, "metadata": {"properties": {"creationTimestamp": {}}}}}
        for part in column["jsonPath"].lstrip(".").split("."):
            node = node["properties"][part]


SPECS: dict[str, dict[str, Any]] = {
    "nothing to run": {"variants": []},
    "accelerators without a number of experiments": {"maxGpus": 8},
    "fewer accelerators than experiments": {"maxGpus": 1, "parallelExperiments": 2},
    "a suspended experiment": {"experiment": raw_spec(suspend=True)},
    "two choices of sources": {"variants": [{"name": "a", "sources": ["qwen"], "sourcesBy": {"first": 1}}]},
    "two choices of sources in a grid": {
        "grid": [{"name": "a-{k}", "for": {"k": [1]}, "sources": ["qwen"], "sourcesBy": {"first": 1}}]
    },
}


@pytest.mark.parametrize("title", SPECS)
def test_the_api_server_and_the_operator_refuse_the_same(title: str) -> None:
    spec = {"experiment": raw_spec(), "variants": [{"name": "a"}], **SPECS[title]}
    with pytest.raises(SpecError) as caught:
        parse_sweep(spec)
    (message,) = caught.value.errors
    assert message.removeprefix("spec: ").removesuffix(".") in [rule.message for rule in SWEEP_RULES]
    obj = {"apiVersion": "wrpo.ai/v1alpha1", "kind": "WRPOSweep", "metadata": {"name": "s"}, "spec": spec}
    assert any(message.removeprefix("spec: ").removesuffix(".") in told for told in refusals(obj, sweep_schema()))


def test_the_largest_status_fits_into_etcd() -> None:
    row = VariantStatus(
        name="x" * 40,
        phase="Failed",
        experiments="1024/1024",
        progress=100,
        metrics={f"win_rate_vs_{number:028}": 0.123456789012345 for number in range(MAX_HEADLINES)},
        sources=32,
        message="ü" * MAX_ROW_MESSAGE,
    )
    status = SweepStatus(variants=(row,) * 512)
    assert len(json.dumps(status.to_dict(), ensure_ascii=False).encode()) < MOST_BYTES
