"""`wrpo dev` on top of the embedded control plane's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wrpo_devcluster import lifecycle
from wrpo_operator.cli.local import WARM, dev_group


@pytest.mark.parametrize(("options", "warm"), [((), WARM), (("--warm", ""), "")])
def test_stages_start_warm_unless_it_is_turned_off(
    tmp_path: Path, options: tuple[str, ...], warm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: dict[str, Any] = {}

    def up(state_dir: Path, **settings: Any) -> lifecycle.Info:
        passed.update(settings)
        return lifecycle.status(state_dir)

    monkeypatch.setattr(lifecycle, "up", up)
    done = CliRunner().invoke(dev_group, ["up", "--state-dir", str(tmp_path), *options], catch_exceptions=False)
    assert (done.exit_code, passed["warm"]) == (0, warm)
