"""Parameters of prompts, models, rewards, curation and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import Backend, BatchTokens, Dtype, Name, Ratio, Revision, Seed, Text, Tokens


class VersionFields(Declared, role=Role.COMPUTED):
    """Version of what a hub has."""

    revision: Revision | None = None
    """Commit, tag or branch of a hub id. Unset: the default branch as it is when a stage runs. Refused for paths."""


class PinnedFields(VersionFields, role=Role.COMPUTED):
    """Exact version of a model."""

    trust_remote_code: bool = False
    """Run Python code of the model's repository. A hub id then needs a 40-digit commit as its revision, so that the
    code cannot change later."""


class TemplateFields(Declared, role=Role.COMPUTED):
    """Format of a conversation for a model."""

    chat_template: Text | None = None
    """Jinja chat template that replaces the tokenizer's. Unset: the tokenizer's; required for a model without one."""


class ModelUse(TemplateFields, role=Role.COMPUTED):
    """A use of a model by an experiment: the checks of a model before it is downloaded or gets an accelerator."""

    field: Annotated[str, Field(min_length=1, max_length=256)]
    """Section of the spec that names the model, e.g. target or sources[qwen]; errors name it."""
    purpose: Literal["sample", "train", "score"]
    """Use by a stage: generate responses, train, or score responses."""
    backend: Backend = "Transformers"
    """Library that loads the model."""
    trust_remote_code: bool = False
    """Whether the experiment allows Python code of the model's repository."""
    system_prompt: Text | None = None
    """System message before every prompt that has none. Unset: none."""


class PromptFields(VersionFields, role=Role.COMPUTED):
    """Selection and split of the prompts."""

    dataset: str
    """Hugging Face data set id, absolute path, or storage://PATH of a file or directory (JSON lines, Parquet, CSV)."""
    config: Name | None = None
    """Configuration of a hub data set, or of a directory's dataset card. Unset: its only one."""
    split: Name = "train"
    """Split of the data set; in a directory by file names (test-*, train/), as `datasets` reads them. A split that does
    not exist is refused."""
    column: Name = "prompt"
    """Column that holds the prompt's text, or a list of chat messages: a conversation up to its last user message."""
    limit: Annotated[int, Field(ge=1, le=100000000)] | None = None
    """Use only this many prompts, held-out ones from the same data set included, chosen by the seed. Unset: all."""
    seed: Seed = 42
    """Seed of the order of prompts, which determines the split."""
    sft_fraction: Ratio = 1 / 3
    """Share of the training prompts that SFT uses; preference optimisation gets the rest. 0: no SFT prompts, then
    sft.enabled must be false. 1: no preference prompts, then training.objective must be SFTOnly. The paper: 1/3."""


class RewardFields(Declared, role=Role.COMPUTED):
    """A reward other than a model: a Python function or an HTTP endpoint."""

    function: str | None = Field(
        default=None, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"
    )
    """MODULE:FUNCTION in the trainer image: takes a list of prompts and one of responses, returns one number each."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Base URL of an OpenAI-compatible server of a reward model, e.g. vLLM's."""
    endpoint_model: str | None = Field(default=None, min_length=1, max_length=256)
    """Model name that is sent to the endpoint."""


class RewardLength(Declared, role=Role.COMPUTED):
    """Input of a reward model in scoring and in evaluation."""

    max_length: Tokens = 4096
    """Tokens of prompt and response that the reward model reads."""


class ScoreFields(RewardLength, role=Role.COMPUTED):
    """Settings of scoring."""

    truncation: Literal["Right", "Left", "Fail"] = "Right"
    """Treatment of longer texts: truncate the end, truncate the beginning (which keeps the response), or fail with an
    error that names the row. Truncated texts are counted."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto takes that of the model."""
    rows_per_part: int = Field(default=4096, ge=1, le=1048576)
    """Responses committed together; a killed pod loses at most one such part."""


class ScoreExecution(Declared, role=Role.EXECUTION):
    """Execution of scoring, also for the rewards of evaluation."""

    batch_tokens: BatchTokens = 16384
    """Upper bound of tokens in one forward pass of the reward model. Reduce it if memory is exhausted."""
    reward_concurrency: int = Field(default=16, ge=1, le=1024)
    """Maximum concurrent requests of one pod to an endpoint."""


class ChoiceFields(Declared, role=Role.COMPUTED):
    """Choice of responses for SFT and for preference optimisation."""

    score_column: Name | None = None
    """Column of the scores that decides, e.g. objective/helpsteer-helpfulness. Unset: the score."""
    max_response_tokens: Tokens | None = None
    """Exclude longer responses (in tokens of the model that generated them). Unset: exclude none."""
    drop_truncated: bool = False
    """Exclude responses that reached maxTokens."""


class TripleFields(Declared, role=Role.COMPUTED):
    """Selection of the rows of preference optimisation."""

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
    """Treatment of a prompt for which all responses of the target tie or are identical: drop the prompt, or keep the
    first pair of different texts in a stable order."""


class RowRules(TripleFields, role=Role.COMPUTED):
    """Requirements of a row of preference optimisation, which arXiv:2412.03187 leaves open."""

    needs_source: bool = True
    """False for objectives without a source response (DPO, SimPO, IPO): the rows do not hold y_ws."""

    @property
    def has_source(self) -> bool:
        """Whether rows hold y_ws."""
        return self.pairing == "WRPO" and self.needs_source


class ReportFields(Declared, role=Role.COMPUTED):
    """Content of the report."""

    sample_answers: int = Field(default=5, ge=0, le=100)
    """Number of held-out prompts whose responses are shown side by side. 0: none."""
