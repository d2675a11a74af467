"""The command: every outcome is an exit code, a line on stderr and a termination message."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_support import NOON, stage_config
from support.patience import LIMIT_S

from wrpo_engine.config import ArtifactRef, TerminationMessage
from wrpo_engine.errors import DataError, Interrupted, TemporaryError
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.machine import CudaFacts
from wrpo_engine.running import run
from wrpo_engine.stage import StageContext, StageResult, StopRequest, load_stage

REPOSITORY = Path(__file__).parents[2]
PREPARE = {"stage": "prepare", "dataset": "storage://p.txt"}
_MODEL = {"name": "/models/m"}
MODEL_STAGES: dict[str, dict[str, Any]] = {
    "sample": {"stage": "sample", "source": "m", "model": _MODEL},
    "score": {"stage": "score", "reward": _MODEL},
    "train": {"stage": "train", "model": _MODEL, "learning_rate": 1e-6},
    "answer": {"stage": "answer", "model": _MODEL, "system": "target", "benchmark": "HeldOutReward"},
    "grade": {"stage": "grade", "reward": _MODEL, "answers": "answers/target--held-out"},
    "evaluate": {
        "stage": "evaluate",
        "systems": [{"name": "target", "label": "target"}],
        "benchmarks": [{"name": "held-out", "kind": "HeldOutReward"}],
        "subject": "target",
    },
}


class Engine:
    """Runs stages below a temporary storage and reads what they leave."""

    def __init__(self, directory: Path) -> None:
        self.storage = directory / "storage"
        self.storage.mkdir()
        self.message_path = directory / "termination-log"
        self.config_path = directory / "stage.json"
        self.environ = {
            "WRPO_VOLUME_ROOT": str(self.storage),
            "WRPO_TERMINATION_MESSAGE_PATH": str(self.message_path),
        }

    def configure(self, params: Any, inputs: dict[str, ArtifactRef] | None = None, **options: Any) -> None:
        self.config_path.write_text(stage_config(params, inputs, **options).model_dump_json())

    def run(self, stage: str = "prepare", load: Any = load_stage, **environ: str) -> int:
        return run(
            stage,
            self.config_path,
            self.environ | environ,
            stop=StopRequest(),
            clock=lambda: NOON,
            load=load,
        )

    @property
    def message(self) -> TerminationMessage:
        return TerminationMessage.model_validate_json(self.message_path.read_bytes())


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = Engine(tmp_path)
    (made.storage / "p.txt").write_text("one?\ntwo?\nthree?\n")
    made.configure(PREPARE)
    return made


def test_success_is_told_with_rows_metrics_and_digest(engine: Engine) -> None:
    assert engine.run() == 0
    message = engine.message
    assert (message.outcome, message.cached, message.rows) == ("Succeeded", False, 3)
    assert message.artifact == "prepare/0123456789abcdef"
    assert message.metrics["prompts_sft"] == 1
    assert message.digest is not None
    assert len(message.digest) == 64


def test_a_stage_that_is_done_exits_at_once_and_says_cached(engine: Engine) -> None:
    engine.run()
    first = engine.message

    def load(_kind: str) -> Any:
        raise AssertionError("a cached stage must not be loaded")

    assert engine.run(load=load) == 0
    assert engine.message == first.model_copy(update={"cached": True})


def test_a_damaged_artifact_is_not_taken_for_a_cached_one(engine: Engine) -> None:
    engine.run()
    damaged = engine.storage / "prepare/0123456789abcdef/sft.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert engine.run() == 65
    assert engine.message.error is not None
    assert engine.message.error.code == "ArtifactDamaged"
    assert str(damaged) in engine.message.error.message


OLD_DRIVER = CudaFacts(runtime="13.0", supported=12020, driver="535.161.08")
NEW_DRIVER = CudaFacts(runtime="13.0", supported=13000, driver="580.65.06")


@pytest.mark.parametrize(
    ("stage", "code"),
    [("sample", 78), ("score", 78), ("train", 78), ("answer", 78), ("grade", 78), ("evaluate", 1), ("prepare", 1)],
)
def test_stages_that_run_a_model_are_refused_on_a_driver_that_is_too_old(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stage: str, code: int
) -> None:
    monkeypatch.setattr(CudaFacts, "read", lambda: OLD_DRIVER)
    engine.configure(MODEL_STAGES.get(stage, PREPARE))
    assert engine.run(stage, load=failing(RuntimeError("it ran"))) == code
    assert engine.message.error is not None
    assert engine.message.error.code == ("DriverTooOld" if code == 78 else "InternalError")


def test_the_versions_of_driver_and_cuda_are_logged_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(CudaFacts, "read", lambda: NEW_DRIVER)
    engine.configure(MODEL_STAGES["train"])
    with caplog.at_level("INFO", "wrpo_engine"):
        for rank in ("0", "1"):
            engine.run("train", load=failing(RuntimeError("it ran")), RANK=rank)
    line = "CUDA 13.0 (torch) on NVIDIA driver 580.65.06, which runs programs up to CUDA 13.0"
    assert caplog.messages.count(line) == 1


def failing(error: BaseException) -> Callable[[str], Any]:
    def load(_kind: str) -> Any:
        def stage(_ctx: StageContext) -> StageResult:
            raise error

        return stage

    return load


OUTCOMES: dict[str, tuple[BaseException, int, str, str]] = {
    "bad data": (DataError("row 3 is bad"), 65, "Failed", "InvalidData"),
    "temporary trouble": (TemporaryError("the hub is away"), 75, "Failed", "Temporary"),
    "a stop request": (Interrupted(), 143, "Interrupted", "Interrupted"),
    "a bug": (KeyError("oops"), 1, "Failed", "InternalError"),
    "no memory": (MemoryError("512 GiB"), 1, "Failed", "OutOfMemory"),
    "a full volume": (OSError(errno.ENOSPC, "No space left on device", "/data"), 73, "Failed", "StorageFull"),
    "a read-only volume": (OSError(errno.EROFS, "Read-only file system", "/data"), 73, "Failed", "StorageReadOnly"),
    "another system error": (OSError(errno.EIO, "Input/output error"), 1, "Failed", "InternalError"),
}


@pytest.mark.parametrize(("error", "exit_code", "outcome", "code"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_every_error_has_its_exit_code(
    engine: Engine, error: BaseException, exit_code: int, outcome: str, code: str
) -> None:
    assert engine.run(load=failing(error)) == exit_code
    assert engine.message.outcome == outcome
    assert engine.message.error is not None
    assert engine.message.error.code == code


def test_errors_stand_on_stderr_with_their_hint(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.run(load=failing(DataError("row 3 is bad", hint="Correct it.")))
    assert capsys.readouterr().err.splitlines()[-2:] == ["error: row 3 is bad", "hint: Correct it."]


def test_a_bug_leaves_its_traceback_in_the_log(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.run(load=failing(KeyError("oops")))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_full_volume_commits_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    def full(_frame: pl.DataFrame, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    assert engine.run() == 73
    assert engine.message.error is not None
    assert engine.message.error.hint == ("Enlarge the volume or remove artifacts that are not needed, then retry.")
    assert list((engine.storage / "prepare/0123456789abcdef").iterdir()) == []


def test_a_volume_that_is_not_mounted_is_not_made_up(engine: Engine, tmp_path: Path) -> None:
    assert engine.run(WRPO_VOLUME_ROOT=str(tmp_path / "elsewhere")) == 73
    assert engine.message.error is not None
    assert engine.message.error.message == (
        f"there is no directory {tmp_path}/elsewhere, where the storage volume should be mounted"
    )
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_input_is_found_before_any_work(engine: Engine) -> None:
    missing = ArtifactRef(stage="prepare", hash="00000000000000ff")
    engine.configure({"stage": "curate-sft"}, {"prompts": missing})
    assert engine.run("curate-sft") == 66
    assert engine.message.error is not None
    assert engine.message.error.message == (
        f"input 'prompts', artifact prepare/00000000000000ff, does not exist: no manifest.json below {engine.storage}"
    )


def change(engine: Engine, **changes: Any) -> None:
    engine.config_path.write_text(json.dumps(json.loads(engine.config_path.read_text()) | changes))


def test_a_broken_field_is_named(engine: Engine) -> None:
    change(engine, params={**PREPARE, "sft_fraction": 1.5})
    assert engine.run() == 78
    assert engine.message.error is not None
    assert engine.message.error.field == "params.prepare.sft_fraction"
    assert engine.message.error.message == (
        "params.prepare.sft_fraction is '1.5': Input should be less than or equal to 1"
    )


def test_an_unknown_field_is_named(engine: Engine) -> None:
    change(engine, colour="red")
    assert engine.run() == 78
    assert engine.message.error is not None
    assert engine.message.error.message == "colour is 'red': Extra inputs are not permitted"


def test_s3_without_credentials_is_refused_with_the_remedy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    change(engine, storage={"kind": "s3", "uri": "s3://bucket/x", "endpoint": "http://127.0.0.1:9"})
    assert engine.run() == 78
    error = engine.message.error
    assert error is not None
    assert (error.code, error.field) == ("StorageCredentials", "storage.s3.credentialsSecretName")
    assert error.message == (
        "storage.s3.credentialsSecretName is '<none found>': cannot list s3://bucket/x/: Unable to locate credentials"
    )
    assert error.hint is not None
    assert error.hint.startswith("Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_a_config_of_another_stage_is_refused(engine: Engine) -> None:
    assert engine.run("sample") == 64
    assert engine.message.error is not None
    assert engine.message.error.message == (
        f"{engine.config_path} configures the stage prepare, but the command names sample"
    )


@pytest.mark.parametrize("stage", ["sft", "train"])
def test_a_node_of_a_gang_is_no_shard(make_ctx: Callable[..., StageContext], stage: str) -> None:
    """A TrainJob's pods are those of an Indexed Job: the second node has the completion index 1."""
    params = {"stage": stage, "model": {"name": "org/model"}}
    assert make_ctx(params, environ={"JOB_COMPLETION_INDEX": "1"}).shard == 0


