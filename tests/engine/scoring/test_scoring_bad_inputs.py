"""Damaged inputs of the score stage end it with an error that names the file or the row, and with no artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wrpo_engine.errors import DataError, WrpoError
from wrpo_engine.scoring import stage

PROMPTS = pl.DataFrame({"prompt_id": ["p"], "prompt": ["hi"]})
SAMPLES = pl.DataFrame(
    {"prompt_id": ["p"], "source": ["s"], "sample_index": [0], "text": ["yo"], "finish_reason": ["stop"]}
)
PART = "parts/part-00000.parquet"


def run(
    make_ctx: Any,
    commit_artifact: Any,
    reward: dict[str, Any],
    samples: Any,
    runtime: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    inputs = {
        "prompts": commit_artifact("prepare", {"sft.parquet": PROMPTS}),
        "samples/s": commit_artifact("sample/s", {PART: samples}),
    }
    ctx = make_ctx({"stage": "score", "reward": reward, **changes}, inputs, stage="score/s", runtime=runtime)
    return ctx, lambda: stage.run(ctx)


def test_a_part_that_is_no_parquet_is_named(make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path) -> None:
    ctx, start = run(make_ctx, commit_artifact, {"name": str(tiny_reward_dir)}, b"PAR1 but not really")
    with pytest.raises(DataError, match=r"part-00000\.parquet cannot be read as Parquet") as error:
        start()
    assert error.value.code == "PartDamaged"
    assert ctx.output.committed() is None


def test_a_part_without_a_column_is_named(make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path) -> None:
    _, start = run(make_ctx, commit_artifact, {"name": str(tiny_reward_dir)}, SAMPLES.drop("text"))
    with pytest.raises(DataError, match=r"part-00000\.parquet has no column text"):
        start()


def test_a_row_without_a_text_is_named(make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path) -> None:
    samples = pl.concat([SAMPLES, SAMPLES.with_columns(text=pl.lit(None, pl.String))])
    _, start = run(make_ctx, commit_artifact, {"name": str(tiny_reward_dir)}, samples)
    message = r"row 2 of .*/part-00000\.parquet has no value in column text; 1 rows in all"
    with pytest.raises(DataError, match=message) as error:
        start()
    assert error.value.code == "ValueMissing"


def test_an_altered_part_is_named(make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path) -> None:
    ctx, start = run(make_ctx, commit_artifact, {"name": str(tiny_reward_dir)}, SAMPLES)
    path = ctx.input("samples/s").directory / PART
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        start()
    assert ctx.output.committed() is None


def test_a_row_that_is_too_long_ends_the_stage_where_cutting_is_forbidden(
    make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path
) -> None:
    reward = {"name": str(tiny_reward_dir)}
    _, start = run(make_ctx, commit_artifact, reward, SAMPLES, max_length=8, truncation="Fail")
    with pytest.raises(DataError, match="prompt_id p, source s, sample_index 0 has more tokens"):
        start()


def test_cut_rows_are_counted(make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path) -> None:
    ctx, start = run(
        make_ctx, commit_artifact, {"name": str(tiny_reward_dir)}, SAMPLES, max_length=8, truncation="Left"
    )
    assert start().metrics["truncated"] == 1
    rows = pl.read_parquet(ctx.output.committed().file(PART))
    assert (rows["truncated"].to_list(), rows["tokens"].to_list()) == ([True], [8])


def test_the_share_of_padding_is_a_metric(make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path) -> None:
    many = pl.concat([SAMPLES.with_columns(sample_index=pl.lit(n), text=pl.lit("y" * n)) for n in range(40)])
    _, start = run(make_ctx, commit_artifact, {"name": str(tiny_reward_dir)}, many)
    metrics = start().metrics
    assert 0 <= metrics["padding_share"] <= 0.1
    assert metrics["tokens"] > 40


SECTION = "reward.additional[second]"
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an absent model": ({"name": "/no/such/model"}, "model", "/no/such/model"),
    "an absent function": ({"function": "no_such_module:f"}, "function", "there is no module no_such_module"),
    "a function that fails": ({"function": "math:dist"}, "function", "raised TypeError"),
    "a password in the URL": ({"endpoint": "http://me:secret@host", "endpoint_model": "r"}, "endpoint", "host"),
    "a template without the response": (
        {"name": "{tiny}", "chat_template": "{% for m in messages %}{{ m.role }}{% endfor %}"},
        "chatTemplate",
        "the response",
    ),
}


@pytest.mark.parametrize(("reward", "field", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_errors_of_a_further_reward_name_its_own_section(
    make_ctx: Any, commit_artifact: Any, tiny_reward_dir: Path, reward: dict[str, Any], field: str, words: str
) -> None:
    own = {name: str(tiny_reward_dir) if value == "{tiny}" else value for name, value in reward.items()}
    runtime = {"model_sections": {"reward": SECTION}}
    with pytest.raises(WrpoError) as error:
        run(make_ctx, commit_artifact, own, SAMPLES, runtime)[1]()
    assert error.value.field == f"{SECTION}.{field}"
    assert words in error.value.message
