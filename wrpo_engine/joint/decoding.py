"""Greedy decoding by several models: each token is chosen by all members together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from wrpo_engine.bundles.items import Message
from wrpo_engine.contract.merging import JointFields
from wrpo_engine.joint.agreement import ensemble, likeliest
from wrpo_engine.joint.bridge import anchors_of, bridge, project
from wrpo_engine.joint.members import CachedReader, Member, Reader, have_same_tokens, same_meaning
from wrpo_engine.joint.tokens import nearest_tokens
from wrpo_engine.joint.weighting import (
    Read,
    best_first,
    fused,
    mean_loss,
    optimal_weights,
    read_of,
    similarity_weights,
    token_losses,
)
from wrpo_engine.text.chat import conversation_prompt_ids, decoded, text_token_ids

MakeReader: TypeAlias = Callable[[Any], Reader]
_CUT = "\ufffd"
"""How a tokenizer decodes a part of a character."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the members answer together."""

    ids: tuple[int, ...]
    """In the vocabulary of `member`, without the token that ended the answer."""
    text: str
    prompt_tokens: int
    has_ended: bool
    """Whether the members ended it; otherwise it reached a limit."""
    member: int
    """The member in whose vocabulary the tokens were chosen."""


class Chooser(Protocol):
    """Chooses the tokens of one answer."""

    @property
    def leader(self) -> int:
        """The member in whose vocabulary tokens are chosen."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt in that vocabulary."""
        ...

    def next_token(self, generated: Sequence[int]) -> int | None:
        """Return the token after those that were generated; None if a member's context is full."""
        ...


class Decoder(Protocol):
    """Members that are ready to answer."""

    members: Sequence[Member]

    def start(self, prompts: Sequence[Sequence[int]]) -> Chooser:
        """Begin an answer to a prompt, given in the tokens of each member."""
        ...


def prompts_of(members: Sequence[Member], messages: Sequence[Message], system: str | None) -> list[list[int]]:
    """Return a conversation in the tokens and the chat template of each member."""
    return [conversation_prompt_ids(member.tokenizer, messages, system) for member in members]


def answer(decoder: Decoder, prompts: Sequence[Sequence[int]], max_tokens: int, poll: Callable[[], None]) -> Answer:
    """Return the answer to a prompt; `poll` is called before each token and may raise."""
    chooser = decoder.start(prompts)
    leader = decoder.members[chooser.leader]
    generated: list[int] = []
    has_ended = False
    while len(generated) < max_tokens and not has_ended:
        poll()
        token = chooser.next_token(generated)
        if token is None:
            break
        has_ended = token in leader.stops
        if not has_ended:
            generated.append(token)
    text = leader.tokenizer.decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(
        ids=tuple(generated),
        text=str(text),
        prompt_tokens=chooser.prompt_tokens,
        has_ended=has_ended,
        member=chooser.leader,
    )


def decoder_of(members: Sequence[Member], fields: JointFields, make_reader: MakeReader = CachedReader) -> Decoder:
    """Return the decoder of a method; DataError if the members' vocabularies cannot be bridged."""
    if fields.method == "EVA":
        return BridgedDecoder(members, fields, make_reader)
    return PackedDecoder(members, fields, make_reader)


def _has_room(member: Member, ids: Sequence[int]) -> bool:
    return member.context is None or len(ids) <= member.context


@dataclass
class BridgedDecoder:
    """EVA: distributions are brought into the first member's vocabulary, and averaged."""

    members: Sequence[Member]
    fields: JointFields
    make_reader: MakeReader
    bridges: Mapping[int, Tensor] = field(init=False)
    """Member -> sparse map [its tokens, the first member's tokens]; none for members with the same tokens."""

    def __post_init__(self) -> None:
        others = {place: member for place, member in enumerate(self.members) if place}
        main = self.members[0]
        self.bridges = {
            place: self._bridge(member) for place, member in others.items() if not have_same_tokens(main, member)
        }

    def _bridge(self, other: Member) -> Tensor:
        main = self.members[0]
        texts = [member.vocabulary.texts[: member.size] for member in (main, other)]
        spaces = project(
            main.embeddings(self.fields.embeddings),
            other.embeddings(self.fields.embeddings),
            anchors_of(texts[0], texts[1]),
        )
        return bridge(
            *spaces,
            same_meaning(main, other),
            neighbours=self.fields.neighbours,
            threshold=self.fields.threshold,
        )

    def start(self, prompts: Sequence[Sequence[int]]) -> Chooser:
        """See Decoder."""
        return _Bridged(self, prompts, [self.make_reader(member.model) for member in self.members])