def test_a_shard_beyond_the_shards_is_refused(engine: Engine) -> None:
    assert engine.run(JOB_COMPLETION_INDEX="1") == 78
    assert engine.message.error is not None
    assert engine.message.error.message == (
        "JOB_COMPLETION_INDEX is '1': it must be a whole number from 0 to 0 (runtime.shards is 1)"
    )


def test_other_ranks_say_nothing_when_all_is_well(engine: Engine) -> None:
    assert engine.run(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2") == 0
    assert not engine.message_path.exists()


def command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environ},
        check=False,
        timeout=LIMIT_S,
    )


def test_help_works_without_torch() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'vllm', 'transformers', 'polars'])); "
    ran = command("-c", block + "from wrpo_engine.__main__ import main; main(['--help'])")
    assert ran.returncode == 0
    assert "curate-triples  choose (y_ws, y_wt, y_l) for every preference prompt" in ran.stdout
    assert "WRPO_VOLUME_ROOT" in ran.stdout


def test_a_wrong_command_line_is_a_usage_error() -> None:
    ran = command("-m", "wrpo_engine", "samples", "--config", "x")
    assert ran.returncode == 64
    assert "'samples' is not one of 'prepare', 'fetch', 'inspect'" in ran.stderr


def test_a_config_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    ran = command("-m", "wrpo_engine", "prepare", "--config", str(tmp_path / "none.json"))
    assert ran.returncode == 64
    assert f"error: --config {tmp_path}/none.json cannot be read: No such file or directory" in ran.stderr


