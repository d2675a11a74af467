"""Server that forks ranks that run a stage, so that torch, transformers and DeepSpeed are imported once.

A request is one line of JSON on stdin, {"environ": {...}, "arguments": [...], "output": path, "fault": name or null};
the reply is the process id. The reply to {"reap": pid} is null while the process runs, then its exit code as in
subprocess (negative for a signal). Every rank is a separate process that runs `wrpo_engine.__main__`; `fault` names a
function of `rank_faults` that is called first.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def import_everything() -> None:
    import deepspeed.module_inject.auto_ep_config
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (and torch's inductor with it)
    import peft  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import wrpo_engine.__main__
    import wrpo_engine.training.stage  # noqa: F401
    from wrpo_engine.training.backends.deepspeed import _import_deepspeed

    get_checkpoint_conversion_mapping("llama")  # compiles hundreds of patterns when it is first called
    _import_deepspeed()  # starts the C compiler to find out which operators could be built


def run_rank(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environ"])
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        if request.get("fault"):
            import rank_faults

            getattr(rank_faults, request["fault"])()
        from wrpo_engine.__main__ import main

        main(request["arguments"])
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    import_everything()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            pid, status = os.waitpid(request["reap"], os.WNOHANG)
            answer = None if pid == 0 else os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                run_rank(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
