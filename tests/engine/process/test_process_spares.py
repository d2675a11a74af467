"""Programs that are run by a spare process: they equal those that are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.patience import LIMIT_S

ROOT = Path(__file__).parents[3]
PARENT = """
import json, logging, os, select, signal, subprocess, sys, threading
from wrpo_engine.process import spares, warm

warm.MODULES, warm.adopt = (), lambda environ: None
spares._PROGRAM = "support.spare_worker"
logging.basicConfig(level=logging.INFO)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
environ = {**os.environ, "OWN": "1"}
command = [sys.executable, "-u", "-m", "support.spare_worker"]


def run(how, path, timeout=60):
    with open(path, "wb") as output:
        process = spares.start([*command, how], environ, output=output.fileno(), ends_with_parent=True)
    return process, type(process).__name__
"""
"""What the scripts of the tests begin with: a process that counts as warm."""


def run(script: str, cwd: Path) -> Any:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PARENT + script]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_program_by_a_spare_equals_one_that_is_started(tmp_path: Path) -> None:
    ends = ["0", "78", "raise", "killed"]
    script = f"""
spares.keep({len(ends)}, os.environ)
pool = threading.Thread(target=threading.Event().wait, daemon=True)
pool.start()
found = []
for how in {ends} + {ends}:
    process, kind = run(how, f"{{len(found)}}.log")
    found.append([kind, process.wait(60), process.poll()])
print(json.dumps(found))
"""
    found = run(script, tmp_path)
    codes = [0, 78, 1, -9]
    assert found == [["ForkedProcess", code, code] for code in codes] + [["Popen", code, code] for code in codes]
    for number, how in enumerate(ends):
        forked, started = ((tmp_path / f"{each}.log").read_text() for each in (number, number + len(ends)))
        usual = json.loads(started.splitlines()[0])
        # Both are what `ps` shows; a spare has the command line of the warm process.
        assert usual["name"].startswith("python")
        assert json.loads(forked.splitlines()[0]) == {**usual, "name": "wrpo-engine\n"}
        last = {"raise": "at the end", "killed": "an error"}.get(how, "at the end")
        assert forked.splitlines()[-1] == started.splitlines()[-1] == last
        assert ("ValueError: boom" in forked, "ValueError: boom" in started) == (how == "raise",) * 2


def test_a_spare_ends_with_its_parent_whether_it_was_used_or_not(tmp_path: Path) -> None:
    script = """
spares.keep(2, os.environ)
waiting = spares._WAITING[0].pid
process, _ = run("wait", "wait.log")
try:
    process.wait(0.01)
except subprocess.TimeoutExpired:
    print(json.dumps([waiting, process.pid]), flush=True)
os._exit(0)
"""
    deadline = time.monotonic() + LIMIT_S
    for pid in run(script, tmp_path):
        while Path(f"/proc/{pid}/exe").exists():
            assert time.monotonic() < deadline, f"process {pid} lives"
            time.sleep(0.005)


@pytest.mark.parametrize(
    "change",
    [
        "warm.MODULES = ('a_module_that_is_not_imported',)",
        "os.environ['CUDA_VISIBLE_DEVICES'] = '0'",
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ],
)
def test_there_are_no_spares_where_a_fork_would_not_be_sound(change: str, tmp_path: Path) -> None:
    script = f"""
{change}
spares.keep(1, os.environ)
process, kind = run("0", "0.log")
print(json.dumps([kind, process.wait(60)]))
"""
    assert run(script, tmp_path) == ["Popen", 0]


def test_a_spare_that_was_killed_is_replaced_by_a_start(tmp_path: Path) -> None:
    script = """
spares.keep(1, os.environ)
os.kill(spares._WAITING[0].pid, signal.SIGKILL)
select.select([spares._WAITING[0].descriptor], [], [])
process, kind = run("0", "0.log")
print(json.dumps([kind, process.wait(60)]))
"""
    assert run(script, tmp_path) == ["Popen", 0]
