"""Which backend runs, who may say so, and what a missing one answers."""

import asyncio
import importlib
import os
import subprocess
import sys
import threading
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rope_kernels as rk
from rope_kernels import backends
from rope_kernels.backends import native, reference

CPU = torch.device("cpu")


def test_the_reference_is_always_there():
    available = rk.available_backends()
    assert list(available) == ["triton", "native", "reference"]
    assert available["reference"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="names what a machine without a GPU answers")
def test_triton_without_a_gpu_says_why():
    assert "CUDA" in rk.available_backends()["triton"]
    assert backends.backend_for(CPU).__name__.endswith("native")
    with rk.use_backend("triton"), pytest.raises(RuntimeError, match="backend 'triton' was chosen, but"):
        rk.apply_rope(torch.zeros(1, 1, 1, 64), None, None, rk.RopeConfig(head_dim=64))


DOORS = {
    "allocating": lambda q, positions: rk.apply_rope(q, None, positions, CONFIG),
    "in place": lambda q, positions: rk.apply_rope_(q, q.clone(), positions, CONFIG),
    "out=": lambda q, positions: rk.apply_rope(q, None, positions, CONFIG, out=(torch.empty_like(q), None)),
    "gradient": lambda q, positions: rk.apply_rope(q.requires_grad_(), None, positions, CONFIG),
    "table": lambda q, positions: rk.apply_rotary_pos_emb(q, None, torch.ones(1, 3, 16), torch.ones(1, 3, 16), 2),
    "vmap": lambda q, positions: torch.func.vmap(lambda q: rk.apply_rope(q, None, positions, CONFIG)[0])(q[None]),
    "compiled": lambda q, positions: torch.compile(
        lambda q: rk.apply_rope(q, None, positions, CONFIG)[0], fullgraph=True, backend="aot_eager"
    )(q),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("environment", "chosen", "message"),
    [
        (None, "triton", "backend 'triton' was chosen, but the Triton kernels run on cuda tensors, not on cpu"),
        ("triton", None, "backend 'triton' was chosen, but the Triton kernels run on cuda tensors, not on cpu"),
        ("nativ", None, "ROPE_KERNELS_BACKEND: got 'nativ', allowed are triton, native, reference"),
    ],
)
def test_a_backend_that_cannot_run_is_an_error_of_one_line(monkeypatch, door, environment, chosen, message):
    monkeypatch.setattr(backends.choice, "FROM_ENVIRONMENT", environment)
    # By a choice, so that the library asks; the next one may be None.
    with rk.use_backend("reference"), rk.use_backend(chosen), pytest.raises((RuntimeError, ValueError)) as raised:
        DOORS[door](torch.ones(1, 3, 2, 16), torch.arange(3))
    assert str(raised.value) == message
    assert raised.value.__context__ is None or raised.value.__suppress_context__


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


def ran_on(monkeypatch):
    """The backends that ran, in order."""
    seen = []
    for name in ("native", "reference"):
        module = importlib.import_module(f"rope_kernels.backends.{name}")
        monkeypatch.setattr(module, "rotate", lambda *a, f=module.rotate, n=name: seen.append(n) or f(*a))
    return seen


CONFIG = rk.RopeConfig(head_dim=16)


def calls(needs_gradient=False):
    """Whether plain torch did a call, in each of its forms; the direct path and the operator in C++ are native."""
    q, positions = torch.randn(1, 3, 2, 16, requires_grad=needs_gradient), torch.arange(3)
    forms = [lambda: rk.apply_rope(q, None, positions, CONFIG), lambda: rk.apply_rope(q, None, None, CONFIG, offset=1)]
    if not needs_gradient:
        forms.append(lambda: rk.apply_rope_(q, None, positions, CONFIG))
        forms.append(lambda: rk.apply_rope(q, None, positions, CONFIG, out=(torch.empty_like(q), None)))
    return forms


def by_reference(form, seen):
    seen.clear()
    form()
    return "reference" in seen


