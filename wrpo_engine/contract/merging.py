"""Parameters of the stages that merge models and that let several models choose each token together."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from wrpo_engine.contract.base import Declared, Role, StageParams
from wrpo_engine.contract.benchmarks import BenchmarkKind
from wrpo_engine.contract.evaluation import BenchmarkJudge
from wrpo_engine.contract.references import ModelRef, RewardModel
from wrpo_engine.contract.sampling import PartFields
from wrpo_engine.contract.types import Dtype, Ratio, Seed, Text, Tokens

MergeMethod: TypeAlias = Literal[
    "Linear", "TaskArithmetic", "TIES", "DARE-Linear", "DARE-TIES", "SLERP", "ModelStock", "SCE"
]
Factor: TypeAlias = Annotated[float, Field(ge=-1000, le=1000)]
"""Factor of weights or deltas; a negative one subtracts."""
_WITHOUT_BASE = frozenset({"Linear", "SLERP"})
_NORMALISED = frozenset({"Linear", "TIES"})


class MergeFields(Declared, role=Role.COMPUTED):
    """How several models become one. A delta is a model's weights minus the base's."""

    method: MergeMethod
    """Linear: weighted mean. TaskArithmetic: base plus weighted deltas. TIES: of the largest elements of each delta,
    those of the majority's sign. DARE-Linear, DARE-TIES: random elements of each delta, rescaled. SLERP: along the arc
    between two models. ModelStock: between base and mean, by the angle between deltas. SCE: deltas weighted for each
    tensor by their elements with the highest variance, without those of the minority's sign (FuseChat)."""
    weight: tuple[Factor, ...] = (1.0,)
    """Weight of each model, or one for all (Linear, TaskArithmetic, TIES, DARE)."""
    density: float = Field(default=1.0, gt=0, le=1)
    """Share of the elements of a delta that is kept (TIES, DARE)."""
    scale: Factor = 1.0
    """Factor of the sum of the deltas, lambda in papers (TaskArithmetic, TIES, DARE)."""
    position: Ratio = 0.5
    """Place between the first model (0) and the second one (1) (SLERP)."""
    select_top_k: float = Field(default=1.0, gt=0, le=1)
    """Share of the elements whose values differ between models that decides the models' weights (SCE)."""
    normalize: bool | None = None
    """Divide by the sum of the weights. Unset: true for Linear and TIES, false for the others."""
    rescale: Literal["Norm", "Density"] = "Norm"
    """DARE: restore the sum of a delta's absolute values, as mergekit does, or divide by the density, as the paper
    does."""
    dtype: Dtype = "auto"
    """Number format of the merged weights; auto takes each tensor's of the first parent. Arithmetic is in float32."""
    seed: Seed = 42
    """Seed of the random elements (DARE), of the search and of its prompts."""

    @property
    def needs_base(self) -> bool:
        """Whether the method merges deltas."""
        return self.method not in _WITHOUT_BASE

    @property
    def divides_by_weights(self) -> bool:
        """The value of `normalize` that applies."""
        return self.method in _NORMALISED if self.normalize is None else self.normalize


SEARCHED_METHODS: tuple[MergeMethod, ...] = ("TaskArithmetic", "TIES")
"""Methods whose weights can be searched."""


class SearchFields(Declared, role=Role.COMPUTED):
    """Search of the weights of each group of layers by CMA-ES, in the manner of unconstrained model merging.

    arXiv 2410.13699 published no code: what is searched, and on what, is this project's choice.
    """

    groups: Literal["Block", "Layer", "Tensor"] = "Block"
    """Tensors that share their weights. Block: a quarter of the layers. Layer: one layer. Tensor: one tensor. What is
    in no layer is one group, except for Tensor."""
    budget: int = Field(default=40, ge=1, le=10_000)
    """Candidates that are evaluated; the last generation is completed."""
    population: int = Field(default=8, ge=2, le=256)
    """Candidates of a generation."""
    sigma: float = Field(default=0.2, gt=0, le=10)
    """Standard deviation of the first generation."""
    prompts: int = Field(default=64, ge=1, le=65536)
    """Prompts that candidates answer: preference prompts, or development items of a benchmark, and never what is
    evaluated. At most those that there are."""
    max_tokens: Tokens = 256
    """Longest answer in tokens."""

    @property
    def candidates(self) -> int:
        """Candidates with the last generation completed."""
        return ceil(self.budget / self.population) * self.population

    def number_of(self, generation: int, index: int) -> int:
        """Return the number of a candidate, from 0."""
        return generation * self.population + index


