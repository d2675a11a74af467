"""Stands in for the engine in end-to-end tests; run as `python -c <this file> /etc/wrpo/stage.json`.

It honours the contract (artifacts with a manifest, cached results, termination message, exit codes, SIGTERM, progress
posts) without computing anything. STANDIN_* variables of the experiment's spec.env say how it behaves:
STANDIN_SLOW=sft:6 (seconds), STANDIN_HOLD=sft:NAME (until the volume has a file released/NAME), STANDIN_FAIL=train (bad
data, for good), STANDIN_CRASH=score/a (exit 1 the first time).
"""

import json
import os
import pathlib
import signal
import ssl
import sys
import time
import urllib.request
from typing import NoReturn

FACTS = {
    "model_type": "llama",
    "parameters": 10**6,
    "weight_bytes": 2 * 10**6,
    "layers": 2,
    "hidden_size": 64,
    "attention_heads": 4,
    "key_value_heads": 2,
    "head_size": 16,
    "vocabulary": 256,
    "context": 2048,
}
"""What a stage that reads a model reports about it."""
config = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
stage, key = config["output"]["stage"], config["output"]["hash"]
root = pathlib.Path(os.environ["WRPO_VOLUME_ROOT"])
artifact = root / config["storage"].get("path", "") / stage / key
shard = int(os.environ.get("JOB_COMPLETION_INDEX", os.environ.get("PET_NODE_RANK", os.environ.get("RANK", "0"))))


def end(code: int, **message: object) -> NoReturn:
    path = pathlib.Path(os.environ.get("WRPO_TERMINATION_MESSAGE_PATH", "/dev/termination-log"))
    path.write_text(json.dumps(message), encoding="utf-8")
    sys.exit(code)


def post(percent: float, remaining: float) -> bool:
    url, token = os.environ.get("KUBEFLOW_TRAINER_SERVER_URL"), os.environ.get("KUBEFLOW_TRAINER_SERVER_TOKEN")
    if not url or not token:
        print("no progress endpoint", flush=True)
        return True
    status = {
        "progressPercentage": percent,
        "estimatedRemainingSeconds": remaining,
        "metrics": [{"name": "loss", "value": "0.5"}],
    }
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + pathlib.Path(token).read_text().strip()}
    request = urllib.request.Request(url, json.dumps({"trainerStatus": status}).encode(), headers)
    try:
        trust = ssl.create_default_context(cafile=os.environ.get("KUBEFLOW_TRAINER_SERVER_CA_CERT"))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        print("progress post:", opener.open(request, timeout=60).status, flush=True)
    except OSError as error:
        print("progress post failed:", error, getattr(error, "read", lambda: b"")(), flush=True)
        return False
    return True


signal.signal(signal.SIGTERM, lambda *_: end(143, outcome="Interrupted"))
print(f"stage {stage} hash {key} shard {shard}", flush=True)
if (artifact / "manifest.json").exists():
    end(0, outcome="Succeeded", cached=True, artifact=f"{stage}/{key}")
if os.environ.get("STANDIN_FAIL") == stage:
    error = {
        "code": "ModelNotFound",
        "field": "target.model",
        "message": "there is no model named nobody/nothing.",
        "hint": "Check the spelling.",
    }
    end(65, outcome="Failed", error=error)
marker = artifact.parent / f"{key}.crashed"
if os.environ.get("STANDIN_CRASH") == stage and not marker.exists():
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    raise SystemExit("Traceback: the first attempt crashes")
slow, _, seconds = os.environ.get("STANDIN_SLOW", "").partition(":")
if slow == stage:
    deadline = time.monotonic() + float(seconds)
    post(40, float(seconds))
    while time.monotonic() < deadline:
        time.sleep(0.1)
held, _, released = os.environ.get("STANDIN_HOLD", "").partition(":")
if held == stage:
    while not post(40, 60):
        time.sleep(1)
    while not (root / "released" / released).exists():
        time.sleep(0.05)
if shard == 0:
    artifact.mkdir(parents=True, exist_ok=True)
    runs = artifact / "runs"
    runs.write_text(str(int(runs.read_text()) + 1 if runs.exists() else 1))
    (artifact / "manifest.json").write_text("{}")
read = {"facts": FACTS} if stage.split("/")[0] in {"inspect", "fetch"} else {}
end(0, outcome="Succeeded", **read, rows=7, metrics={"loss": 0.25}, artifact=f"{stage}/{key}")
