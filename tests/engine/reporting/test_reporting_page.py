"""The report: what it says, what it escapes, and how it stands missing parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support.browser import assert_readable

from wrpo_engine.config import ArtifactRef, ReportParams
from wrpo_engine.reporting import render, stage
from wrpo_engine.reporting.collect import column_of, losses_of
from wrpo_engine.stage import StageContext

Inputs = dict[str, ArtifactRef]
MakeCtx = Callable[..., StageContext]


def report_of(make_ctx: MakeCtx, inputs: Inputs, title: str = "WRPO-DPO of <b>two</b> sources") -> str:
    ctx = make_ctx(ReportParams(title=title, sample_answers=2), inputs)
    stage.run(ctx)
    committed = ctx.output.committed()
    assert committed is not None
    return committed.file("report.html").read_text(encoding="utf-8")


def test_a_full_report_shows_rewards_win_rates_and_their_intervals(
    make_ctx: MakeCtx, experiment_inputs: Inputs
) -> None:
    page = report_of(make_ctx, experiment_inputs)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "mean reward, WRPO-DPO 0.517 6 held-out prompts" in text
    # 4 wins, 1 tie, 1 loss of 6: (4 + 1/2) / 6; Wilson's interval of 0.75 in 6 trials.
    assert "WRPO-DPO against target 75.0%" in text
    assert "4 won, 1 tied, 1 lost" in text
    assert "36.5% to 94.0%" in text
    assert "WRPO-DPO against sft 50.0%" in text


def test_the_report_counts_what_every_stage_left_out(make_ctx: MakeCtx, experiment_inputs: Inputs) -> None:
    page = report_of(make_ctx, experiment_inputs)
    for stage_name, reason, count in [
        ("prepare", "duplicate", 7),
        ("curate-triples", "all tie", 3),
        ("train", "prompt too long", 2),
    ]:
        assert f'<tr><td>{stage_name}</td><td>{reason}</td><td class="n">{count}</td></tr>' in page


def test_text_of_prompts_models_and_titles_cannot_become_markup(make_ctx: MakeCtx, experiment_inputs: Inputs) -> None:
    page = report_of(make_ctx, experiment_inputs)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34;" in page
    assert "<b>two</b>" not in page
    assert "WRPO-DPO of &lt;b&gt;two&lt;/b&gt; sources" in page


def test_the_report_needs_nothing_from_anywhere(make_ctx: MakeCtx, experiment_inputs: Inputs) -> None:
    page = report_of(make_ctx, experiment_inputs)
    outside = re.findall(r"(?:src|href|action)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)|@import", page)
    assert outside == []
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_browser_shows_the_report_in_wide_and_narrow_windows(
    make_ctx: MakeCtx, experiment_inputs: Inputs, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(report_of(make_ctx, experiment_inputs), encoding="utf-8")
    assert_readable(tmp_path / "report.html")


def test_every_chart_is_there_and_is_well_formed(make_ctx: MakeCtx, experiment_inputs: Inputs) -> None:
    page = report_of(make_ctx, experiment_inputs)
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for chart in charts:
        ET.fromstring(chart)  # noqa: S314 (our own)
    titles = [
        "Win rate of WRPO-DPO",
        "Held-out prompts",
        "Training prompts, all samples",
        "Sources of the preferred response",
        "SFT: loss",
        "Preference training: loss",
        "Reward margins",
        "Weight of the source response (alpha)",
        "Share of triples ranked right",
    ]
    assert [title for title in titles if any(f">{title}<" in chart for chart in charts)] == titles
    identifiers = re.findall(r' id="([^"]+)"', "".join(charts))
    assert len(identifiers) == len(set(identifiers))


def test_the_same_artifacts_give_the_same_bytes(make_ctx: MakeCtx, experiment_inputs: Inputs) -> None:
    first = report_of(make_ctx, experiment_inputs)
    ctx = make_ctx(
        ReportParams(title="WRPO-DPO of <b>two</b> sources", sample_answers=2), experiment_inputs, hash_="f" * 16
    )
    stage.run(ctx)
    second = (ctx.output.directory / "report.html").read_text(encoding="utf-8")
    assert first == second


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([], "No evaluation is part of this experiment"),
        (["prompts"], "prepare"),
        (["triples", "model"], "Preference training: loss"),
        (["evaluation"], "Win rate of WRPO-DPO"),
    ],
    ids=["nothing at all", "prompts only", "no SFT, sources or evaluation", "evaluation only"],
)
def test_a_report_is_made_of_whatever_parts_there_are(
    make_ctx: MakeCtx, experiment_inputs: Inputs, kept: list[str], expected: str
) -> None:
    page = report_of(make_ctx, {role: experiment_inputs[role] for role in kept})
    assert expected in page
    assert "None" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_sample_answers_are_the_first_prompts_and_mark_the_best_score(
    make_ctx: MakeCtx, experiment_inputs: Inputs
) -> None:
    page = report_of(make_ctx, experiment_inputs)
    blocks = re.findall(r'<div class="answers">.*?</div></div>\n</div></div>', page, flags=re.DOTALL)
    assert len(blocks) == 2
    assert "question 1" in blocks[1]
    assert re.findall(r'who best"><b>([^<]+)</b>', blocks[1]) == ["WRPO-DPO"]


def test_numbers_and_times_are_written_for_people() -> None:
    assert [render.number(value) for value in (1234567.0, 0.123456, 3.0, 1e-05)] == [
        "1,234,567",
        "0.1235",
        "3",
        "1e-05",
    ]
    assert [render.duration(value) for value in (None, 12.4, 75.0, 7380.0)] == ["-", "12 s", "1 min 15 s", "2 h 03 min"]


def test_the_target_is_sampled_after_sft_in_the_pipeline_picture() -> None:
    stages = [
        "train",
        "score/target",
        "sample/target",
        "sft",
        "curate-sft",
        "score/a",
        "sample/a",
        "prepare",
        "evaluate",
    ]
    assert sorted(stages, key=column_of) == [
        "prepare",
        "sample/a",
        "score/a",
        "curate-sft",
        "sft",
        "sample/target",
        "score/target",
        "train",
        "evaluate",
    ]


def test_left_out_rows_are_counted_once_and_zeros_are_silent() -> None:
    metrics = {"dropped_empty": 2.0, "dropped_duplicate": 0.0, "skipped_prompt_too_long": 1.0, "rows": 5.0}
    assert losses_of(metrics, {"truncated_responses": 4}) == [
        ("empty", 2),
        ("prompt too long", 1),
        ("cut to the maximum length, kept", 4),
    ]


def test_rows_that_are_not_read_as_written_are_counted_too() -> None:
    details = {"dropped": {"no text": 2}, "changed": {"no text": 2, "letter case": 3}, "control_text_rows": 4}
    assert losses_of({"changed_responses": 5.0, "changed_rows": 5.0}, details) == [
        ("no text", 2),
        ("changed by the tokenizer, kept: letter case", 3),
        ("with control tokens as text, kept as text", 4),
        ("with characters that the reward model does not know, kept", 5),
    ]


def test_the_page_is_one_file_without_work_files_beside_it(
    make_ctx: MakeCtx, experiment_inputs: Inputs, tmp_path: Path
) -> None:
    report_of(make_ctx, experiment_inputs)
    names = sorted(path.name for path in (tmp_path / "storage" / "report").rglob("*") if path.is_file())
    assert names == ["manifest.json", "report.html"]


def test_the_report_says_whose_answers_were_preferred_for_which_prompts(
    make_ctx: MakeCtx, experiment_inputs: Inputs
) -> None:
    page = report_of(make_ctx, experiment_inputs)
    table = page.partition('<table id="attribution">')[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert rows[0] == ["all", "tall", "3", "75.0%", "2", "0.4", "0.5"]
    assert rows[1] == ["all", "small", "1", "25.0%", "0", "-0.1", "-0.1"]
    assert [row[0] for row in rows[2:]] == ["1 to 2 characters", "2 to 3 characters"]
