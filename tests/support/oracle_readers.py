"""Read files with the original tools' own code and print what they make of them, as JSON.

It runs in the interpreter of WRPO_ORACLE_PYTHON, which has alpaca-eval 0.6.6 and fschat 0.2.36. Modules that these
import and that reading does not need are replaced by empty ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


def main(directory: Path) -> dict[str, Any]:
    return {"alpaca_eval": alpaca_eval(directory), "fastchat": fastchat(directory)}


def alpaca_eval(directory: Path) -> dict[str, Any]:
    from alpaca_eval import completion_parsers, metrics, utils
    from alpaca_eval.metrics import glm_winrate

    glm_winrate.hf_hub_download = lambda **_: str(directory / "df_gamed.csv")
    annotations = utils.load_or_convert_to_dataframe(directory / "annotations.json")
    outputs = utils.load_or_convert_to_dataframe(directory / "model_outputs.json")
    package = sys.modules["alpaca_eval"].__file__
    assert package is not None
    template = next(Path(package).parent.rglob("alpaca_eval_clf.txt")).read_text()
    rows = annotations[["instruction", "output_1", "output_2"]]
    prompts, _ = utils.make_prompts(df=rows, template=template)
    found = metrics.get_length_controlled_winrate(annotations, save_weights_dir=None, is_warn_extreme_changes=False)
    parsed = [
        completion_parsers.logprob_parser(row, numerator_token="m", denominator_tokens=["m", "M"], is_binarize=False)
        for row in annotations["raw_completion"]
        if row is not None
    ]
    leaderboard = utils.load_or_convert_to_dataframe(directory / "leaderboard.csv")
    return {
        "metrics": {name: float(value) for name, value in found.items()},
        "outputs": outputs["output"].tolist(),
        "messages": [utils.prompt_to_chatml(prompt) for prompt in prompts],
        "template": template,
        "parsed": [value[0] for value in parsed],
        "leaderboard": json.loads(leaderboard.iloc[0].to_json()),
    }


def fastchat(directory: Path) -> dict[str, Any]:
    for name in ("anthropic", "openai", "fastchat.model", "fastchat.model.model_adapter"):
        sys.modules[name] = MagicMock(spec=ModuleType(name)) if "." not in name else MagicMock()
    from fastchat.llm_judge import common, show_result

    printed = io.StringIO()
    (judgment,) = (directory / "model_judgment").glob("*_single.jsonl")
    with contextlib.redirect_stdout(printed):
        show_result.display_result_single(MagicMock(input_file=str(judgment), model_list=None, bench_name="mt_bench"))
    answers = common.load_model_answers(str(directory / "model_answer"))
    judgments = common.load_single_model_judgments(str(judgment))
    return {
        "printed": printed.getvalue(),
        "answers": {model: {str(key): row["choices"] for key, row in rows.items()} for model, rows in answers.items()},
        "judged": sorted([*judge, str(key[0]), key[1]] for judge, rows in judgments.items() for key in rows),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
