"""`namespace_of`: two models, revisions, dtypes or encoder options do not share rows."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import Model

from vitcache.adapters.sglang.namespace import OPTIONS, namespace_of

CONTEXT = "sglang.srt.runtime_context"


def serve(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> None:
    module = ModuleType(CONTEXT)
    module.get_server_args = lambda: SimpleNamespace(**arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, CONTEXT, module)


def digest(model: Any = None, dtype: torch.dtype = torch.float32) -> bytes:
    return namespace_of(model, dtype).digest()


def test_namespace_differs_by_each_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Model):
        pass

    found = [digest(), digest(Model()), digest(Other()), digest(Model(), torch.bfloat16)]
    serve(monkeypatch, model_path="a", revision=None)
    found.append(digest(Model()))
    serve(monkeypatch, model_path="b", revision=None)
    found.append(digest(Model()))
    serve(monkeypatch, model_path="a", revision="main")
    found.append(digest(Model()))
    for name in OPTIONS:
        serve(monkeypatch, **{"model_path": "a", "revision": None, name: "changed"})
        found.append(digest(Model()))
    assert len(set(found)) == len(found)


def test_namespace_of_equal_models_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, model_path="a", revision="main", quantization="fp8", port=1)
    first = digest(Model())
    serve(monkeypatch, model_path="a", revision="main", quantization="fp8", port=2)
    assert digest(Model()) == first


@pytest.mark.parametrize("state", ["no module", "no arguments", "not set"])
def test_process_without_arguments_has_a_namespace(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    def refuse() -> None:
        raise ValueError("not set")

    module = ModuleType(CONTEXT)
    module.get_server_args = refuse if state == "not set" else lambda: None  # type: ignore[attr-defined]
    if state == "no module":
        monkeypatch.delitem(sys.modules, CONTEXT, raising=False)
    else:
        monkeypatch.setitem(sys.modules, CONTEXT, module)
    assert len(digest(Model())) == 32
