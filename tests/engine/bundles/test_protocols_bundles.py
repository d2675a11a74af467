"""Bundles are read from packages, data sets of the hub, directories and files, checked, and written alike."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import pytest
from support.protocol_cases import ALPACA, ARENA, MT, golden

from wrpo_engine.artifacts.base import StoredArtifact
from wrpo_engine.bundles.items import (
    read_baseline,
    read_baseline_names,
    read_development,
    read_items,
    read_references,
    read_regulariser,
    read_templates,
)
from wrpo_engine.bundles.stage import run
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.evaluation import BenchParams
from wrpo_engine.errors import ConfigError, DataError, WrpoError
from wrpo_engine.stage import StageContext

MT_GOLDEN = golden("mt_bench")
GRADE = {"stage": "grade", "reward": {"name": "/reward"}, "answers": "answers/a--b"}
Write = Callable[[Mapping[str, Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files (texts, or rows as JSON lines) into a new directory and return it."""

    def make(files: Mapping[str, Any]) -> Path:
        root = tmp_path / f"bundle-{len(list(tmp_path.glob('bundle-*')))}"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, list):
                rows = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in content]
                content = "".join(f"{row}\n" for row in rows)  # noqa: PLW2901
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return root

    return make


def bench(make_ctx: Any, hash_: str = "b" * 16, **params: Any) -> StoredArtifact:
    """Run the stage and return the artifact."""
    ctx = make_ctx(BenchParams(**params), stage="bench/x", hash_=hash_)
    run(ctx)
    artifact = ctx.store.open(ArtifactRef(stage="bench/x", hash=hash_))
    assert artifact is not None
    return artifact


def reader(make_ctx: Any, hash_: str = "b" * 16) -> StageContext:
    ctx = make_ctx(GRADE, {"bench/x": ArtifactRef(stage="bench/x", hash=hash_)}, stage="grade/y")
    assert isinstance(ctx, StageContext)
    return ctx


def refused(make_ctx: Any, **params: Any) -> WrpoError:
    with pytest.raises((DataError, ConfigError)) as caught:
        run(make_ctx(BenchParams(**params), stage="bench/x"))
    return caught.value


def described(artifact: StoredArtifact) -> Any:
    return json.loads(artifact.file("bundle.json").read_text(encoding="utf-8"))


def test_mt_bench_loads_from_the_installed_package_without_a_setting(make_ctx: Any) -> None:
    expected = MT_GOLDEN["data"]
    artifact = bench(make_ctx, benchmark="MTBench")
    about = described(artifact)
    assert about["categories"] == expected["per_category"]
    found = {source["name"].split("/data/")[1]: source["sha256"] for source in about["sources"]}
    assert found == {name: digest for name, digest in expected["sha256"].items() if "gpt-4.jsonl" not in name}
    assert all(source["known"] for source in about["sources"])
    assert about["licence"] == "Apache-2.0"
    assert about["reference_set"] == "gpt-4-0125-preview"
    ctx = reader(make_ctx)
    items = read_items(ctx)
    assert len(items) == expected["questions"]
    assert [(item.item_id, item.index, len(item.turns)) for item in items[:2]] == [("81", 0, 2), ("82", 1, 2)]
    for item in items:
        assert item.temperature == MT_GOLDEN["temperature"][item.category]
    assert len(read_references(ctx)) == 30
    assert set(read_templates(ctx)) >= set(MT)
    assert artifact.manifest.metrics["turns"] == 160


def test_another_reference_set_is_named(make_ctx: Any) -> None:
    about = described(bench(make_ctx, benchmark="MTBench", reference_set="gpt-4"))
    digests = [source["sha256"] for source in about["sources"] if source["name"].endswith("gpt-4.jsonl")]
    assert digests == [MT_GOLDEN["data"]["sha256"]["mt_bench/reference_answer/gpt-4.jsonl"]]
    assert str(refused(make_ctx, benchmark="MTBench", reference_set="gpt-9")) == (
        "evaluation.benchmarks[].referenceSet is 'gpt-9': the bundle has the sets: gpt-4, gpt-4-0125-preview"
    )


