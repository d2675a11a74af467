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
    prompt_has_loss: bool = False
    """True: the prompt's tokens but the first count as the response's own (SFT with lossTokens All; one response)."""

    def __post_init__(self) -> None:
        if self.prompt_has_loss and len(self.responses) != 1:
            raise ValueError(f"row {self.row_id}: a prompt of {len(self.responses)} responses cannot carry their loss")

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        return tuple(len(self.prompt) + len(response) for response in self.responses)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, the prompt counted once for each."""
        return sum(self.sequence_lengths)

    @property
    def num_loss_tokens(self) -> int:
        """Tokens whose log-probability counts: the responses', and the prompt's where it carries loss."""
        return sum(len(response) for response in self.responses) + self.prompt_has_loss * (len(self.prompt) - 1)
