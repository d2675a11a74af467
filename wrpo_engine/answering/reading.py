"""What a model reads before it answers: a conversation, and in a mixture other systems' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrpo_engine.answering.dialogue import Prompt
from wrpo_engine.answering.mixture import longest_prefix, with_references
from wrpo_engine.bundles.answers import read_answers, texts_by_item
from wrpo_engine.bundles.items import BenchItem, Message
from wrpo_engine.contract.evaluation import AnswerParams, MixtureParams
from wrpo_engine.errors import DataError
from wrpo_engine.stage import StageContext
from wrpo_engine.text.chat import conversation_prompt_ids, text_token_ids

References = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Role -> item id -> answers by turn."""


def references_of(ctx: StageContext, params: AnswerParams | MixtureParams, items: Sequence[BenchItem]) -> References:
    """Return the answers that a mixture reads, in the order of the members; none for other systems.

    Raises DataError if a member has no answer to a turn of an item.
    """
    if not isinstance(params, MixtureParams):
        return {}
    references = {role: texts_by_item(read_answers(ctx.input(role))) for role in params.references}
    for role, answers in references.items():
        for item in items:
            found = len(answers.get(item.item_id, ()))
            if found < len(item.turns):
                raise DataError(
                    f"{role} has no answer to turn {found + 1} of item {item.item_id}, which {params.system} reads",
                    code="AnswerMissing",
                    field=f"evaluation.systems[{params.system}]",
                    hint="Its answers are to another benchmark or bundle: let its stage run again with this one.",
                )
    return references


@dataclass
class Reader:
    """Turns conversations into prompts. A reference is cut once for all samples."""

    tokenizer: Any
    params: AnswerParams | MixtureParams
    references: References
    _cut: dict[tuple[str, str, int], tuple[str, bool]] = field(default_factory=dict)

    def read(self, item: BenchItem, turn: int, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of an item's turn (from 0); DataError names the item."""
        references = [self._reference(role, item, turn) for role in self.references]
        if references:
            messages = with_references(
                _with_system(messages, self.params.system_prompt), [text for text, _ in references]
            )
        try:
            ids = conversation_prompt_ids(self.tokenizer, messages, self.params.system_prompt)
        except DataError as error:
            raise DataError(
                f"item {item.item_id}: {error.message}", code=error.code, field=error.field, hint=error.hint
            ) from error
        return Prompt(ids=ids, references_cut=sum(is_cut for _, is_cut in references))

    def _reference(self, role: str, item: BenchItem, turn: int) -> tuple[str, bool]:
        """Return a member's answer to a turn, and whether it is cut."""
        key = role, item.item_id, turn
        if key not in self._cut:
            self._cut[key] = self._shortened(self.references[role][item.item_id][turn])
        return self._cut[key]

    def _shortened(self, text: str) -> tuple[str, bool]:
        assert isinstance(self.params, MixtureParams)
        limit = self.params.reference_tokens
        prefix = longest_prefix(text, limit, lambda part: len(text_token_ids(self.tokenizer, part)))
        return prefix, prefix != text


def _with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return a conversation with the system message that applies to it, if there is one."""
    if not system or messages[0]["role"] == "system":
        return list(messages)
    return [{"role": "system", "content": system}, *messages]