ROWS = [
    {"dataset": "koala", "instruction": "Why?", "output": "So.", "generator": "gpt4_1106_preview"},
    {"dataset": "vicuna", "instruction": 'Say """', "output": 'He said """.', "generator": "gpt4_1106_preview"},
]
GAMED = (
    "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model\n"
    "0.5,0,-1.5,0.25,False,concise\n0.75,1,2,-1,False,concise\n"
)
ALPACA_FILES = {
    "alpaca_eval_gpt4_baseline.json": ROWS,
    "df_gamed.csv": GAMED,
    "alpaca_eval_clf.txt": ALPACA["alpaca_eval_clf"],
}


def test_alpaca_eval_has_its_baseline_its_regulariser_and_its_judge_prompt(
    make_ctx: Any, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="wrpo_engine"):
        artifact = bench(make_ctx, benchmark="AlpacaEval2", bundle=str(write(ALPACA_FILES)))
    assert "df_gamed.csv of " in caplog.text
    assert "is none of the known versions" in caplog.text
    ctx = reader(make_ctx)
    assert [(item.item_id, item.category, item.turns) for item in read_items(ctx)] == [
        ("0", "koala", ("Why?",)),
        ("1", "vicuna", ('Say """',)),
    ]
    assert read_baseline(ctx) == {"0": ("So.",), "1": ('He said """.',)}
    assert read_baseline_names(ctx) == dict.fromkeys("01", "gpt4_1106_preview")
    assert read_templates(ctx) == ALPACA
    regulariser = read_regulariser(ctx)
    assert regulariser is not None
    assert regulariser.row(0) == (0.5, 0, -1.5, 0.25, False)
    metrics = artifact.manifest.metrics
    assert (metrics["prompts_with_delimiters"], metrics["baseline_answers_with_delimiters"]) == (1.0, 1.0)
    assert described(artifact)["licence"].startswith("Prompts, baseline and regulariser: CC-BY-NC-4.0.")


def test_a_data_set_of_the_hub_is_one_place_more(make_ctx: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []
    root = write(ALPACA_FILES)
    listed = ("alpaca_eval_gpt4_baseline.json", "df_gamed.csv", "alpaca_eval_all_outputs.json")

    def fnmatch(path: str, patterns: list[str]) -> bool:
        return any(PurePosixPath(path).match(pattern) for pattern in patterns)

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options["repo_type"], [fnmatch(path, options["allow_patterns"]) for path in listed]))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    about = described(bench(make_ctx, benchmark="AlpacaEval2"))
    assert asked == [("tatsu-lab/alpaca_eval", "dataset", [True, True, False])]
    assert {source["kind"] for source in about["sources"]} == {"hub"}


def test_a_hub_that_is_offline_names_the_bundle(make_ctx: Any) -> None:
    error = refused(make_ctx, benchmark="AlpacaEval2", bundle="nobody/has-this-data-set")
    assert str(error) == (
        "evaluation.benchmarks[].bundle is 'nobody/has-this-data-set': it is not in the local cache, and "
        "HF_HUB_OFFLINE forbids downloading"
    )


