"""`wrpo lint` hands everything to the engine and gives back its exit code."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.patience import LIMIT_S

from wrpo_engine.linting.command import command as engine_command
from wrpo_operator.cli.main import main


def test_the_engine_s_findings_and_exit_code_come_through(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "hi", "chosen": "same", "rejected": "same"}) + "\n")
    arguments = [sys.executable, "-m", "wrpo_operator.cli.main", "lint", "--max-examples", "1", str(path), "--json"]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert ended.returncode == 1
    assert [each["rule"] for each in json.loads(ended.stdout)["findings"]] == ["identical-pair"]


def test_the_help_names_every_option_of_the_engine() -> None:
    shown = CliRunner().invoke(main, ["lint", "--help"]).output
    options = {name for each in engine_command.params for name in each.opts if name.startswith("--")}
    assert options <= set(re.findall(r"--[a-z-]+", shown))


def test_without_the_engine_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "polars" else find(name, *rest)
    )
    result = CliRunner().invoke(main, ["lint", "rows.jsonl"])
    assert result.exit_code == 1
    assert "pip install 'wrpo[engine]'" in result.output
