"""A row of tokens as every later step of training sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One prompt with its responses, as token ids.

    SFT rows have one response. Preference rows have the preferred ones first (y_ws, y_wt; or the chosen one alone) and
    the rejected one last. Each response is conditioned on the prompt alone, never on its siblings.
    """

    row_id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        return tuple(len(self.prompt) + len(response) for response in self.responses)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, the prompt counted once for each."""
        return sum(self.sequence_lengths)

    @property
    def num_response_tokens(self) -> int:
        return sum(len(response) for response in self.responses)
