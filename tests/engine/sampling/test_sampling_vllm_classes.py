"""vLLM is told a model's classes in this process, because it would start another one to ask them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling.vllm_sampler import _register_classes


class _Lazy:
    def __init__(self, found: type | Exception) -> None:
        self._found = found

    def load_model_cls(self) -> type:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


class _Registry:
    def __init__(self, **models: _Lazy) -> None:
        self.models = models
        self.registered: dict[str, type] = {}

    def register_model(self, name: str, found: type) -> None:
        self.registered[name] = found


@pytest.mark.parametrize(
    ("config", "registered"),
    [
        ({"architectures": ["Known"]}, {"Known": int}),
        ({"architectures": ["Unknown", "Known"]}, {"Known": int}),
        ({"architectures": ["Broken", "Known"]}, {"Known": int}),
        ({"architectures": None}, {}),
        ({"architectures": "Known"}, {}),
        ({}, {}),
    ],
)
def test_the_classes_that_vllm_knows_are_registered_and_the_rest_is_left_to_it(
    config: dict[str, object], registered: dict[str, type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    registry = _Registry(Known=_Lazy(int), Broken=_Lazy(ImportError("no such module")), Other=_Lazy(str))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))

    _register_classes(ResolvedModel(tmp_path, "model", None))

    assert registry.registered == registered