class MergeSearch(SearchFields, role=Role.COMPUTED):
    """A search with what it maximises: exactly one of `reward` and `judge`."""

    reward: RewardModel | None = None
    """A candidate's fitness is this reward's mean over greedy answers to preference prompts."""
    judge: BenchmarkJudge | None = None
    """A candidate's fitness is its score by this judge for greedy answers to a benchmark's development items."""

    @model_validator(mode="after")
    def _has_one_measure(self) -> MergeSearch:
        if (self.reward is None) == (self.judge is None):
            raise ValueError("search needs exactly one of reward and judge")
        if self.judge is not None and self.judge.serve is not None:
            raise ValueError("the judge of a search has an endpoint or serve_reward, not serve")
        return self


class MergeParams(MergeFields, StageParams, role=Role.COMPUTED):
    """Merge the weights of several models of one architecture into one model."""

    stage: Literal["merge"] = "merge"
    base: ModelRef | None = None
    """The model that deltas are relative to. It gives configuration and tokenizer; unset, the first model does."""
    models: tuple[ModelRef, ...] = Field(min_length=1)
    """The models to merge, in the order of `weight`."""
    search: MergeSearch | None = None
    """Search the weights (TaskArithmetic, TIES). Unset: `weight` applies to all tensors."""

    @model_validator(mode="after")
    def _has_its_parents(self) -> MergeParams:
        count = len(self.models)
        if self.needs_base and self.base is None:
            raise ValueError(f"method {self.method} merges deltas, so it needs base")
        if self.method == "SLERP" and count + (self.base is not None) != 2:
            raise ValueError(f"method SLERP takes exactly two models, base included; got {count + bool(self.base)}")
        if self.method == "ModelStock" and count < 2:
            raise ValueError(f"method ModelStock needs at least two models besides base; got {count}")
        if len(self.weight) not in {1, count}:
            raise ValueError(f"weight has {len(self.weight)} values for {count} models; give one, or one for each")
        if self.method == "Linear" and self.divides_by_weights and self.sum_of_weights == 0:
            raise ValueError("weight has the sum 0, by which method Linear divides; set normalize: false")
        if self.search is not None and self.method not in SEARCHED_METHODS:
            raise ValueError(f"search is for the methods {' and '.join(SEARCHED_METHODS)}, not {self.method}")
        return self

    @property
    def parents(self) -> dict[str, ModelRef]:
        """The models that are read, the base first, by their places in these parameters."""
        base = {} if self.base is None else {"base": self.base}
        return base | {f"models[{index}]": model for index, model in enumerate(self.models)}

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each model."""
        return self.weight * len(self.models) if len(self.weight) == 1 else self.weight

    @property
    def sum_of_weights(self) -> float:
        """Divisor of Linear."""
        return sum(self.weights)


class JointFields(Declared, role=Role.COMPUTED):
    """How several models choose each token together. Decoding is greedy."""

    method: Literal["EVA", "PackSim", "PackOpt", "PackTop1", "Ensemble"]
    """EVA: mean of distributions, brought into the first model's vocabulary by a map of embeddings. Of logits, weighted
    by the perplexity of prompt and answer: PackSim by softmax, PackOpt by greedy search, PackTop1 the best model alone,
    Ensemble equal weights."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """PackSim: divides the losses before their softmax."""
    agreement: int = Field(default=5, ge=1, le=1000)
    """EVA: a model counts only if its likeliest token is among this number of likeliest tokens of another model."""
    top_k: int = Field(default=320, ge=1, le=1_000_000)
    """EVA: likeliest tokens of each model that are mapped."""
    neighbours: int = Field(default=10, ge=1, le=1000)
    """EVA: tokens that one token is mapped to, at most."""
    threshold: float = Field(default=0.1, ge=-4, le=4)
    """EVA: least similarity (CSLS) of a token and one that it is mapped to."""
    embeddings: Literal["Input", "Output"] = "Input"
    """EVA: matrix that is compared; the same if a model ties both."""


class JointParams(JointFields, PartFields, StageParams, role=Role.COMPUTED):
    """Answer the items of a benchmark with several small models that choose each token together.

    All members are in one pod's memory, by Transformers, with a key-value cache each.
    """

    stage: Literal["joint"] = "joint"
    members: tuple[ModelRef, ...] = Field(min_length=2)
    """The models; EVA's first one gives the vocabulary of the answers."""
    names: tuple[str, ...] = ()
    """Names of the members, for messages."""
    system: str
    """Name of the system, for messages."""
    benchmark: BenchmarkKind
    max_tokens: Tokens = 2048
    """Longest answer in tokens."""
    system_prompt: Text | None = None
    """System message before every prompt. Unset: none."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto takes that of the model."""
    on_prompt_too_long: Literal["Fail", "Skip"] = "Skip"
    """Skip: an item that exceeds a member's context gets an empty answer, which is counted."""
