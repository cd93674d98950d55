"""Processes without Python: the library defines the operators, and runs them and AOTInductor's packages there."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from support.cases import CONFIGS, Case, config_of

import rope_kernels as rk
from rope_kernels.core.spec import text_of
from rope_kernels.ops import operators

PROGRAM = Path(__file__).parents[1] / "cpp" / "without_python" / "main.cpp"
LIBRARY = Path(rk.__file__).parent / "_native.so"
TORCH = Path(torch.__file__).parent
HAS_TAGS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
"""Whether torch's stable ABI has tags."""
IN_LIBRARY = operators._SCHEMAS | operators._NATIVE_SCHEMAS


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program, with torch and nothing of Python's."""
    path = tmp_path_factory.mktemp("without_python") / "main"
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
    compiler = ["c++", "-std=c++20", "-O0", "-isystem", TORCH / "include", PROGRAM, "-o", path, *libraries]
    subprocess.run(compiler, check=True)
    return path


def run(program, folder, what, tensors, **variables):
    """(the results, or ``None``; the error)."""
    inputs, outputs = folder / "inputs", folder / "outputs"
    torch.save(list(tensors), inputs)
    outputs.unlink(missing_ok=True)
    command = [program, LIBRARY, what, inputs, outputs]
    kept = {name: value for name, value in os.environ.items() if name != "ROPE_KERNELS_BACKEND"}
    done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=False)
    return torch.load(outputs) if done.returncode == 0 else None, done.stderr


@pytest.mark.parametrize("name", IN_LIBRARY)
def test_the_librarys_schemas_are_pythons(name):
    op = getattr(torch.ops.rope_kernels, name).default
    assert not op._defined_in_python
    assert op._schema == torch._C.parse_schema(f"rope_kernels::{name}{IN_LIBRARY[name]}")
    assert op.tags == ([torch.Tag.pt2_compliant_tag] if HAS_TAGS and not name.startswith("native") else [])


def qk(config, dtype):
    return [torch.randn(2, 5, heads, config.head_dim).to(dtype) for heads in (4, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama3", "table", "mrope_contiguous"])
def test_the_operator_has_the_same_bits(program, tmp_path, name, dtype):
    config = config_of(Case("", CONFIGS[name]))
    tensors = qk(config, dtype)
    got, error = run(program, tmp_path, text_of(config.spec(), "bshd"), tensors)
    assert got is not None, error
    for a, b in zip(got, rk.apply_rope(*tensors, None, config), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_backend_in_python_is_an_error_that_says_so(program, tmp_path, backend):
    config = rk.RopeConfig(head_dim=16)
    text = text_of(config.spec(), "bshd")
    got, error = run(program, tmp_path, text, qk(config, torch.float32), ROPE_KERNELS_BACKEND=backend)
    assert got is None
    assert "this process has no Python, and ROPE_KERNELS_BACKEND chose a backend that runs in Python" in error


def test_a_wrong_text_is_an_error(program, tmp_path):
    got, error = run(program, tmp_path, "theta=1", qk(rk.RopeConfig(head_dim=16), torch.float32))
    assert got is None
    assert "spec" in error


class Layer(torch.nn.Module):
    """Rotates the halves of a projection by positions, then by a table."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.projection = torch.nn.Linear(32, 6 * 16, bias=False)
        self.rope = rk.RotaryEmbedding(rk.RopeConfig(head_dim=16))

    def forward(self, x, positions, cos, sin):
        q, k = self.projection(x).unflatten(-1, (6, 16)).split((4, 2), 2)
        q, k = self.rope(q, k, positions)
        return rk.apply_rotary_pos_emb(q, k, cos, sin, 2)


def test_a_package_of_aotinductor(program, tmp_path):
    inputs = (torch.randn(2, 7, 32), torch.arange(7).expand(2, -1).contiguous(), *torch.randn(2, 1, 7, 16))
    with torch.no_grad():
        exported = torch.export.export(Layer().eval(), inputs)
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "layer.pt2"))
        wanted = torch._inductor.aoti_load_package(package)(*inputs)
        eager = Layer().eval()(*inputs)
    got, error = run(program, tmp_path, package, inputs)
    assert got is not None, error
    for a, b, c in zip(got, wanted, eager, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
