"""Builds the native kernels: one shared library for every Python, through torch's stable ABI.

No Python version is compiled in: ``rope_kernels.backends.native`` loads it into torch, and it is a Python module by the
stable ABI for ``rope_kernels.ops.direct``. The package is installed with the library or not at all, unless
``ROPE_KERNELS_NATIVE=0`` asks for Python alone. docs/install.md has all variables and what each error means.
"""

import os
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))
from native_build import ninja_file, run, settings, tools  # noqa: E402
from native_build.errors import BuildError  # noqa: E402

NOTE = "rope_kernels/_why_not_native.txt"
"""Why there is no library, for ``rope-kernels info``: in the checkout, or in a wheel without it."""
OLDEST_SETUPTOOLS = 77
EDITABLE = {"mode": "compat"}
"""Editable installs put the checkout on the path: type checkers do not see through setuptools' import hook."""


def say(text: str) -> None:
    """Print a line that pip shows with -v or after an error."""
    print(f"rope_kernels: {text}", file=sys.stderr)


def replace(source: Path, target: Path) -> None:
    """Copy a file in one step: a process that has the old one loaded keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.new")
    shutil.copy2(source, new)
    os.replace(new, target)


class NinjaBuild(build_ext):
    """Builds the library with ninja, which compiles what changed."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's name, the same for every Python."""
        return f"{Path(*fullname.split('.'))}.so"

    def run(self) -> None:
        """Build the library or raise; an editable install keeps none that older sources built."""
        into_checkout = self.inplace or self.editable_mode
        note = ROOT / NOTE
        note.write_text("the last build did not end\n", encoding="utf-8")
        try:
            super().run()
        except BaseException as error:
            if isinstance(error, BuildError):
                note.write_text(f"the last build failed: {error.reason}\n", encoding="utf-8")
            if into_checkout:
                (ROOT / self.get_ext_filename("rope_kernels._native")).unlink(missing_ok=True)
            raise
        note.unlink()

    def build_extension(self, ext: Extension) -> None:
        """Build the library and copy it to where setuptools looks for it."""
        found, ninja = tools.find_toolchain(ROOT), tools.ninja()
        build = ROOT / "build" / "native"
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(ninja_file.ninja_file(ROOT, build, found), encoding="utf-8")
        run.run_ninja(ninja, build)
        replace(build / ninja_file.LIBRARY, Path(self.get_ext_fullpath(ext.name)))
        say(f"native kernels built: {contents(found)}")

    def copy_extensions_to_source(self) -> None:
        """For an editable install."""
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            replace(Path(self.build_lib, name), ROOT / name)


def contents(found: tools.Toolchain) -> str:
    """What a library has that was built with these tools."""
    calls = "direct calls from Python" if found.headers else "no direct calls (there are no headers of Python)"
    cuda = f"CUDA ({found.code})" if found.nvcc else f"without CUDA ({found.no_cuda})"
    return f"CPU ({', '.join(found.isas)}), {calls}, {cuda}, torch of {found.torch}"


class PythonAlone(build_py):
    """Leaves a note for ``rope-kernels info`` in a package without the library."""

    def run(self) -> None:
        """Copy the modules, and write the note."""
        super().run()
        folder = ROOT if self.editable_mode else Path(self.build_lib)
        (folder / NOTE).write_text("the package was installed with ROPE_KERNELS_NATIVE=0\n", encoding="utf-8")
        if self.editable_mode:
            (ROOT / "rope_kernels" / ninja_file.LIBRARY).unlink(missing_ok=True)


class CheckedDistInfo(dist_info):
    """pip asks for metadata first: what is missing is said before it downloads the dependencies."""

    def run(self) -> None:
        """Look for the tools, then write the metadata."""
        tools.find_toolchain(ROOT)
        tools.ninja()
        super().run()


if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    raise BuildError(f"setuptools {setuptools.__version__} is too old", "Run: pip install 'setuptools>=77'")
if settings.native_wanted():
    setup(
        ext_modules=[Extension("rope_kernels._native", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": NinjaBuild, "dist_info": CheckedDistInfo},
        options={"bdist_wheel": {"py_limited_api": "cp310"}, "editable_wheel": EDITABLE},
    )
else:
    setup(cmdclass={"build_py": PythonAlone}, options={"editable_wheel": EDITABLE})
