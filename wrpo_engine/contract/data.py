"""Parameters of prompts, models, rewards, curation and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import BatchTokens, Dtype, Name, Ratio, Revision, Seed, Text, Tokens


class PinnedFields(Declared, role=Role.COMPUTED):
    """The exact version of a model."""

    revision: Revision | None = None
    """Commit, tag or branch of a hub id. Unset: the default branch as it is when a stage runs. Refused for paths."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. A hub id then needs a 40-digit commit as its revision, so that nobody
    can change the code later."""


class TemplateFields(Declared, role=Role.COMPUTED):
    """How a conversation is written for a model."""

    chat_template: Text | None = None
    """Jinja chat template that replaces the tokenizer's. Unset: the tokenizer's own; a model without one needs this."""


class PromptFields(Declared, role=Role.COMPUTED):
    """Which prompts are used, and for what."""

    dataset: str
    """Hugging Face data set id, absolute path, or storage://PATH of a file or directory (JSON lines, Parquet, CSV)."""
    config: Name | None = None
    """Configuration of a hub data set, or of a directory's dataset card. Unset: its only one."""
    split: Name = "train"
    """Split of the data set; of a directory by its files' names (test-*, train/), as `datasets` reads it. One that does
    not exist is refused."""
    column: Name = "prompt"
    """Column that holds the prompt's text, or a list of chat messages of which the first user message is taken."""
    limit: Annotated[int, Field(ge=1, le=100000000)] | None = None
    """Use only this many prompts, held-out ones from the same data set included, chosen by the seed. Unset: all."""
    seed: Seed = 42
    """Decides the order of prompts and so the split."""
    sft_fraction: Ratio = 1 / 3
    """Share of the training prompts that SFT uses; preference optimisation gets the rest. 0: no SFT prompts, then
    sft.enabled must be false. 1: no preference prompts, then training.objective must be SFTOnly. The paper: 1/3."""


class RewardFields(Declared, role=Role.COMPUTED):
    """A reward that is not a model: a Python function or an HTTP endpoint."""

    function: str | None = Field(
        default=None, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"
    )
    """MODULE:FUNCTION in the trainer image: takes a list of prompts and one of responses, returns one number each."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Base URL of an OpenAI-compatible server of a reward model, e.g. vLLM's."""
    endpoint_model: str | None = Field(default=None, min_length=1, max_length=256)
    """Model name that is sent to the endpoint."""


class RewardLength(Declared, role=Role.COMPUTED):
    """What a reward model reads, when it scores and when it evaluates."""

    max_length: Tokens = 4096
    """Tokens of prompt and response that the reward model reads."""


class ScoreFields(RewardLength, role=Role.COMPUTED):
    """How responses are scored."""

    truncation: Literal["Right", "Left", "Fail"] = "Right"
    """What becomes of longer texts: cut at their end, cut at their beginning (which keeps the response), or an error
    that names the row. Cut ones are counted."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto takes the model's own."""
    rows_per_part: int = Field(default=4096, ge=1, le=1048576)
    """Responses committed together; a killed pod loses at most one such part."""


class ScoreExecution(Declared, role=Role.EXECUTION):
    """How scoring runs; the rewards of evaluation too."""

    batch_tokens: BatchTokens = 16384
    """Upper bound of tokens in one forward pass of the reward model. Lower it when memory runs out."""
    reward_concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests of one pod to an endpoint that are under way at the same time."""


class ChoiceFields(Declared, role=Role.COMPUTED):
    """Which responses are chosen, for SFT and for preference optimisation."""

    score_column: Name | None = None
    """Decide by this column of the scores, e.g. objective/helpsteer-helpfulness. Unset: by the score."""
    max_response_tokens: Tokens | None = None
    """Leave longer responses (in tokens of the model that gave them) out of the choice. Unset: none."""
    drop_truncated: bool = False
    """Leave responses that hit maxTokens out of the choice."""


class TripleFields(Declared, role=Role.COMPUTED):
    """Which prompts become rows of preference optimisation."""

    pairing: Literal["WRPO", "WithinSource", "BestWorst"] = "WRPO"
    """WRPO: the best source response, the target's best and its worst. For DPO, SimPO and IPO also WithinSource: the
    best and the worst of the one source whose best is the best of all (FuseChat-3.0), and BestWorst: the best against
    the worst response of all models."""
    score_margin: float = Field(default=0.0, ge=0, le=1000000)
    """Drop a prompt when the responses of its pair differ by less than this in score. 0: keep all."""
    max_score_gap: float | None = Field(default=None, gt=0, le=1000000)
    """Drop a prompt when the responses of its pair differ by more than this in score. Unset: keep all."""
    drop_duplicates: bool = True
    """Drop a prompt whose row equals an earlier one's in all texts."""
    require_source_better: bool = False
    """Drop a prompt unless the best source response scores above the target's best. Only for the WRPO objectives."""
    on_tie: Literal["Drop", "KeepFirst"] = "Drop"
    """What follows when all of the target's responses to a prompt tie or are identical: drop the prompt, or keep the
    first pair of different texts by a stable order."""


class RowRules(TripleFields, role=Role.COMPUTED):
    """What a row of preference optimisation must fulfil (arXiv:2412.03187 leaves it open)."""

    needs_source: bool = True
    """False for objectives without a source response (DPO, SimPO, IPO): y_ws is left out of the rows."""

    @property
    def has_source(self) -> bool:
        """Whether rows hold y_ws."""
        return self.pairing == "WRPO" and self.needs_source


class ReportFields(Declared, role=Role.COMPUTED):
    """What the report shows."""

    sample_answers: int = Field(default=5, ge=0, le=100)
    """Held-out prompts whose answers are shown side by side. 0: none."""
