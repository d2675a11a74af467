"""The study: claims, page, and the commands that it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.common.machine import Machine
from benchmarks.study import __main__ as study
from benchmarks.study.claims import CLAIMS, MARGINS, check_claims, paired_t_p, slope_steps, slopes_of
from benchmarks.study.page import JUDGE, page
from wrpo_engine.comparison.statistics import holm
from wrpo_operator.cli.sweep import accepted

ROOT = Path(__file__).parents[2]
SWEEP = yaml.safe_load((ROOT / "examples" / "study.yaml").read_text(encoding="utf-8"))
MACHINE = Machine(
    cpu="A processor",
    cores=2,
    memory_gib=8.0,
    gpu=None,
    python="3.11",
    packages={},
    measured_at="2026-01-01 00:00 UTC",
    load_average=0.1,
)
ITEMS = 40


def runs(mean: float, seeds: int = 3) -> list[list[float]]:
    noise = np.random.default_rng(1).normal(0, 0.1, (seeds, ITEMS))
    return (mean + noise).tolist()


def result(means: dict[str, float], slopes: dict[str, float], seeds: int = 3) -> dict[str, Any]:
    names = {name: [f"study-{name}-s{seed}" for seed in range(seeds)] for name in means}
    items = [f"i{number}" for number in range(ITEMS)]
    judged = {
        name: {"outcomes": [{"items": items, "values": run} for run in runs(mean, seeds)]}
        for name, mean in means.items()
    }
    rows = [{"name": name, "scores": runs(mean, seeds)} for name, mean in means.items()]
    margins = [
        {"name": run, "margin_slope": slopes[name] * (1 + 0.01 * index)}
        for name in slopes
        for index, run in enumerate(names[name])
    ]
    return {
        "machine": MACHINE.to_json(),
        "seconds": [3600.0],
        "commands": ["make study"],
        "runs": names,
        "missing": [],
        "comparison": {"rows": rows, "benchmarks": [{"judge": JUDGE, "rows": judged}]},
        "margins": {"rows": margins},
    }


def test_every_row_of_a_claim_is_a_variant_of_the_sweep() -> None:
    _, found, _ = accepted(SWEEP)
    variants = {row.name for row in found.rows}
    assert {name for claim in CLAIMS for name in (claim.higher, claim.lower)} | set(MARGINS) == variants


def test_the_quick_study_is_a_valid_sweep_of_one_seed() -> None:
    spec, found, _ = accepted(study.with_backend(study.quick(SWEEP), "Transformers"))
    assert {row.name for row in found.rows} == set(study.QUICK_VARIANTS)
    assert [len(row.experiments) for row in found.rows] == [1] * 4
    assert spec.experiment.sampling.backend == "Transformers"
    assert [source.name for source in spec.experiment.sources] == list(study.QUICK_SOURCES)


def test_a_claim_appears_when_the_higher_row_is_surely_higher() -> None:
    (tested,) = check_claims({"wrpo": runs(0.8), "sft-dpo": runs(0.7)})
    assert (tested.is_shown, tested.is_reversed) == (True, False)
    assert tested.difference.mean == pytest.approx(0.1)


def test_a_claim_is_reversed_when_the_higher_row_is_surely_lower() -> None:
    (tested,) = check_claims({"wrpo": runs(0.7), "sft-dpo": runs(0.8)})
    assert (tested.is_shown, tested.is_reversed) == (False, True)


def test_p_values_of_several_claims_are_adjusted() -> None:
    alone = check_claims({"wrpo": runs(0.71), "sft-dpo": runs(0.7)})[0]
    together = check_claims({"wrpo": runs(0.71), "sft-dpo": runs(0.7), "no-y-ws": runs(0.72), "no-y-wt": runs(0.73)})
    assert [each.claim.lower for each in together] == ["sft-dpo", "no-y-ws", "no-y-wt"]
    assert together[0].adjusted_p == pytest.approx(min(1.0, 3 * alone.difference.not_above))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0], None),
        ([1.0, 2.0, 3.0], 0.0370899501137243),
        ([-1.0, -2.0, -3.0], 1 - 0.0370899501137243),
        ([1.0, 1.0], 0.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_the_paired_t_test_is_one_sided(differences: list[float], expected: float | None) -> None:
    found = paired_t_p(differences)
    assert found == expected if expected is None else found == pytest.approx(expected)


def test_slopes_are_compared_by_seed_in_the_claimed_order() -> None:
    steps = slope_steps({"no-y-wt": [3.0, 4.1], "wrpo": [2.0, 2.2], "no-y-ws": [1.0, 1.1]})
    assert [(step.lower, step.higher) for step in steps] == [("no-y-ws", "wrpo"), ("wrpo", "no-y-wt")]
    assert steps[1].differences == pytest.approx((1.0, 1.9))
    alone = [p for p in (paired_t_p(step.differences) for step in steps) if p is not None]
    assert [step.p for step in steps] == pytest.approx(holm(alone))
    assert alone != holm(alone)


def test_a_variant_without_a_slope_of_every_run_is_left_out() -> None:
    rows = [{"name": "a", "margin_slope": 1.0}, {"name": "b", "margin_slope": None}, {"name": "c", "margin_slope": 2.0}]
    assert slopes_of({"rows": rows}, {"wrpo": ["a", "b"], "no-y-ws": ["c"]}) == {"no-y-ws": [2.0]}


def test_the_page_shows_run_figures_and_every_claim() -> None:
    text = page(result({"wrpo": 0.8, "sft-dpo": 0.7}, {"wrpo": 2.0}))
    assert "Measured 2026-01-01 00:00 UTC, A processor, 2 cores, 8 GiB, load average at the start 0.10." in text
    assert "The run took 60 minutes, with 40 held-out prompts and 3 training seeds." in text
    assert "```\nmake study\n```" in text
    assert "| WRPO-X against X: DPO (`wrpo` above `sft-dpo`) | +0.1000" in text
    assert "| appears |" in text
    assert "By the small reward model" in text
    assert "All claims appear." in text


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(tmp_path: Path) -> None:
    record = tmp_path / "state" / "seconds.json"
    with pytest.raises(KeyboardInterrupt), study.timed(record):
        raise KeyboardInterrupt
    with study.timed(record) as spent:
        assert len(spent()) == 2
    assert [part >= 0 for part in json.loads(record.read_text())] == [True, True]
    resumed = {**result({"wrpo": 0.8}, {}), "seconds": [3600.0, 120.0]}
    assert "The run took 62 minutes in 2 parts, with" in page(resumed)


def test_the_page_says_which_claim_does_not_appear_and_why() -> None:
    text = page(result({"wrpo": 0.7, "sft-dpo": 0.8, "no-y-ws": 0.7}, {}, seeds=1))
    assert "| reversed |" in text
    assert "- WRPO-X against X: DPO: the opposite appears, because the interval ends at -0.1000." in text
    assert "- With the source's response y_ws: both variants give the same scores." in text
    assert "All claims appear." not in text
    assert "No run of this study has slopes." in text


def test_variants_with_equal_scores_share_a_row() -> None:
    """A model that is made once, as that of SFT, is compared with itself otherwise."""
    text = page(result({"wrpo": 0.8, "sft-dpo": 0.7, "no-y-ws": 0.7}, {}))
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")] == [
        "| `wrpo`",
        "| `sft-dpo`, `no-y-ws`",
    ]


def test_a_reversed_claim_says_what_its_rows_started_from() -> None:
    means = {"wrpo": 0.7, "sources-2": 0.8, "wrpo/sft": 0.5, "sources-2/sft": 0.65}
    text = page(result(means, {}))
    assert "After SFT alone, the difference is -0.1500." in text
    assert "After SFT alone" not in page(result({name: means[name] for name in ("wrpo", "sources-2")}, {}))


def test_the_page_tests_the_order_of_slopes_over_seeds() -> None:
    means = dict.fromkeys(MARGINS, 0.5)
    rising = dict(zip(MARGINS, (1.0, 2.0, 3.0), strict=True))
    text = page(result(means, rising))
    assert "- `wrpo` above `no-y-ws`: +1.01, p < 0.001 (paired t test over seeds, Holm), appears." in text
    falling = page(result(means, {name: 4 - slope for name, slope in rising.items()}))
    assert "does not appear: 3 seeds, and the slopes differ too little or in the other direction." in falling
    assert "one seed, no test." in page(result(means, rising, seeds=1))


def test_the_page_names_variants_that_failed() -> None:
    text = page({**result({"wrpo": 0.7, "sft-dpo": 0.8}, {}), "missing": ["wrpo-ipo"]})
    assert "These variants did not succeed and have no row: `wrpo-ipo`." in text


def test_the_page_without_a_run_says_how_to_make_one() -> None:
    assert "No run is recorded yet. `make study` takes about an hour" in page(None)


def test_the_whole_study_goes_before_the_quick_one_on_the_page(tmp_path: Path) -> None:
    quick_result = {**result({"wrpo": 0.7}, {}), "commands": ["make study-quick"]}
    (tmp_path / "study-quick.json").write_text(json.dumps(quick_result))
    study.write_page(tmp_path / "study.md", tmp_path)
    assert "make study-quick" in (tmp_path / "study.md").read_text().split("## The run")[1]
    (tmp_path / "study.json").write_text(json.dumps(result({"wrpo": 0.7}, {})))
    study.write_page(tmp_path / "study.md", tmp_path)
    assert "make study-quick" not in (tmp_path / "study.md").read_text()


def test_a_variant_of_which_a_run_failed_has_no_row() -> None:
    def experiment(variant: str, seed: int, phase: str) -> dict[str, Any]:
        labels = {"wrpo.ai/variant": variant, "wrpo.ai/seed": str(seed)}
        return {"metadata": {"name": f"{variant}-s{seed}", "labels": labels}, "status": {"phase": phase}}

    found = [experiment("a", 43, "Succeeded"), experiment("a", 9, "Succeeded"), experiment("b", 9, "Succeeded")]
    assert study.runs_of([*found, experiment("b", 43, "Failed")]) == ({"a": ["a-s9", "a-s43"]}, ["b"])


def test_variants_are_compared_with_all_runs_and_margins_run_by_run() -> None:
    names = {"wrpo": ["w1", "w2"], "sft-dpo": ["d1", "d2"]}
    compare = study.compare_command(names, Path("out"))
    assert compare == ["wrpo", "compare", "wrpo=w1,w2", "sft-dpo=d1,d2", "--baseline", "sft-dpo", "--out", "out"]
    assert study.margins_command(names, Path("out")) == ["wrpo", "compare", "w1=w1", "w2=w2", "--out", "out"]


def test_the_job_builds_the_models_of_the_study_and_the_quick_starts_file_stays_as_it_is() -> None:
    documents = list(yaml.safe_load_all(study.ASSETS.read_text(encoding="utf-8")))
    claim, job = study.assets(documents)
    assert claim == documents[0]
    assert job["metadata"]["name"] == "study-assets"
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command == ["wrpo-engine", "quickstart-assets", "--out", "/var/lib/wrpo", "--study"]
    assert documents == list(yaml.safe_load_all(study.ASSETS.read_text(encoding="utf-8")))