SETTINGS = """
import os
HARD = "Judge the answers."
POEM = '''Judge the poems.'''
JUDGE_SETTINGS = {
    "hard_prompt": {"baseline": "o3-mini-2025-01-31", "system_prompt": HARD},
    "creative_writing": {"baseline": "gemini-2.0-flash-001", "system_prompt": POEM},
}
os.abort()
"""
V20 = {
    "data/arena-hard-v2.0/question.jsonl": [
        {"uid": "u1", "category": "hard_prompt", "cluster": "c", "prompt": "Add."},
        {"uid": "u2", "category": "creative_writing", "cluster": "c", "prompt": "Rhyme."},
    ],
    "data/arena-hard-v0.1/question.jsonl": [{"question_id": "old", "turns": [{"content": "Old."}]}],
    "data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl": [
        {"uid": uid, "model": "o3-mini", "messages": [{"role": "user", "content": "Add."}, answer]}
        for uid, answer in (
            ("u1", {"role": "assistant", "content": {"answer": "2"}}),
            ("u2", {"role": "assistant", "content": {"answer": "wrong baseline"}}),
        )
    ],
    "data/arena-hard-v2.0/model_answer/gemini-2.0-flash-001.jsonl": [
        {"uid": "u2", "model": "gemini", "messages": [{"role": "assistant", "content": {"answer": "A rhyme"}}]}
    ],
    "config/arena-hard-v2.0.yaml": f"prompt_template: {json.dumps(ARENA['user'])}\n",
    "utils/judge_utils.py": SETTINGS,
    ".git/question.jsonl": "no",
}


def test_arena_hard_v20_is_read_from_a_checkout_of_its_repository(make_ctx: Any, write: Write) -> None:
    bench(make_ctx, benchmark="ArenaHardV2", bundle=str(write(V20)))
    ctx = reader(make_ctx)
    assert [(item.item_id, item.category) for item in read_items(ctx)] == [
        ("u1", "hard_prompt"),
        ("u2", "creative_writing"),
    ]
    assert read_baseline(ctx) == {"u1": ("2",), "u2": ("A rhyme",)}
    assert read_templates(ctx) == {
        "user": ARENA["user"],
        "system/hard_prompt": "Judge the answers.",
        "system/creative_writing": "Judge the poems.",
    }


V01: dict[str, Any] = {
    "arena-hard-v0.1/question.jsonl": [
        {"question_id": "a", "category": "arena-hard-v0.1", "turns": [{"content": "Old?"}]},
        {"uid": "b", "category": "arena-hard-v0.1", "prompt": "New?"},
    ],
    "arena-hard-v0.1/model_answer/gpt-4-0314.jsonl": [
        {"question_id": name, "model_id": "gpt-4-0314", "choices": [{"index": 0, "turns": [{"content": "yes"}]}]}
        for name in ("a", "b")
    ],
    "judge_config.yaml": json.dumps(
        {
            "system_prompt": "Judge.",
            "prompt_template": ["{question_1}{answer_1}{answer_2}"],
            "baseline_model": "gpt-4-0314",
        }
    ),
}


def test_arena_hard_v01_is_read_in_both_forms_of_its_questions(make_ctx: Any, write: Write) -> None:
    bench(make_ctx, benchmark="ArenaHard", bundle=str(write(V01)))
    ctx = reader(make_ctx)
    assert [(item.item_id, item.turns) for item in read_items(ctx)] == [("a", ("Old?",)), ("b", ("New?",))]
    assert read_baseline(ctx) == {"a": ("yes",), "b": ("yes",)}
    assert read_templates(ctx) == {"system": "Judge.", "user": "{question_1}{answer_1}{answer_2}"}


def test_a_baseline_may_be_left_to_a_system(make_ctx: Any, write: Write) -> None:
    files = {name: content for name, content in V01.items() if "model_answer" not in name}
    bench(make_ctx, benchmark="ArenaHard", bundle=str(write(files)))
    assert read_baseline(reader(make_ctx)) == {}