STOPPABLE = """
import sys, time
from pathlib import Path
import os
from wrpo_engine.running import install_signal_handlers, run
from wrpo_engine.stage import StopRequest

def stage(ctx):
    print("working", flush=True)
    while True:
        ctx.stop.raise_if_requested()
        time.sleep(0.01)

stop = StopRequest()
install_signal_handlers(stop)
sys.exit(run("prepare", Path(sys.argv[1]), os.environ, stop=stop, load=lambda kind: stage))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_with_143(engine: Engine, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPABLE, str(engine.config_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **engine.environ},
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert engine.message.outcome == "Interrupted"
    assert "interrupted: stopped on request; finished work is kept and the next attempt continues" in errors


ABORTS_AT_THE_END = """
import atexit, os, sys
from wrpo_engine.__main__ import main

class Aborts:
    def __del__(self):
        os.abort()

aborts = Aborts()
atexit.register(print, "closed")
main([sys.argv[1], "--config", sys.argv[2]])
"""


@pytest.mark.parametrize(("stage", "code"), [("train", 64), ("prepare", -signal.SIGABRT)])
def test_a_rank_ends_with_its_code_whatever_aborts_the_interpreter_after_it(
    tmp_path: Path, stage: str, code: int
) -> None:
    ran = command("-c", ABORTS_AT_THE_END, stage, str(tmp_path / "none.json"))
    assert (ran.returncode, ran.stdout) == (code, "closed\n")


WITHIN_A_PRINT = """
import io, os, signal, sys
from wrpo_engine.running import install_signal_handlers
from wrpo_engine.stage import StopRequest

class Terminal(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        if not stop.requested:
            os.kill(os.getpid(), signal.SIGINT)
        return len(data)

stop = StopRequest()
install_signal_handlers(stop)
sys.stderr = io.TextIOWrapper(io.BufferedWriter(Terminal()), line_buffering=True)
print("progress", file=sys.stderr)
sys.exit(0 if stop.requested else 1)
"""


def test_ctrl_c_within_a_print_asks_the_stage_to_stop() -> None:
    ran = command("-c", WITHIN_A_PRINT)
    assert (ran.returncode, ran.stderr) == (
        0,
        "stopping after the current piece of work (Ctrl-C again stops at once)\n",
    )


def test_caches_go_where_the_pod_may_write(tmp_path: Path) -> None:
    (tmp_path / "not-a-directory").write_text("")
    environ = {"HOME": str(tmp_path / "not-a-directory"), "TMPDIR": str(tmp_path), "HF_HOME": "/models"}
    prepare_environment(environ)
    assert environ["HF_HOME"] == "/models"
    for name in ("VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        assert environ[name].startswith(str(tmp_path / "wrpo-cache"))
    assert environ["VLLM_NO_USAGE_STATS"] == "1"
    writable = {"HOME": str(tmp_path)}
    prepare_environment(writable)
    assert writable["HF_HOME"] == str(tmp_path / ".cache" / "huggingface")
    for name in ("FLASHINFER_WORKSPACE_BASE", "DG_JIT_CACHE_DIR", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR"):
        assert writable[name].startswith(str(tmp_path / ".cache"))
