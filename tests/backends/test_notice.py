"""Plain torch says once per process that it is the fallback and names the remedy, unless somebody chose it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WITHOUT_KERNELS = """
import pathlib, sys, threading, warnings
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, *args, **kwargs: self.name != "_native.so" and exists(self, *args, **kwargs)
sys.modules["rope_kernels._native"] = None
import torch, rope_kernels as rk
pathlib.Path.exists = exists
q, config = torch.ones(1, 2, 1, 4), rk.RopeConfig(head_dim=4)
calls = {
    "fast": lambda: rk.apply_rope(q, None, None, config),
    "in place": lambda: rk.apply_rope_(q.clone(), None, None, config),
    "gradient": lambda: rk.apply_rope(q.clone().requires_grad_(), None, None, config)[0].sum().backward(),
    "table": lambda: rk.apply_rotary_pos_emb(q, None, torch.ones(1, 1, 4), torch.ones(1, 1, 4)),
    "operator": lambda: rk.apply_rope(q[0], None, None, config, layout="thd", cu_seqlens=torch.tensor([0, 2])),
}
"""


def printed(script: str, **environment: str) -> str:
    command = [sys.executable, "-c", WITHOUT_KERNELS + script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout


@pytest.mark.parametrize("first", ["fast", "in place", "gradient", "table", "operator"])
def test_it_comes_once_whatever_is_called_first(first: str) -> None:
    script = f"""
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    calls[{first!r}]()
    for call in calls.values():
        call()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
(notice,) = caught
print(notice.category.__name__, notice.message)
"""
    text = printed(script)
    assert text.startswith("RopeBackendWarning calls on cpu run in plain torch")
    reason = "native: there are no native kernels"
    for remedy in (reason, "pip install --no-build-isolation", "rope-kernels info", "use_backend"):
        assert remedy in text


CHOSEN = """
with warnings.catch_warnings():
    warnings.simplefilter("error")
    {choice}
    for call in calls.values():
        call()
print("silent")
"""


@pytest.mark.parametrize("by", ["call", "environment"])
def test_who_chose_it_hears_nothing(by: str) -> None:
    if by == "call":
        assert printed(CHOSEN.format(choice="rk.use_backend('reference')")) == "silent\n"
    else:
        assert printed(CHOSEN.format(choice=""), ROPE_KERNELS_BACKEND="reference") == "silent\n"


def test_looking_at_the_backends_is_no_call() -> None:
    script = CHOSEN.format(choice="calls.clear(); rk.available_backends()")
    assert printed(script) == "silent\n"
