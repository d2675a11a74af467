"""Every stage computes what plain Transformers computes with its reference attention, one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, make_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from wrpo_engine.config import TrainParams
from wrpo_engine.errors import ConfigError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.loading.exact_attention import use_exact_attention
from wrpo_engine.loading.rotary import RotaryLimit, require_own_positions
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_engine.sampling.transformers_sampler import TransformersSampler
from wrpo_engine.scoring.encoding import Encoded
from wrpo_engine.scoring.loading import load_network
from wrpo_engine.scoring.network import LinearHead, PaddedDecoder, Row
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.layout import Layout, choose_layout
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.model import LogpModel, disable_dropout
from wrpo_engine.training.models.policy import load_frozen, load_policy
from wrpo_engine.training.reference.self_check import require_plain_results

ROWS = [
    TokenRow("long", tuple(range(3, 25)), ((5, 6, 7, 2), (8, 2), (9, 10, 11, 12, 13, 14, 15, 2))),
    TokenRow("short", (4,), ((2,), (9, 2), (5, 6, 7, 2))),
]
SEQUENCES = [(row.prompt, response) for row in ROWS for response in row.responses]
PARAMS = TrainParams.model_validate({"stage": "train", "model": {"name": "tiny"}, "precision": "float32", "beta": 0.1})
TOLERANCE = 2e-6
"""Of a number of some size, computed twice in fp32; a part that is left out changes more than 2e-5."""


def assert_same(ours: Tensor, plain: Tensor) -> None:
    difference = ((ours.detach().double() - plain.double()).abs() / (1 + plain.double().abs())).max()
    assert float(difference) < TOLERANCE


def plain_logps(path: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    disable_dropout(model)
    sums = []
    for prompt, response in SEQUENCES:
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        sums.append(torch.log_softmax(logits, dim=-1).gather(-1, torch.tensor(response)[:, None]).sum())
    return torch.stack(sums).detach()


def layouts(config: Any) -> list[Layout]:
    """What `auto` takes, padded, and what else is allowed."""
    is_verified = choose_layout("auto", config).layout is not Layout.PADDED
    return list(Layout) if is_verified else [Layout.PADDED]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_of_policy_and_reference_are_those_of_plain_transformers(
    architecture: str, tmp_path: Path
) -> None:
    made = make_model(AutoModelForCausalLM, architecture)
    made.save_pretrained(tmp_path)
    plain = plain_logps(tmp_path)
    base = ResolvedModel(tmp_path, "tiny", None)
    for layout in layouts(made.config):
        for load in (load_policy, load_frozen):
            assert_same(load(base, PARAMS, layout)(batch=collate(ROWS, layout)), plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_tokens_are_drawn_from_the_logits_of_plain_transformers(architecture: str, tmp_path: Path) -> None:
    """Also of rows of several lengths in one batch, and behind a cache."""
    from transformers import DynamicCache

    make_model(AutoModelForCausalLM, architecture).save_pretrained(tmp_path)
    settings = SamplerSettings(temperature=0.0, top_p=1.0, max_tokens=4, stop_token_ids=())
    sampler = TransformersSampler(ResolvedModel(tmp_path, "tiny", None), None, settings)
    rows = [[*prompt, *response] for prompt, response in SEQUENCES]
    ids, mask = sampler._left_padded(rows)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        cache = DynamicCache(config=sampler._model.config)
        first = sampler._forward(ids, mask, positions, cache)
        following = torch.full((len(rows), 1), 7)
        longer = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
        second = sampler._forward(following, longer, positions[:, -1:] + 1, cache)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        plain = [model(torch.tensor([[*row, 7]])).logits[0, -2:] for row in rows]
    assert_same(first, torch.stack([logits[0] for logits in plain]))
    assert_same(second, torch.stack([logits[1] for logits in plain]))


WITH_SCORES = [
    "llama", "mistral with a window", "qwen2 with windows in some layers", "qwen3", "gemma with one head size",
    "gemma2 with a cap and windows", "gemma3_text with windows", "phi3 with longrope within its first context", "gpt2",
    "opt", "gpt_neox", "falcon", "falcon with ALiBi", "bloom with ALiBi", "mixtral", "qwen2_moe", "qwen3_moe",
    "deepseek_v2", "deepseek_v3", "glm", "gpt_oss with sinks and windows", "starcoder2 with a window", "smollm3",
]  # fmt: skip
"""Those that Transformers has a classifier of."""


def reward_rows() -> list[Row]:
    ids = [[*prompt, *response] for prompt, response in SEQUENCES]
    return [
        Row(prompt=str(len(one)), encoded=Encoded(ids=one, types=None, truncated=False), last=len(one) - 1)
        for one in ids
    ]


@pytest.mark.parametrize("architecture", WITH_SCORES)
def test_scores_are_those_of_plain_transformers_on_padded_and_packed_rows(architecture: str, tmp_path: Path) -> None:
    make_model(AutoModelForSequenceClassification, architecture, num_labels=1).save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = reward_rows()
    with torch.no_grad():
        plain = torch.stack([classifier(torch.tensor([row.ids])).logits[0, 0] for row in rows])
    networks = [load_network(ResolvedModel(tmp_path, "tiny", None), {}, "float32", torch.device("cpu"))]
    if hasattr(classifier, "score"):
        # What a GPU computes with.
        fused = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
        if fused.config._attn_implementation == "sdpa" and not getattr(fused.config, "alibi", False):
            networks.append(PaddedDecoder(fused.base_model, LinearHead(fused.score.weight)))
    for network in networks:
        scores = torch.zeros(len(rows))
        for batch in network.batches(rows, 64):
            with torch.no_grad():
                scores[list(batch.rows)] = network.forward(batch)[:, 0]
        assert_same(scores, plain)


def test_a_model_without_such_arguments_keeps_its_attention() -> None:
    plain = make_model(AutoModelForCausalLM, "llama")
    use_exact_attention(plain)
    assert plain.config._attn_implementation == "sdpa"
    capped = make_model(AutoModelForCausalLM, "gemma2 with a cap and windows")
    use_exact_attention(capped)
    assert capped.config._attn_implementation == "wrpo_exact"


@pytest.mark.parametrize("architecture", ["llama", "gemma2 with a cap and windows", "falcon with ALiBi", "mixtral"])
def test_the_check_before_the_first_step_passes_a_model_that_is_computed_right(architecture: str) -> None:
    for layout in layouts(make_model(AutoModelForCausalLM, architecture).config):
        backend = SingleProcessBackend(LogpModel(make_model(AutoModelForCausalLM, architecture), layout), PARAMS)
        before = backend.frozen_sequence_logps(collate(ROWS, layout))
        require_plain_results(backend, ROWS[0], layout, precision="float32", model="tiny")
        assert torch.equal(backend.frozen_sequence_logps(collate(ROWS, layout)), before)


def test_the_check_before_the_first_step_finds_what_policy_and_reference_both_leave_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wrpo_engine.training.models.model.use_exact_attention", lambda _: None)
    capped = make_model(AutoModelForCausalLM, "gemma2 with a cap and windows")
    with torch.no_grad():
        for layer in capped.model.layers:
            layer.self_attn.q_proj.weight.mul_(8.0)
    backend = SingleProcessBackend(LogpModel(capped), PARAMS)
    with pytest.raises(ConfigError) as caught:
        require_plain_results(backend, ROWS[0], Layout.PADDED, precision="float32", model="gemma2")
    assert caught.value.message.startswith(
        "target.model is 'gemma2': with layout padded its log-probabilities differ from those of plain Transformers by "
    )
    assert caught.value.code == "ModelDiffers"


NOT_CAUSAL = {
    "xlm": "with layout padded its log-probabilities differ from those of plain Transformers by ",
    "electra": "its decoder returns 32 numbers per token and its output head takes 128, because there are further "
    "layers between them",
}
"""XLM looks ahead and leaves padding out by itself, so that only a shorter response shows it."""


@pytest.mark.parametrize(("architecture", "message"), NOT_CAUSAL.items(), ids=NOT_CAUSAL.keys())
def test_the_check_before_the_first_step_finds_models_that_are_no_decoders(architecture: str, message: str) -> None:
    model = LogpModel(make_model(AutoModelForCausalLM, architecture))
    with pytest.raises(ConfigError) as caught:
        require_plain_results(
            SingleProcessBackend(model, PARAMS), ROWS[0], Layout.PADDED, precision="float32", model="tiny"
        )
    assert message in caught.value.message
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("prompt_has_loss", [False, True])
def test_the_check_before_the_first_step_takes_responses_of_any_length(prompt_has_loss: bool) -> None:
    backend = SingleProcessBackend(LogpModel(make_model(AutoModelForCausalLM, "llama")), PARAMS)
    for response in ((2,), (5, 2), (5, 6, 7, 2)):
        row = TokenRow("row", (3, 4, 5), (response,), prompt_has_loss)
        require_plain_results(backend, row, Layout.PADDED, precision="float32", model="tiny")


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}


def rotary_config(parameters: dict[str, Any], context: int = 16) -> Any:
    kind = "phi3" if parameters["rope_type"] == "longrope" else "llama"
    changes: dict[str, Any] = {"original_max_position_embeddings": 16} if kind == "phi3" else {}
    return make_model(
        AutoModelForCausalLM, kind, rope_parameters=parameters, max_position_embeddings=context, **changes
    ).config


def test_rows_that_would_change_each_others_positions_are_refused() -> None:
    dynamic, longrope = rotary_config(DYNAMIC), rotary_config(LONGROPE, 256)
    for config, lengths in ((dynamic, (3, 16)), (longrope, (3, 16)), (longrope, (17, 90))):
        require_own_positions(config, lengths, field="training.maxLength")
    with pytest.raises(ConfigError) as caught:
        require_own_positions(dynamic, (17, 17), field="training.maxLength")
    assert caught.value.message == (
        "training.maxLength is 17: the model's dynamic rotary positions change beyond 16 tokens with the longest "
        "sequence that is computed together with others; there are sequences of 17 tokens, which reach beyond"
    )
    with pytest.raises(ConfigError) as caught:
        require_own_positions(longrope, (16, 17), field="training.maxLength")
    assert caught.value.message == (
        "training.maxLength is 17: the model's longrope rotary positions change beyond 16 tokens with the longest "
        "sequence that is computed together with others; there are sequences of 17 tokens, which reach beyond, and of "
        "16, which do not"
    )
    assert caught.value.hint == (
        "Set it to 16 or less, or use a model whose rotary scaling is fixed (yarn, llama3, linear)."
    )


def test_models_with_fixed_positions_take_rows_of_all_lengths() -> None:
    config = make_model(AutoModelForCausalLM, "llama with yarn").config
    assert RotaryLimit.of_config(config) is None
    require_own_positions(config, (1, 10**6), field="training.maxLength")
