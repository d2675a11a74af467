"""Rare garbage collection, tested in a separate process because the setting is process-wide."""

from __future__ import annotations

import subprocess
import sys

from support.patience import LIMIT_S

_SCRIPT = """
import gc
from wrpo_devcluster.memory import collect_rarely

class Knot: ...
collect_rarely()
frozen = gc.get_freeze_count()
for _ in range(200_000):
    knot = Knot()
    knot.itself = knot
print(frozen > 1000, sum(isinstance(each, Knot) for each in gc.get_objects()) < 60_000)
"""


def test_what_is_loaded_is_spared_and_new_cycles_still_go() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert done.stdout.split() == ["True", "True"]