OWN = [
    {"id": 7, "prompt": "Why?", "category": "math", "reference": "Because."},
    {"id": "x", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
    {"id": "y", "turns": ["One", "Two"]},
]


@pytest.mark.parametrize("name", ["items.jsonl", "mine.jsonl", "deep/er/own.jsonl"])
def test_an_own_set_is_a_file_or_a_directory(make_ctx: Any, write: Write, name: str) -> None:
    root = write({name: OWN})
    bench(make_ctx, benchmark="Custom", bundle=str(root))
    bench(make_ctx, "c" * 16, benchmark="Custom", bundle=str(root / name))
    first, second = (reader(make_ctx, hash_) for hash_ in ("b" * 16, "c" * 16))
    assert read_items(first) == read_items(second)
    items = read_items(first)
    assert [item.item_id for item in items] == ["7", "x", "y"]
    assert items[1].messages == ({"role": "system", "content": "Be brief."},)
    assert (items[1].turns, items[2].turns) == (("Hi",), ("One", "Two"))
    assert read_references(first) == read_references(first, "own") == {"7": ("Because.",)}


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "csv"])
def test_the_items_of_an_own_set_may_have_every_format(make_ctx: Any, write: Write, suffix: str) -> None:
    rows = [{"id": "a", "prompt": "Why?"}, {"id": "b", "prompt": "How?"}]
    root = write({"baseline.jsonl": [{"id": "a", "output": "x"}, {"id": "b", "output": "y"}]})
    frame = pl.DataFrame(rows)
    match suffix:
        case "parquet":
            frame.write_parquet(root / "items.parquet")
        case "csv":
            frame.with_columns(reference=pl.Series(["So.", None])).write_csv(root / "items.csv")
        case _:
            lines = "\n".join(json.dumps(row) for row in rows) if suffix == "jsonl" else json.dumps(rows)
            (root / f"items.{suffix}").write_text(lines)
    (root / "judge_prompts.json").write_text(json.dumps(ARENA))
    bench(make_ctx, benchmark="Custom", protocol="ArenaHard", bundle=str(root))
    ctx = reader(make_ctx)
    assert [item.turns for item in read_items(ctx)] == [("Why?",), ("How?",)]
    assert read_baseline(ctx) == {"a": ("x",), "b": ("y",)}
    assert read_templates(ctx) == ARENA


def test_an_own_set_may_use_the_judge_prompts_of_an_installed_package(make_ctx: Any, write: Write) -> None:
    bench(make_ctx, benchmark="Custom", protocol="MTBench", bundle=str(write({"items.jsonl": OWN[2:]})))
    assert set(read_templates(reader(make_ctx))) >= set(MT)


def test_files_of_the_storage_are_read(make_ctx: Any, tmp_path: Path) -> None:
    root = tmp_path / "storage" / "sets"
    root.mkdir(parents=True)
    (root / "items.jsonl").write_text(json.dumps({"id": "a", "prompt": "Why?"}) + "\n")
    bench(make_ctx, benchmark="Custom", bundle="storage://sets")
    assert [item.item_id for item in read_items(reader(make_ctx))] == ["a"]


def test_a_limit_takes_the_first_items_and_what_belongs_to_them(make_ctx: Any, write: Write) -> None:
    artifact = bench(make_ctx, benchmark="AlpacaEval2", bundle=str(write(ALPACA_FILES)), limit=1)
    ctx = reader(make_ctx)
    assert (len(read_items(ctx)), list(read_baseline(ctx))) == (1, ["0"])
    assert artifact.manifest.metrics["items"] == 1
    regulariser = read_regulariser(ctx)
    assert regulariser is not None
    assert regulariser.height == 2


def test_development_items_are_set_aside_with_what_belongs_to_them(make_ctx: Any, write: Write) -> None:
    rows = [{"id": name, "prompt": text} for name, text in zip("abcdef", "xyzxuv", strict=True)]
    files = {"items.jsonl": rows, "baseline.jsonl": [{"id": name, "output": "So."} for name in "abcdef"]}
    found = []
    for number, hash_ in ((2, "c"), (3, "d"), (4, "e")):
        settings = {"benchmark": "Custom", "bundle": str(write(files)), "development": number}
        artifact = bench(make_ctx, hash_ * 16, **settings)
        ctx = reader(make_ctx, hash_ * 16)
        evaluated, aside = ({item.item_id for item in items} for items in (read_items(ctx), read_development(ctx)))
        assert evaluated | aside == set("abcdef") == set(read_baseline(ctx))
        assert not evaluated & aside
        assert len({"x" if item in "ad" else item for item in aside}) == number
        assert ("a" in aside) == ("d" in aside), "items of one text stay together"
        metrics = artifact.manifest.metrics
        assert (metrics["items"], metrics["development_items"]) == (len(evaluated), len(aside))
        found.append(aside)
    assert found[0] < found[1] < found[2], "more items are added to those that were set aside"


