"""Token rows of training."""

from __future__ import annotations

from dataclasses import dataclass, field

from wrpo_engine.training.batch.soft import FusedRow


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
    """True if the prompt's tokens except the first have loss (SFT with lossTokens All; one response)."""
    fused: FusedRow | None = field(default=None, compare=False, repr=False)
    """Fused distributions of the response's tokens (SFT with fusion)."""

    def __post_init__(self) -> None:
        if self.prompt_has_loss and len(self.responses) != 1:
            raise ValueError(
                f"row {self.row_id}: prompt_has_loss needs exactly one response; got {len(self.responses)}"
            )
        if self.fused is not None and (self.prompt_has_loss or self.num_loss_tokens != len(self.fused.ids_TK)):
            raise ValueError(
                f"row {self.row_id}: {len(self.fused.ids_TK)} fused distributions for {self.num_loss_tokens} tokens "
                "with loss; each token of one response needs one, and no token of the prompt"
            )

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Tokens of the prompt plus those of each response."""
        return tuple(len(self.prompt) + len(response) for response in self.responses)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences; the prompt counts once for each."""
        return sum(self.sequence_lengths)

    @property
    def num_loss_tokens(self) -> int:
        """Tokens with loss: those of the responses, and of the prompt if it has loss."""
        return sum(len(response) for response in self.responses) + self.prompt_has_loss * (len(self.prompt) - 1)
