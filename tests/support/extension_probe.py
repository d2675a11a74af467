"""Prints what this project knows of the stage `shout`, where its distribution is installed; the argument is a spec."""

from __future__ import annotations

import json
import sys
from typing import Any

from support.crd_validation import experiment_object

from wrpo_engine.reporting.collect import column_of, place_of
from wrpo_operator.api.crd import schema
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.api.stage_lists import table
from wrpo_operator.cli.planning import manifests
from wrpo_operator.plan.deadlines import active_limit
from wrpo_operator.plan.graph import build_graph
from wrpo_operator.runtime.metering import kind_of
from wrpo_operator.runtime.settings import parse_stage_commands


def probe(raw: dict[str, Any]) -> dict[str, Any]:
    spec = parse_spec(raw)
    nodes = {str(node.id): node for node in build_graph(spec)}
    limit, place = active_limit(spec.deadlines, "shout"), place_of("shout")
    assert limit is not None
    assert place is not None
    made = manifests(experiment_object(raw), "default")
    (job,) = [each for each in made if each["kind"] == "Job" and "-shout-" in each["metadata"]["name"]]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    fields = schema()["properties"]["spec"]["properties"]
    stages = fields["deadlines"]["properties"]["stages"]
    return {
        "order": list(nodes),
        "inputs": {role: str(stage) for role, stage in nodes["shout"].inputs.items()},
        "in the report": "shouts" in nodes["report"].inputs,
        "completion mode": job["spec"]["completionMode"],
        "command": container["command"],
        "image": container["image"],
        "resources": container["resources"],
        "has the reward's key": "WRPO_REWARD_API_KEY" in {entry["name"] for entry in container["env"]},
        "deadline": [limit.seconds, limit.field],
        "crd": [part["properties"]["shout"]["description"] for part in (fields["resources"], stages)],
        "column": column_of("shout"),
        "key metrics": place.key_metrics,
        "row": [row for row in table().splitlines() if "shout" in row],
        "stand-in": list(parse_stage_commands('{"shout": {"command": ["true"]}}')),
        "metrics": kind_of({"name": "shout"}),
    }


if __name__ == "__main__":
    print(json.dumps(probe(json.loads(sys.argv[1]))))
