"""Which backend runs, who may say so, and what a missing one answers."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import rope_kernels as rk
from rope_kernels import backends

CPU = torch.device("cpu")


def test_the_reference_is_always_there():
    available = rk.available_backends()
    assert list(available) == ["triton", "native", "reference"]
    assert available["reference"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="names what a machine without a GPU answers")
def test_triton_without_a_gpu_says_why():
    assert "CUDA" in rk.available_backends()["triton"]
    assert backends.backend_for(CPU).__name__.endswith("native")
    with rk.use_backend("triton"), pytest.raises(RuntimeError, match="backend 'triton' was asked for, but"):
        rk.apply_rope(torch.zeros(1, 1, 1, 64), None, None, rk.RopeConfig(head_dim=64))


def test_use_backend_as_a_call_and_as_a_context():
    rk.use_backend("reference")
    assert backends.current_override() == "reference"
    with rk.use_backend(None):
        assert backends.current_override() is None
    assert backends.current_override() == "reference"
    with pytest.raises(ValueError, match="backend: got 'cuda', allowed are triton, native, reference"):
        rk.use_backend("cuda")


def test_the_choice_belongs_to_a_thread():
    seen = []
    with rk.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.current_override()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize(("name", "answer"), [("reference", "1 reference"), ("native", "0 native"), ("x", "got 'x'")])
def test_the_environment_is_asked_at_import(name, answer):
    script = """
import torch, rope_kernels as rk
from rope_kernels.backends import backend_for, reference
calls, original = [], reference.rotate
reference.rotate = lambda *a: calls.append(a) or original(*a)
try:
    rk.apply_rope(torch.ones(1, 2, 1, 4), None, None, rk.RopeConfig(head_dim=4))
    print(len(calls), backend_for(torch.device("cpu")).__name__.rpartition(".")[2])
except (ValueError, RuntimeError) as error:
    print(error)
"""
    environment = {**os.environ, "ROPE_KERNELS_BACKEND": name}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert answer in done.stdout


def test_the_package_works_without_triton_and_transformers():
    script = """
import sys
sys.modules["triton"] = sys.modules["transformers"] = sys.modules["matplotlib"] = None
import torch, rope_kernels as rk
print(rk.available_backends()["triton"])
print(rk.apply_rope(torch.ones(1, 2, 1, 4), None, None, rk.RopeConfig(head_dim=4))[0].shape)
assert "triton" not in {m.split(".")[0] for m, v in sys.modules.items() if v is not None}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be imported" in done.stdout
    assert "torch.Size([1, 2, 1, 4])" in done.stdout


def test_importing_the_package_imports_no_heavy_peer():
    script = "import sys, rope_kernels; print({'triton', 'transformers', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