def test_tasks_choose_for_themselves(monkeypatch):
    seen = ran_on(monkeypatch)

    async def task(name, turns):
        found = []
        with rk.use_backend(name):
            for _ in range(turns):
                await asyncio.sleep(0)
                found += [by_reference(form, seen) for form in calls()]
        found.append(backends.current_override())
        return found

    async def together():
        return await asyncio.gather(*(task(name, 3) for name in ("reference", "native", "reference", None)))

    for found, name in zip(asyncio.run(together()), ("reference", "native", "reference", None), strict=True):
        assert found == [name == "reference"] * 12 + [None]
    assert [by_reference(form, seen) for form in calls()] == [False] * 4


def test_a_task_that_is_cancelled_leaves_no_choice(monkeypatch):
    seen = ran_on(monkeypatch)

    async def waits():
        with rk.use_backend("reference"):
            await asyncio.sleep(10)

    async def cancelled():
        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
        inside = [by_reference(form, seen) for form in calls()]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return inside + [by_reference(form, seen) for form in calls()]

    assert asyncio.run(cancelled()) == [False] * 8


def test_threads_choose_for_themselves(monkeypatch):
    seen = ran_on(monkeypatch)
    found = {}

    def thread(name, inside, done):
        with rk.use_backend(name):
            inside.wait()
            found[name] = backends.current_override()
            done.wait()

    inside, done = threading.Barrier(3), threading.Barrier(3)
    threads = [threading.Thread(target=thread, args=(name, inside, done)) for name in ("reference", "native")]
    for one in threads:
        one.start()
    inside.wait()
    here = [by_reference(form, seen) for form in calls()]
    done.wait()
    for one in threads:
        one.join()
    assert found == {"reference": "reference", "native": "native"}
    assert here == [False] * 4


@pytest.mark.parametrize(("forward", "backward"), [("reference", None), (None, "reference"), ("native", "reference")])
@pytest.mark.parametrize("by_table", [False, True])
def test_a_backward_pass_has_the_choice_of_its_forward_pass(forward, backward, by_table, monkeypatch):
    seen = []
    for name in ("rotate", "rotate_table"):
        original = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda *a, f=original: seen.append(1) or f(*a))
    q, cos = torch.randn(1, 2, 3, 16, requires_grad=True), torch.randn(1, 3, 16)
    with rk.use_backend(forward):
        if by_table:
            out, _ = rk.apply_rotary_pos_emb(q, None, cos, cos)
        else:
            out, _ = rk.apply_rope(q, None, torch.arange(3), CONFIG, layout="bhsd")
    assert len(seen) == (forward == "reference")
    with rk.use_backend(backward):
        out.sum().backward()
        assert backends.current_override() == backward
    assert len(seen) == 2 * (forward == "reference")


def test_compiled_calls_run_on_the_choice_of_the_caller(monkeypatch):
    seen = ran_on(monkeypatch)
    torch._dynamo.reset()
    q, positions = torch.randn(1, 3, 2, 16), torch.arange(3)
    compiled = torch.compile(
        lambda q: rk.apply_rope(q, None, positions, CONFIG)[0], fullgraph=True, backend="aot_eager"
    )
    compiled(q)
    with rk.use_backend("reference"):
        assert by_reference(lambda: compiled(q), seen)
    assert not by_reference(lambda: compiled(q), seen)


def runs(code: list[str], arch: int) -> bool:
    """CUDA's rule, said another way: machine code within a generation, PTX on everything that is not older."""
    for name in code:
        number, _, ptx = name.partition("+")
        same_generation = len(str(arch)) == len(number) and str(arch)[:-1] == number[:-1]
        if int(number) <= arch and (ptx == "PTX" or same_generation):
            return True
    return False


@given(
    st.lists(st.sampled_from(["75", "80", "86", "89", "90", "100", "120", "90+PTX", "120+PTX"]), max_size=4),
    st.sampled_from([70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121, 130]),
)
def test_a_gpu_without_code_goes_on_to_the_next_backend(code, arch):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(native, "_library", types.SimpleNamespace())
        monkeypatch.setattr(native, "_cuda_code", lambda: code)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(arch, 10))
        reason = native.unavailable(torch.device("cuda", 0))
    archs = [name for name in code if "+" not in name]
    if not archs:
        assert reason == "the extension was built without kernels for cuda"
    elif runs(code, arch):
        assert reason is None
    else:
        assert reason.endswith(f", not for sm_{arch}")
        assert f"sm_{archs[0]}" in reason
