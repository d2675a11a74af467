"""The fixtures other engine tests stand on do what they say."""

from pathlib import Path

from engine_support import make_tokenizer

from wrpo_engine.text.chat import prompt_token_ids, response_token_ids


def test_tiny_model_and_tokenizer_load(tiny_model_dir: Path, tiny_reward_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert model.config.max_position_embeddings == 512
    assert AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir).config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids, response = response_token_ids(tokenizer, "hi", "yo")
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(response) == "yo<|im_end|>"
    assert ids == prompt_token_ids(tokenizer, "hi")


def test_a_tokenizer_of_one_test_is_not_the_next_ones() -> None:
    assert make_tokenizer(bos="<s>", adds_bos=True)("a")["input_ids"][0] != make_tokenizer()("a")["input_ids"][0]
