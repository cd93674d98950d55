"""The files of the project beside its code: they can be read, and they agree on the version."""

from __future__ import annotations

import re

import pytest
import yaml
from support.documents import ROOT

import rope_kernels

GITHUB = sorted((ROOT / ".github").rglob("*.yml"))


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_it_is_yaml_with_what_github_reads(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    needed = {"name", "jobs"} if path.parent.name == "workflows" else {"name", "description", "body"}
    assert needed <= values.keys()


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (rope_kernels.__version__, "Apache-2.0")
    assert citation["authors"]


def test_a_release_finds_the_version_where_it_looks():
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    version = (ROOT / "rope_kernels" / "_version.py").read_text(encoding="utf-8")
    assert r'grep -qx "__version__ = \"$version\"" rope_kernels/_version.py' in workflow
    assert f'__version__ = "{rope_kernels.__version__}"' in version.splitlines()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] in ("Unreleased", rope_kernels.__version__)