def test_development_items_leave_some_to_evaluate(make_ctx: Any, write: Write) -> None:
    bundle = str(write({"items.jsonl": [{"id": "a", "prompt": "x"}]}))
    with pytest.raises(DataError, match="development sets 1 items aside, and the benchmark has 1 different ones"):
        bench(make_ctx, benchmark="Custom", bundle=bundle, development=1)


def test_two_runs_write_the_same_bytes_and_the_place_has_no_effect_on_the_digest(make_ctx: Any, write: Write) -> None:
    made = [
        bench(make_ctx, hash_ * 16, benchmark="AlpacaEval2", bundle=str(write(files)))
        for hash_, files in (("c", ALPACA_FILES), ("d", {f"deep/{name}": text for name, text in ALPACA_FILES.items()}))
    ]
    first, second = ({entry.name: entry.sha256 for entry in artifact.manifest.files} for artifact in made)
    assert {name for name in first if first[name] != second[name]} == {"bundle.json"}
    assert described(made[0])["digest"] == described(made[1])["digest"] == made[0].manifest.details["bundle_digest"]
    again = bench(make_ctx, "e" * 16, benchmark="AlpacaEval2", bundle=str(write(ALPACA_FILES).parent / "bundle-0"))
    assert {entry.name: entry.sha256 for entry in again.manifest.files} == first


def test_a_pinned_bundle_with_other_files_is_refused(make_ctx: Any, write: Write) -> None:
    root = write(ALPACA_FILES)
    lines = sorted(hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ALPACA_FILES)
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    bench(make_ctx, benchmark="AlpacaEval2", bundle=str(root), bundle_digest=digest)
    wrong = "0" * 64
    error = refused(make_ctx, benchmark="AlpacaEval2", bundle=str(root), bundle_digest=wrong)
    assert str(error) == (
        f"evaluation.benchmarks[].bundleDigest is {wrong!r}: the files of the bundle have the digest {digest}"
    )


def own(rows: list[Any], **files: Any) -> dict[str, Any]:
    return {"items.jsonl": rows} | {name.replace("__", "."): content for name, content in files.items()}


