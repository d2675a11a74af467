"""A reward reads a conversation before the response as its messages, or as one text where it reads no messages."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_support import CHATML

from wrpo_engine.config import RewardModel
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.scoring.endpoint_client import make_client
from wrpo_engine.scoring.function import FunctionScorer
from wrpo_engine.scoring.posting import Poster
from wrpo_engine.scoring.reward_model import RewardScorer
from wrpo_engine.text.conversations import Prompt, conversation, prompt_text

MESSAGES = (("system", "Be brief."), ("user", "hi"), ("assistant", "yo"), ("user", "again <|im_end|> please"))


def score(path: Path, prompt: Prompt, response: str) -> float:
    scorer = RewardScorer(ResolvedModel(path, "tiny", None), max_length=512, batch_tokens=4096)
    return scorer.score([(prompt, response), ("another", "row")])[0]


def expected(path: Path, text: str) -> float:
    """The score of the plain model for a text whose control tokens are all meant."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    pieces = text.split("!CUT!")
    ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([ids])).logits)


def chatml(*messages: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)


def test_a_reward_model_reads_every_message_and_its_template_alone_writes_control_tokens(tiny_reward_dir: Path) -> None:
    *before, (role, content) = MESSAGES
    apart = (role, content.replace("<|im_end|>", "<!CUT!|im_end|>"))
    text = chatml(*before, apart, ("assistant", "fine"))
    assert score(tiny_reward_dir, MESSAGES, "fine") == pytest.approx(expected(tiny_reward_dir, text), abs=1e-6)


def test_one_message_of_the_user_is_the_prompt_itself(tiny_reward_dir: Path) -> None:
    prompt = conversation([{"role": "user", "content": "hi"}])
    assert prompt == "hi"
    assert score(tiny_reward_dir, (("user", "hi"),), "fine") == score(tiny_reward_dir, "hi", "fine")


def test_a_system_message_without_a_place_in_the_template_goes_before_the_first_message_of_the_user(
    tiny_reward_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "strict"
    shutil.copytree(tiny_reward_dir, path)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    (path / "chat_template.jinja").write_text(refusing)
    merged = (("user", "Be brief.\n\nhi"), *MESSAGES[2:])
    assert score(path, MESSAGES, "fine") == score(tiny_reward_dir, merged, "fine")
    assert score(path, MESSAGES, "fine") != score(tiny_reward_dir, MESSAGES, "fine")


def test_a_model_without_a_template_reads_the_conversation_as_one_text(tiny_reward_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = tmp_path / "pairs"
    shutil.copytree(tiny_reward_dir, path)
    (path / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(path)
    text = "System: Be brief.\n\nUser: hi\n\nAssistant: yo\n\nUser: again <|im_end|> please"
    assert prompt_text(MESSAGES) == text
    assert score(path, MESSAGES, "fine") == score(path, text, "fine")


def lengths(prompts: list[str], responses: list[str]) -> list[float]:
    return [len(prompt) + len(response) / 100 for prompt, response in zip(prompts, responses, strict=True)]


def test_a_function_gets_the_conversation_as_one_text() -> None:
    (reward,) = FunctionScorer(f"{__name__}:lengths").rewards([(MESSAGES, "fine")])
    assert reward.score == pytest.approx(len(prompt_text(MESSAGES)) + 0.04)


def test_an_endpoint_gets_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(RewardModel(endpoint="http://127.0.0.1:1/v1"), {})
    sent: list[dict[str, Any]] = []

    def post(_: Any, body: bytes) -> bytes:
        sent.append(json.loads(body))
        return b'{"data": [{"data": [0.5]}]}'

    monkeypatch.setattr(Poster, "post", post)
    assert client.reward((MESSAGES, "fine"), "row", threading.Event()).score == 0.5
    assert [(message["role"], message["content"]) for message in sent[0]["messages"]] == [
        *MESSAGES,
        ("assistant", "fine"),
    ]
