"""Model cards of the quickstart's models, and their NOTICE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wrpo_engine.quickstart.packages import PACKAGES, Package

BASE = """# SmolLM2-135M-Instruct

Not an original upload: the Q4_1 GGUF file of the package {requirement}, with its values written as float32 safetensors.
The weights are therefore those of the quantised model, not of the published full-precision one. The tokenizer pads with
`<|endoftext|>` instead of the end-of-turn token; its chat template is the original one.

Licence: {licence}. Original model: SmolLM2-135M-Instruct by Hugging Face.
"""

CHATTERBOT = """# SmolLM2-135M, fine-tuned on the ChatterBot corpus

Derived for the quickstart of WRPO from `smollm2-135m-instruct` (next to this directory): {steps} optimizer steps
(AdamW, peak learning rate {learning_rate:g}, {epochs} epoch of {examples} English exchanges of {requirement},
responses of at most {max_characters} characters) on the responses' tokens, top {trained_layers} layers only. Its
chat template has no default system message. It responds tersely where its parent explains.

Loss on the last tenth of the steps: {loss:.3f}. None of the quickstart's prompts was trained on: exchanges are
split by a hash of the prompt, {training_percent} % for making models, the rest for the experiment.

Licence: Apache-2.0 (weights), data BSD-3-Clause.
"""

TARGET = """# SmolLM2 with {layers} of 30 layers: the quickstart's target

Derived for the quickstart of WRPO from `smollm2-135m-instruct` (next to this directory) by removing layers
{dropped}, whose single removal raises the loss on the corpus least. Fine-tuning then adapts the remaining layers
to each other: {steps} optimizer steps (AdamW, peak learning rate {learning_rate:g}, {epochs} epoch of {examples}
English exchanges of {requirement}, top {trained_layers} layers only). The model is
weak on purpose, so that it can learn.

Loss on the last tenth of the steps: {loss:.3f}. None of the quickstart's prompts was trained on: exchanges are
split by a hash of the prompt, {training_percent} % for making models, the rest for the experiment.

Licence: Apache-2.0 (weights), data BSD-3-Clause.
"""

STUDY = """# SmolLM2 with {layers} of 30 layers, fine-tuned for the study

Derived for the study of WRPO from `smollm2-135m-instruct` (next to this directory). It keeps {layers} of 30 layers.

- {steps} optimizer steps (AdamW, peak learning rate {learning_rate:g}).
- {epochs} epochs of {examples} English exchanges of {requirement}.
- Loss of the responses' tokens only; responses have at most {max_characters} characters.
- Trained: at most the top {trained_layers} layers.
- Categories: {categories}.

Loss on the last tenth of the steps: {loss:.3f}. None of the study's prompts was trained on: exchanges are
split by a hash of the prompt, {training_percent} % for making models, the rest for the experiment.

Licence: Apache-2.0 (weights), data BSD-3-Clause.
"""

MERGED = """# Mean of two variants of SmolLM2-135M

Derived for the study of WRPO: the weights are the mean of `{first}` (weight {share:g}) and `{second}`,
which are next to this directory. Nothing was trained.

Licence: Apache-2.0 (weights), data BSD-3-Clause.
"""

REWARD = """# A small reward model: MiniLM with a Bradley-Terry head

Made for the quickstart of WRPO from {requirement} (a sentence encoder of 22 million parameters) as a sequence
classifier with one label: {steps} steps of Bradley-Terry training (AdamW, peak learning rate {learning_rate:g},
{epochs} epochs of {examples} exchanges of {corpus}). Each real response is compared with three that are worse by
construction: other prompts' responses (relevance), and its own text cut off (completeness), shuffled (grammar) or
looping (repetition).

Share of worse responses scored below the real one, on {held_out} held-out exchanges:

| kind | accuracy |
|---|---|
{accuracies}

It knows short conversation and little else: its scores say what this experiment optimises, not how good a model
is. None of the quickstart's prompts was trained on: exchanges are split by a hash of the prompt,
{training_percent} % for making models, the rest for the experiment.

Licence: Apache-2.0 (weights), data BSD-3-Clause.
"""


def accuracy_rows(accuracies: Mapping[str, float]) -> str:
    """Return the lines of the reward card's table."""
    return "\n".join(f"| {name} | {value:.3f} |" for name, value in accuracies.items())


def notice(packages: Sequence[Package] = PACKAGES) -> str:
    """Return the NOTICE of the output directory."""
    lines = [
        "Models and prompts of the WRPO quickstart",
        "",
        "The quickstart's models, and the prompts and the benchmark's items in datasets/, are made from the",
        "following. The README.md of each model says how it was derived.",
        "",
    ]
    lines += [f"- {each.requirement}: {each.content}. Licence: {each.licence}." for each in packages]
    return "\n".join(lines) + "\n"