A = {"id": "a", "prompt": "Why?"}
B = {"id": "b", "prompt": "How?"}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no items": ({"benchmark": "Custom"}, own([]), "the bundle has no items"),
    "duplicate ids": ({"benchmark": "Custom"}, own([A, B, A]), "items 1 and 3 have the same id 'a'"),
    "number and text of one id": (
        {"benchmark": "Custom"},
        own([{"id": 7, "prompt": "x"}, {"id": "7", "prompt": "y"}]),
        "items 1 and 2 have the same id '7'",
    ),
    "ids that differ by their normal form": (
        {"benchmark": "Custom"},
        own([A, {"id": "\u00e9", "prompt": "x"}, {"id": "e\u0301", "prompt": "y"}]),
        "items 2 and 3 have ids of one normal form, '\\xe9' and 'e\\u0301'",
    ),
    "blank prompt": ({"benchmark": "Custom"}, own([{"id": "a", "prompt": " "}]), "the prompt of item a is empty"),
    "blank turn": ({"benchmark": "Custom"}, own([{"id": "a", "turns": ["x", ""]}]), "the prompt of item a is empty"),
    "no turns": ({"benchmark": "Custom"}, own([{"id": "a", "turns": []}]), "the prompt of item a is empty"),
    "no id": (
        {"benchmark": "Custom"},
        own([A, {"prompt": "x"}]),
        "row 2 of {root}/items.jsonl: it has no id or item_id or uid or question_id; its columns: prompt",
    ),
    "no prompt": (
        {"benchmark": "Custom"},
        own([{"id": "a", "text": "x"}]),
        "row 1 of {root}/items.jsonl: it has no messages or turns or prompt or instruction; its columns: id, text",
    ),
    "prompt of another type": (
        {"benchmark": "Custom"},
        own([{"id": "a", "prompt": 3}]),
        "row 1 of {root}/items.jsonl: prompt is 3 (int), but a text is needed",
    ),
    "id of another type": (
        {"benchmark": "Custom"},
        own([{"id": 1.5, "prompt": "x"}]),
        "row 1 of {root}/items.jsonl: id is 1.5 (float), but a text or a whole number is needed",
    ),
    "last word of the assistant": (
        {"benchmark": "Custom"},
        own([{"id": "a", "messages": [{"role": "assistant", "content": "x"}]}]),
        "row 1 of {root}/items.jsonl: messages must end with a message of the user",
    ),
    "unknown role": (
        {"benchmark": "Custom"},
        own([{"id": "a", "messages": [{"role": "tool", "content": "x"}]}]),
        "row 1 of {root}/items.jsonl: messages holds a message of the role 'tool'; the roles that are read are *",
    ),
    "reference of another type": (
        {"benchmark": "Custom"},
        own([A | {"reference": 4}]),
        "row 1 of {root}/items.jsonl: reference is 4 (int), but a text or a list of texts is needed",
    ),
    "baseline of one item missing": (
        {"benchmark": "Custom"},
        own([A, B], baseline__jsonl=[{"id": "a", "output": "x"}]),
        "the baseline has no answer to item b",
    ),
    "empty baseline": (
        {"benchmark": "Custom"},
        own([A, B], baseline__jsonl=[]),
        "the baseline has no answer to item a (and of 1 more)",
    ),
    "empty baseline answer": (
        {"benchmark": "Custom"},
        own([A], baseline__jsonl=[{"id": "a", "output": " "}]),
        "the baseline's answer to item a is empty, so every system would beat it",
    ),
    "two baseline answers": (
        {"benchmark": "Custom"},
        own([A], baseline__jsonl=[{"id": "a", "output": "x"}] * 2),
        "row 2 of {root}/baseline.jsonl: item 'a' has an answer already",
    ),
    "baseline without a text": (
        {"benchmark": "Custom"},
        own([A], baseline__jsonl=[{"id": "a", "choices": [{"turns": [{"text": "x"}]}]}]),
        "row 1 of {root}/baseline.jsonl: a turn has no text",
    ),
    "no judge prompt": (
        {"benchmark": "Custom", "protocol": "ArenaHard"},
        own([A]),
        "the bundle has no judge prompt 'user'; it has: none",
    ),
    "judge prompt without a field": (
        {"benchmark": "Custom", "protocol": "ArenaHard"},
        own([A], judge_prompts__json={"user": "{QUESTION} {ANSWER_A}"}),
        "judge prompt 'user' lacks the field {ANSWER_B}",
    ),
    "judge prompts of another form": (
        {"benchmark": "Custom", "protocol": "ArenaHard"},
        own([A], judge_prompts__json={"user": 3}),
        "{root}/judge_prompts.json is an object with user, but an object of texts by name is needed",
    ),
    "damaged judge prompts": (
        {"benchmark": "Custom", "protocol": "ArenaHard"},
        own([A], judge_prompts__json="{"),
        "{root}/judge_prompts.json cannot be read: *",
    ),
    "too many turns": (
        {"benchmark": "Custom", "protocol": "ArenaHard"},
        own([{"id": "a", "turns": ["x", "y"]}], judge_prompts__json=ARENA),
        "item a has more turns than the judge prompts of ArenaHard show (1)",
    ),
    "missing reference": (
        {"benchmark": "Custom", "protocol": "MTBench"},
        own([A | {"category": "math"}, B | {"category": "coding"}], judge_prompts__json=MT),
        "item a (and of 1 more) has no reference answer to each turn; the categories arena-hard-200, coding, *",
    ),
    "difficulties of another data set": (
        {"benchmark": "AlpacaEval2"},
        ALPACA_FILES | {"df_gamed.csv": GAMED.replace("0.75,1,", "0.75,0,")},
        "df_gamed.csv has no instruction_difficulty for index 1",
    ),
    "a difficulty that is no number": (
        {"benchmark": "AlpacaEval2"},
        ALPACA_FILES | {"df_gamed.csv": GAMED.replace("0.25", "nan")},
        "row 1 of {root}/df_gamed.csv: instruction_difficulty is 'nan', but a number is needed",
    ),
    "a flag that is none": (
        {"benchmark": "AlpacaEval2"},
        ALPACA_FILES | {"df_gamed.csv": GAMED.replace("False", "No")},
        "row 1 of {root}/df_gamed.csv: not_gamed_baseline is 'No', but True or False is needed",
    ),
    "no prompts": (
        {"benchmark": "AlpacaEval2"},
        {"df_gamed.csv": GAMED},
        "the bundle has no prompts with the baseline's answers: no file alpaca_eval_gpt4_baseline.json or *",
    ),
    "an index between two items": (
        {"benchmark": "AlpacaEval2"},
        ALPACA_FILES | {"df_gamed.csv": GAMED.replace("0.5,0,", "0.5,0.5,")},
        "row 1 of {root}/df_gamed.csv: index is 0.5, but a whole number is needed",
    ),
    "an index of 1e308": (
        {"benchmark": "AlpacaEval2"},
        ALPACA_FILES | {"df_gamed.csv": GAMED.replace("0.5,0,", "0.5,1e308,")},
        "row 1 of {root}/df_gamed.csv: index is 1e+308, but a whole number is needed",
    ),
    "half of a surrogate pair": (
        {"benchmark": "Custom"},
        own(['{"id": "a", "prompt": "\\ud800"}']),
        "row 1 of {root}/items.jsonl: it holds half of a surrogate pair, which is not text",
    ),
    "half of a surrogate pair in a judge prompt": (
        {"benchmark": "Custom"},
        own([A], judge_prompts__json='{"user": "\\ud800"}'),
        "judge prompt 'user' holds half of a surrogate pair, which is not text",
    ),
    "several files": (
        {"benchmark": "ArenaHard"},
        {"a/question.jsonl": [], "b/question.jsonl": []},
        "{root} has several files question.jsonl: a/question.jsonl, b/question.jsonl",
    ),
    "damaged settings": (
        {"benchmark": "ArenaHardV2"},
        V20 | {"utils/judge_utils.py": "JUDGE_SETTINGS = {"},
        "{root}/utils/judge_utils.py cannot be read: *",
    ),
    "damaged config": (
        {"benchmark": "ArenaHardV2"},
        V20 | {"config/arena-hard-v2.0.yaml": "a: [b"},
        "{root}/config/arena-hard-v2.0.yaml cannot be read: *",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_bundle_is_refused_with_what_is_wrong(make_ctx: Any, write: Write, name: str) -> None:
    params, files, message = WRONG[name]
    root = write(files)
    error = refused(make_ctx, **params, bundle=str(root))
    expected = message.replace("{root}", str(root))
    said = str(error)
    assert said.startswith(expected[:-1]) if expected.endswith("*") else said == expected
    assert error.hint


PLACES = {
    "package:not-installed": "the package not-installed is not installed in this image",
    "package:": "the package  is not installed in this image",
    "/nowhere/at/all": "there is no file or directory /nowhere/at/all",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_does_not_exist_is_named(make_ctx: Any, place: str) -> None:
    error = refused(make_ctx, benchmark="MTBench", bundle=place)
    assert str(error) == f"evaluation.benchmarks[].bundle is {place!r}: {PLACES[place]}"


def test_a_benchmark_without_a_usual_place_needs_a_bundle(make_ctx: Any) -> None:
    error = refused(make_ctx, benchmark="ArenaHard")
    assert str(error) == "evaluation.benchmarks[].bundle is 'unset': benchmark ArenaHard has no usual place"
