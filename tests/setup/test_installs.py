"""pip installs the package from a checkout and from a source archive, with real compilers, in folders with a space."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SEEN = """
import rope_kernels, torch
from rope_kernels.backends import native
assert "site-packages" in rope_kernels.__file__, rope_kernels.__file__
assert native.unavailable() is None, native.unavailable()
q, _ = rope_kernels.apply_rope(torch.ones(1, 2, 1, 64), None, torch.arange(2), rope_kernels.RopeConfig(head_dim=64))
print(q[0, 1, 0, 0].item(), native.isas())
"""


def run(folder, *command, check=False):
    """Run a command that sees nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=check)


@pytest.fixture
def environment(tmp_path):
    """The Python of a new environment that has torch in its own folder and can import what this one has."""
    home = tmp_path / "an env é"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    here = Path(torch.__file__).parents[1]
    for path in (here / "torch", *here.glob("torch-*.dist-info")):
        (packages / path.name).symlink_to(path)
    (packages / "here.pth").write_text(f"{here}\n")
    return home / "bin" / "python"


@pytest.mark.full
@pytest.mark.parametrize("source", ["checkout", "archive"])
@pytest.mark.parametrize("isolation", [(), ("--no-build-isolation",)], ids=["isolated", "not isolated"])
def test_pip_installs_the_native_kernels(monkeypatch, tmp_path, checkout, environment, source, isolation):
    monkeypatch.setenv("ROPE_KERNELS_CUDA", "0")
    monkeypatch.setenv("ROPE_KERNELS_ISAS", "native")
    what = checkout
    if source == "archive":
        subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=checkout, check=True)
        (what,) = checkout.glob("dist/*.tar.gz")
    if isolation:
        run(tmp_path, environment, "-m", "pip", "install", "--ignore-installed", "setuptools>=77", "ninja", check=True)
    run(tmp_path, environment, "-m", "pip", "install", "--ignore-installed", "--no-deps", *isolation, what, check=True)
    done = run(tmp_path, environment, "-c", SEEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("-0.30")  # cos 1 - sin 1


@pytest.mark.full
def test_an_environment_without_torch_gets_an_error_and_no_second_torch(tmp_path, checkout):
    home = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    done = run(tmp_path, home / "bin" / "python", "-m", "pip", "install", checkout)
    assert done.returncode != 0
    assert "there is no torch for" in done.stdout + done.stderr
    assert "pip install --no-build-isolation ." in done.stdout + done.stderr
    assert not list(home.glob("lib/python*/site-packages/torch"))
