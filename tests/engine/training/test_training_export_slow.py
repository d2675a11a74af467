"""vLLM reads a trained model, in an interpreter without this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import save_small_model
from training_support import FAST, plain_backend, triples_frame

from wrpo_engine.training import session, stage

pytestmark = pytest.mark.slow
pytest.importorskip("vllm")
NUM_NEW = 12
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
assert not any(name.startswith("wrpo") for name in sys.modules)
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, gpu_memory_utilization=0.3, max_model_len=256)
prompt = llm.get_tokenizer().apply_chat_template(
    [{"role": "user", "content": "why why"}], tokenize=True, add_generation_prompt=True, return_dict=False
)
params = SamplingParams(temperature=0, max_tokens=int(sys.argv[2]), prompt_logprobs=0, logprobs=0, ignore_eos=True)
(output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
def of(ids, entries):
    return [entry[token].logprob for token, entry in zip(ids, entries) if entry]
response = list(output.outputs[0].token_ids)
logps = of(prompt, output.prompt_logprobs) + of(response, output.outputs[0].logprobs)
print("RESULT " + json.dumps({"prompt": prompt, "response": response, "logps": logps}))
"""


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "base")


@pytest.fixture
def exported(base_model: Path, make_ctx: Any, commit_artifact: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model directory of a finished stage train."""
    monkeypatch.setattr(session, "make_backend", plain_backend)
    triples = commit_artifact("curate-triples", {"triples.parquet": triples_frame()})
    params = {"stage": "train", "model": {"name": str(base_model)}, **FAST, "learning_rate": 1e-2, "beta": 0.1}
    ctx = make_ctx(params, {"triples": triples}, runtime={"micro_batch_tokens": 400})
    stage.run_train(ctx)
    return Path(ctx.output.directory) / "model"


def ask_vllm(directory: Path) -> dict[str, Any]:
    """Return prompt ids, a greedy continuation, and the log-probabilities of both."""
    # Without the variables of other tests in this process, which vLLM and tqdm would read.
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(directory), str(NUM_NEW)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd="/", check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))


def logps_of(directory: Path, ids: list[int]) -> torch.Tensor:
    """Return the log-probability of each token but the first, by plain Transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(-1, tokens[0, 1:, None])[:, 0]


def test_vllm_and_transformers_compute_the_same_with_a_trained_model(exported: Path, base_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = ask_vllm(exported)
    whole = result["prompt"] + result["response"]
    expected = logps_of(exported, whole)
    torch.testing.assert_close(torch.tensor(result["logps"]), expected, rtol=0, atol=1e-4)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    greedy = model.generate(
        torch.tensor([result["prompt"]]), max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False
    )
    assert greedy[0].tolist() == whole
    assert float((logps_of(base_model, whole) - expected).abs().max()) > 0.1, "training has changed nothing"