@dataclass
class _Bridged:
    decoder: BridgedDecoder
    prompts: Sequence[Sequence[int]]
    readers: Sequence[Reader]
    leader: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompts[0])

    def next_token(self, generated: Sequence[int]) -> int | None:
        decoder = self.decoder
        texts = [[*prompt, *self._own(place, generated)] for place, prompt in enumerate(self.prompts)]
        if not all(_has_room(member, ids) for member, ids in zip(decoder.members, texts, strict=True)):
            return None
        rows = [self._distribution(place, ids) for place, ids in enumerate(texts)]
        return int(ensemble(torch.stack(rows), decoder.fields.agreement).argmax())

    def _own(self, place: int, generated: Sequence[int]) -> Sequence[int]:
        """Return what was generated in a member's own tokens."""
        if place not in self.decoder.bridges:
            return generated
        # Half a character is not text yet.
        text = decoded(self.decoder.members[0].tokenizer, generated).rstrip(_CUT)
        return text_token_ids(self.decoder.members[place].tokenizer, text) if text else []

    def _distribution(self, place: int, ids: Sequence[int]) -> Tensor:
        """Return a member's distribution of the next token in the first member's vocabulary."""
        member = self.decoder.members[place]
        logits = member.require_numbers(self.readers[place].read(ids)[-1, : member.size])
        probabilities = likeliest(logits, self.decoder.fields.top_k)
        size = self.decoder.members[0].size
        if place in self.decoder.bridges:
            return torch.mv(self.decoder.bridges[place].t(), probabilities)
        return torch.nn.functional.pad(probabilities, (0, max(0, size - len(probabilities))))[:size]


@dataclass
class PackedDecoder:
    """PackLLM: logits are brought into the vocabulary of the member that knows the prompt best, and averaged."""

    members: Sequence[Member]
    fields: JointFields
    make_reader: MakeReader
    _maps: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False)

    def map_of(self, leader: int, place: int) -> Tensor:
        """Return leader's id -> a member's id."""
        key = leader, place
        if key not in self._maps:
            one, other = self.members[leader], self.members[place]
            found = np.arange(one.size)
            if not have_same_tokens(one, other):
                found = nearest_tokens(one.tokens[: one.size], other.tokens[: other.size]).astype(np.int64)
                for theirs, ours in same_meaning(one, other).items():
                    found[ours : ours + 1] = theirs
            self._maps[key] = torch.from_numpy(found.clip(max=other.size - 1))
        return self._maps[key]

    def start(self, prompts: Sequence[Sequence[int]]) -> Chooser:
        """See Decoder. The leader is the member with the least loss of the prompt in its own tokens."""
        losses = [self._prompt_loss(member, ids) for member, ids in zip(self.members, prompts, strict=True)]
        leader = best_first(losses)[0]
        places = [leader] if self.fields.method == "PackTop1" else list(range(len(self.members)))
        return _Packed(self, prompts[leader], leader, places)

    def _prompt_loss(self, member: Member, ids: Sequence[int]) -> float:
        logits = member.require_numbers(self.make_reader(member.model).read(ids))[:, : member.size]
        read = read_of(ids, member.tokenizer.eos_token_id)
        return mean_loss(token_losses(logits[:-1], read.targets), read.counted)


class _Packed:
    def __init__(self, decoder: PackedDecoder, prompt: Sequence[int], leader: int, places: Sequence[int]) -> None:
        self.leader = leader
        self.prompt_tokens = len(prompt)
        self._decoder, self._prompt, self._places = decoder, list(prompt), places
        self._readers = [decoder.make_reader(decoder.members[place].model) for place in places]
        self._losses: list[Tensor] = [torch.zeros(0) for _ in places]
        self._last: list[Tensor] = []
        self._kept: list[Tensor] = []
        """PackOpt: the logits of all positions."""

    def next_token(self, generated: Sequence[int]) -> int | None:
        ids = [*self._prompt, *generated]
        if not all(_has_room(self._decoder.members[place], ids) for place in self._places):
            return None
        new = [self._read(place, reader, ids) for place, reader in zip(self._places, self._readers, strict=True)]
        read = read_of(ids, self._decoder.members[self.leader].tokenizer.eos_token_id)
        self._count(new, read)
        return int(fused([rows[-1] for rows in new], self._weights(new, read)).argmax())

    def _read(self, place: int, reader: Reader, ids: Sequence[int]) -> Tensor:
        """Return a member's logits of what is new, in the leader's vocabulary."""
        member = self._decoder.members[place]
        table = self._decoder.map_of(self.leader, place)
        own = table[torch.tensor(ids)].tolist()
        return member.require_numbers(reader.read(own))[:, table]

    def _count(self, new: Sequence[Tensor], read: Read) -> None:
        """Add the losses of the tokens that were predicted by what is read now, and by the last position before."""
        for index, rows in enumerate(new):
            rows = torch.cat([self._last[index], rows]) if self._last else rows  # noqa: PLW2901
            known = len(self._losses[index])
            fresh = token_losses(rows[:-1], read.targets[known:])
            self._losses[index] = torch.cat([self._losses[index], fresh])
        self._last = [rows[-1:] for rows in new]

    def _weights(self, new: Sequence[Tensor], read: Read) -> list[float]:
        fields = self._decoder.fields
        if fields.method in {"Ensemble", "PackTop1"}:
            return [1 / len(self._places)] * len(self._places)
        losses = [mean_loss(known, read.counted) for known in self._losses]
        if fields.method == "PackSim":
            return similarity_weights(losses, fields.temperature)
        self._kept = [torch.cat([self._kept[index], rows]) if self._kept else rows for index, rows in enumerate(new)]
        return optimal_weights(self._kept, losses, read)
