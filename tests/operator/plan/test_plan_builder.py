"""A graph is put together from what the wiring of each stage declares, in any order; what does not fit is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from support.builders import raw_spec

from wrpo_engine.config import (
    CurateSftParams,
    FetchParams,
    ModelRef,
    PrepareParams,
    ReportParams,
    SftParams,
    StageParams,
)
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import ConfigError
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.builder import Execution, Graph, GraphError, source_of
from wrpo_operator.plan.graph import WIRINGS, wiring_of
from wrpo_operator.plan.model import StageId
from wrpo_operator.plan.wiring import CURATE_SFT, PREPARE, REPORT, SFT, Member

PROMPTS = PrepareParams(dataset="org/prompts")
ROWS = CurateSftParams()
TUNED = SftParams(model=ModelRef(name="org/target"))
FETCH = StageId("fetch", "target-1")
REPORTED = ReportParams(title="all")


def graph() -> Graph:
    return Graph(parse_spec(raw_spec()))


def test_stages_may_be_added_in_any_order() -> None:
    first, last = graph(), graph()
    first.add(PREPARE, PROMPTS)
    first.add(CURATE_SFT, ROWS, inputs=[PREPARE])
    first.add(SFT, TUNED, inputs=[CURATE_SFT])
    last.add(SFT, TUNED, inputs=[CURATE_SFT])
    last.add(CURATE_SFT, ROWS, inputs=[PREPARE])
    last.add(PREPARE, PROMPTS)
    assert [node.id for node in last.nodes()] == [PREPARE, CURATE_SFT, SFT]
    assert last.nodes() == first.nodes()


def test_inputs_that_may_be_missing_are_used_where_they_are() -> None:
    made = graph()
    made.add(PREPARE, PROMPTS)
    made.add(CURATE_SFT, ROWS, inputs=[PREPARE])
    made.add(REPORT, REPORTED)
    made.read_if_present(REPORT, SFT)
    assert made.nodes()[-1].inputs == {"prompts": PREPARE, "sft-rows": CURATE_SFT}


def test_a_reader_of_everything_that_the_report_shows_does_not_read_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from wrpo_operator.plan import builder

    shown = STAGES["report"].model_copy(update={"report": STAGES["prepare"].report})
    monkeypatch.setattr(builder, "STAGES", {**STAGES, "report": shown})
    made = graph()
    made.add(PREPARE, PROMPTS)
    made.add(REPORT, REPORTED)
    assert made.nodes()[-1].inputs == {"prompts": PREPARE}


def test_downloads_come_before_their_reader_and_are_not_hashed() -> None:
    plain, fetched = graph(), graph()
    for made in (plain, fetched):
        made.add(PREPARE, PROMPTS)
        made.add(CURATE_SFT, ROWS, inputs=[PREPARE])
    plain.add(SFT, TUNED, inputs=[CURATE_SFT])
    fetched.add(FETCH, FetchParams(model=ModelRef(name="org/target")))
    fetched.add(SFT, TUNED, inputs=[CURATE_SFT], execution=Execution(downloads=[FETCH]))
    *_, download, sft = fetched.nodes()
    assert (download.id, sft.inputs) == (FETCH, {"sft-rows": CURATE_SFT, "fetch/target-1": FETCH})
    assert sft.hash == plain.nodes()[-1].hash


FAULTS: dict[str, tuple[Callable[[Graph], None], str]] = {
    "an input that is not there": (
        lambda made: made.add(SFT, TUNED, inputs=[CURATE_SFT]),
        "the stage sft reads curate-sft, which is not part of the experiment",
    ),
    "an input that the definition does not know": (
        lambda made: made.add(SFT, TUNED, inputs=[PREPARE]),
        "the stage sft reads prepare, but inputs of its definition lack the role prompts",
    ),
    "parameters of another kind": (
        lambda made: made.add(SFT, ROWS),
        "the parameters of the stage sft are those of the kind curate-sft",
    ),
}


@pytest.mark.parametrize(("wire", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_wiring_that_fits_no_graph_is_named(wire: Callable[[Graph], None], message: str) -> None:
    made = graph()
    made.add(PREPARE, PROMPTS)

    def build() -> None:
        wire(made)
        made.nodes()

    with pytest.raises(GraphError) as caught:
        build()
    assert str(caught.value) == message


def test_stages_that_wait_for_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from wrpo_operator.plan import builder

    rows = STAGES["sft"].model_copy(update={"inputs": ("sft-rows", "sft")})
    curation = STAGES["curate-sft"].model_copy(update={"inputs": ("prompts", "sft")})
    monkeypatch.setattr(builder, "STAGES", {**STAGES, "sft": rows, "curate-sft": curation})
    made = graph()
    made.add(PREPARE, PROMPTS)
    made.add(CURATE_SFT, ROWS, inputs=[PREPARE, SFT])
    made.add(SFT, TUNED, inputs=[CURATE_SFT])
    with pytest.raises(GraphError) as caught:
        made.nodes()
    assert str(caught.value) == (
        "stages wait for each other: curate-sft, sft. The wiring of one of them must drop an input."
    )


def test_every_kind_of_stage_has_its_wiring() -> None:
    assert set(WIRINGS) == set(STAGES)


@pytest.mark.parametrize(
    ("wiring", "rule"),
    [
        ("wrpo_operator.plan.judging:judge", "No module named 'wrpo_operator.plan.judging'"),
        ("wrpo_operator.plan.wiring:judge", "module 'wrpo_operator.plan.wiring' has no attribute 'judge'"),
    ],
)
def test_a_definition_whose_wiring_is_missing_is_refused(wiring: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wiring_of(STAGES["report"].model_copy(update={"wiring": wiring}))
    assert caught.value.message == f"wiring of the stage report is '{wiring}': it cannot be imported: {rule}"


class JudgeParams(StageParams):
    stage: Literal["judge"] = "judge"


def test_a_kind_that_each_source_has_is_wired_once_for_each_and_left_out_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wrpo_operator.plan import builder
    from wrpo_operator.plan import graph as module

    definition = STAGES["score"].model_copy(
        update={"params": JudgeParams, "role": "judgements", "inputs": ("samples",), "wiring": "tests:judge"}
    )

    def judge(graph: Graph, member: Member) -> None:
        graph.add(StageId("judge", member.name), JudgeParams(), inputs=[StageId("sample", member.name)])

    for place in (builder, module):
        monkeypatch.setattr(place, "STAGES", {**STAGES, "judge": definition})
    monkeypatch.setattr(module, "WIRINGS", {**WIRINGS, "judge": judge})
    spec = parse_spec(raw_spec())
    nodes = {str(node.id): node for node in module.build_graph(spec, frozenset({"yi"}))}
    judged = {stage for stage in nodes if stage.startswith("judge/")}
    assert judged == {"judge/qwen", "judge/yi", "judge/target"}
    assert source_of(spec, StageId("judge", "yi")) == "yi"
    assert source_of(spec, StageId("judge", "target")) is None
    assert {str(stage) for stage in nodes["report"].inputs.values()} & judged == {"judge/qwen", "judge/target"}
    assert nodes["report"].inputs["judgements/qwen"] == StageId("judge", "qwen")
