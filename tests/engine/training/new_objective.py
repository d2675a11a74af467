"""Report on objectives that a copy of the source defines in addition; the test starts this program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from conftest import LocalRun  # type: ignore[attr-defined] # one of several files of this name
from engine_support import save_tiny_model
from support.builders import make_experiment, make_planned, raw_spec
from support.crd_validation import experiment_object, refusals

from wrpo_engine.config import TrainParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.training.objectives.divergence import RewardDivergence
from wrpo_engine.training.objectives.preference import preference_objective
from wrpo_operator.api.parsing import SpecError, parse_spec
from wrpo_operator.render.common import CONFIG_FILE, config_map


def broken(**changes: Any) -> dict[str, list[str]]:
    """Return what the API server and the operator refuse in a spec."""
    spec = raw_spec(**changes)
    try:
        parse_spec(spec)
    except SpecError as error:
        return {"server": refusals(experiment_object(spec)), "operator": list(error.errors)}
    return {"server": refusals(experiment_object(spec)), "operator": []}


def passed_on(objective: str, stage: str) -> dict[str, Any]:
    """Return the parameters of a stage as the engine reads them from the operator's configuration."""
    experiment = make_experiment(training={"objective": objective})
    assert experiment.spec is not None
    manifest = config_map(experiment, experiment.spec, make_planned(experiment, stage))
    config = StageConfig.model_validate_json(manifest["data"][CONFIG_FILE])
    if stage == "train":
        preference_objective(config.params)  # type: ignore[arg-type]
    return config.params.model_dump(mode="json")


def trained(objective: str, model: Path, directory: Path, **settings: Any) -> list[dict[str, Any]]:
    """Return the rows of metrics of a run with a ruinous learning rate."""
    ruin = {"learning_rate": 0.05, "epochs": 6, "lr_scheduler_type": "constant", "warmup_ratio": 0}
    run = LocalRun(directory / objective, model, {"objective": objective, **ruin, **settings})
    run.run()
    return run.metrics()


def watched(objective: str) -> list[float]:
    """Return what the alarm says of a chosen response that falls by 0.3 nats per token in every step."""
    params = TrainParams.model_validate({"model": {"name": "/m"}, "objective": objective, "beta": 0.5})
    alarm = RewardDivergence(params)
    falling = (-0.5 * 20 * 0.3 * step for step in range(12))
    return [
        alarm.observe({"margin": step, "rewards_chosen": reward, "logps_chosen": 0.0, "lengths_chosen": 20.0})
        for step, reward in enumerate(falling)
    ]


def main(directory: Path) -> None:
    model = save_tiny_model(directory / "model")
    result = {
        "accepted": [
            broken(training={"objective": "Fused", "labelSmoothing": 0.1}, curation={"requireSourceBetter": True}),
            broken(training={"objective": "Hinge", "gamma": 0.5, "tau": 0.2}, curation={"pairing": "BestWorst"}),
        ],
        "refused": [
            broken(training={"objective": "Fused", "gamma": 0.5}),
            broken(training={"objective": "Hinge", "ipoMean": True}),
            broken(training={"objective": "Fused"}, curation={"pairing": "BestWorst"}),
            broken(training={"objective": "Hinge"}, curation={"requireSourceBetter": True}),
        ],
        "needs_source": {name: passed_on(name, "curate-triples")["needs_source"] for name in ("Fused", "Hinge")},
        "objective": {name: passed_on(name, "train")["objective"] for name in ("Fused", "Hinge", "DPO", "WRPO-IPO")},
        "watched": watched("Hinge"),
        "metrics": {
            "Fused": trained("Fused", model, directory, beta=0.5),
            "Hinge": trained("Hinge", model, directory, beta=0.5, gamma=0.25),
        },
    }
    (directory / "result.json").write_text(json.dumps(result))


main(Path(sys.argv[1]))
