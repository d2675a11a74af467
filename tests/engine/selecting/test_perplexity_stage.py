"""Log probabilities of prompts: what counts, in which parts, and the numbers of a plain forward pass."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from engine_support import make_tokenizer, save_tiny_model
from test_engine_chat import FAMILIES, LLAMA2, LLAMA3

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError
from wrpo_engine.sampling.sampler import PromptLogps, SampleRequest
from wrpo_engine.selecting import perplexity
from wrpo_engine.selecting.perplexity import Loss, loss_of
from wrpo_engine.text.chat import conversation_prompt_ids
from wrpo_engine.text.last_turn import last_turn

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "comparisons" / "packllm.json").read_text())
HASH = "00000000000000aa"
TEXTS = ["What is two and two?", "x", "", "Name three colours. " * 5, "é", "Why?"]


@pytest.mark.parametrize("expert", range(3))
def test_losses_are_those_of_the_original_code(expert: int) -> None:
    ids = GOLDEN["input_ids"]
    logits = torch.tensor(GOLDEN["logits"][expert], dtype=torch.float64)
    logps = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).tolist()
    loss = loss_of(ids, logps, eos=GOLDEN["eos_id_ignored"])
    mean = -loss.sum_logp / loss.tokens
    assert mean == pytest.approx(GOLDEN["mean_losses"][expert], abs=1e-6)
    assert math.exp(mean) == pytest.approx(GOLDEN["perplexities"][expert], abs=1e-5)
    assert (loss.tokens, loss.skipped_eos) == (4, 1)


def test_the_choice_of_the_original_code_is_the_least_loss() -> None:
    losses = GOLDEN["mean_losses"]
    assert f"top1 id:  tensor({losses.index(min(losses))})" in GOLDEN["fusion"]["top1"]["printed"]


def test_tokens_before_the_start_and_the_first_of_all_do_not_count() -> None:
    logps = [-1.0, -2.0, -4.0]
    assert loss_of([5, 6, 7, 8], logps, eos=None) == Loss(-7.0, 3, 0)
    assert loss_of([5, 6, 7, 8], logps, eos=7, start=2) == Loss(-4.0, 1, 1)
    assert loss_of([5], [], eos=None) == Loss(0.0, 0, 0)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def inputs(commit_artifact: Any) -> dict[str, ArtifactRef]:
    rows = [
        {"item_id": f"q{index}", "index": index, "category": "", "turns": [text, "More?"], "messages": []}
        for index, text in enumerate(TEXTS)
    ]
    frame = pl.DataFrame(rows, schema={**records.BENCH_ITEMS})
    return {"bench/mt": commit_artifact("bench/mt", {"items.parquet": frame})}


@pytest.fixture
def run_stage(make_ctx: Any, model_dir: Path, inputs: dict[str, ArtifactRef]) -> Callable[..., Any]:
    def run(*, shards: int = 1, shard: int = 0, hash_: str = HASH, model: Path = model_dir, **changes: Any) -> Any:
        params = {
            "stage": "perplexity",
            "model": {"name": str(model)},
            "backend": "Transformers",
            "prompts_per_part": 2,
            **changes,
        }
        ctx = make_ctx(params, inputs, stage="perplexity/tiny-mt", hash_=hash_, shard=shard, runtime={"shards": shards})
        return ctx, perplexity.run(ctx)

    return run


def rows_of(ctx: Any) -> list[dict[str, Any]]:
    names = ctx.output.committed().files("parts/")
    return [row for name in names for row in pl.read_parquet(ctx.output.directory / name).iter_rows(named=True)]


def reference(model_dir: Path, ids: Sequence[int], start: int) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    with torch.inference_mode():
        logps = model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
    return sum(float(logps[place - 1, ids[place]]) for place in range(max(start, 1), len(ids)))


def test_plain_prompts_are_the_first_turns_text_alone(run_stage: Any, model_dir: Path) -> None:
    ctx, result = run_stage()
    rows = rows_of(ctx)
    tokenizer = make_tokenizer()
    assert [row["item_id"] for row in rows] == [f"q{index}" for index in range(len(TEXTS))]
    for row, text in zip(rows, TEXTS, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row["sum_logp"] == pytest.approx(reference(model_dir, ids, 1) if ids else 0.0, abs=1e-4)
        # The tokenizer puts no BOS before text, so the first byte is not predicted.
        assert (row["tokens"], row["bytes"]) == (max(0, len(text.encode()) - 1), len(text.encode()))
    assert result.metrics["without_target"] == 2
    known = [row for row in rows if row["tokens"]]
    assert result.metrics["mean_loss"] == pytest.approx(
        sum(-row["sum_logp"] / row["tokens"] for row in known) / len(known)
    )


def test_chat_counts_the_users_tokens_inside_the_template(run_stage: Any, model_dir: Path) -> None:
    ctx, _ = run_stage(text="Chat", system_prompt="Be brief.")
    tokenizer = make_tokenizer()
    for row, text in zip(rows_of(ctx), TEXTS, strict=True):
        head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        start = len(tokenizer(head)["input_ids"])
        ids = tokenizer(head + text)["input_ids"]
        assert row["sum_logp"] == pytest.approx(reference(model_dir, ids, start), abs=1e-4)
        assert (row["tokens"], row["bytes"]) == (len(text.encode()), len(text.encode()))


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob("*.parquet"))}


class Killed:
    """Reads some prompts and fails."""

    def __init__(self, sampler: Any, after: int) -> None:
        self._sampler, self._after = sampler, after

    def prompt_logps(self, requests: Sequence[SampleRequest]) -> Iterator[PromptLogps]:
        for number, read in enumerate(self._sampler.prompt_logps(requests)):
            if number == self._after:
                raise RuntimeError("killed")
            yield read

    def close(self) -> None:
        self._sampler.close()


def test_shards_and_kills_change_no_byte(run_stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, result = run_stage()
    for shard in (1, 0):
        split, _ = run_stage(shard=shard, shards=2, hash_="00000000000000bb")
    make = perplexity.make_sampler
    with monkeypatch.context() as patch:
        patch.setattr(perplexity, "make_sampler", lambda *arguments: Killed(make(*arguments), 2))
        with pytest.raises(RuntimeError, match="killed"):
            run_stage(hash_="00000000000000cc")
    resumed, again = run_stage(hash_="00000000000000cc")
    assert again.rows < result.rows == len(TEXTS)
    assert digests(split.output.directory) == digests(whole.output.directory)
    assert digests(resumed.output.directory) == digests(whole.output.directory)


def test_a_prompt_beyond_the_context_has_no_log_probability(run_stage: Any, tmp_path: Path) -> None:
    ctx, result = run_stage(model=save_tiny_model(tmp_path / "small", context=30))
    assert [row["tokens"] for row in rows_of(ctx)] == [19, 0, 0, 0, 1, 3]
    assert result.metrics["without_target"] == 3


def test_a_benchmark_without_items_is_an_error(commit_artifact: Any, make_ctx: Any) -> None:
    frame = pl.DataFrame(schema=records.BENCH_ITEMS)
    ref = commit_artifact("bench/none", {"items.parquet": frame})
    params = {"stage": "perplexity", "model": {"name": "/none"}, "backend": "Transformers"}
    ctx = make_ctx(params, {"bench/none": ref}, stage="perplexity/tiny-none")
    with pytest.raises(DataError) as error:
        perplexity.run(ctx)
    assert error.value.message == "there are no prompts whose perplexity could be measured"


@pytest.mark.parametrize(("options", "has_bos"), FAMILIES.values(), ids=FAMILIES.keys())
def test_the_turns_tokens_are_found_in_every_template(options: dict[str, Any], has_bos: bool) -> None:
    del has_bos
    tokenizer = make_tokenizer(**options)
    history = [{"role": "user", "content": "the same?"}, {"role": "assistant", "content": "the same?"}]
    for messages in ([], history):
        turn = [*messages, {"role": "user", "content": "the same?"}]
        found = last_turn(tokenizer, turn, "Be brief.")
        assert tokenizer.decode(found.ids[found.start :]).endswith("the same?")
        assert tokenizer.decode(found.ids[found.start :]).removeprefix("Be brief.\n\n") == "the same?"
        prompt = conversation_prompt_ids(tokenizer, turn, "Be brief.")
        assert prompt[: len(found.ids)] == found.ids


def test_what_a_template_trims_does_not_count() -> None:
    tokenizer = make_tokenizer(template=LLAMA3, bos="<s>", eos="<|eot|>", adds_bos=True)
    found = last_turn(tokenizer, [{"role": "user", "content": "  Why?\n"}])
    assert tokenizer.decode(found.ids[found.start :]) == "Why?"


def test_the_text_of_a_control_token_counts_as_text() -> None:
    tokenizer = make_tokenizer(template=LLAMA2, bos="<s>", eos="</s>", adds_bos=True)
    found = last_turn(tokenizer, [{"role": "user", "content": "What is </s>?"}])
    assert len(found.ids) - found.start == len("What is </s>?")
    assert tokenizer.eos_token_id not in found.ids[found.start :]
