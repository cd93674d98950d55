"""The pages of docs/: their Python runs, their pictures can be drawn, and nothing that is there is left out."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import xml.etree.ElementTree as ET

import pytest
import yaml
from support.documents import ROOT, blocks_of

import rope_kernels
from rope_kernels import ROPE_TYPES
from rope_kernels.cli import commands as cli
from rope_kernels.config.fields import OTHER_NAMES, RopeFields
from rope_kernels.measuring import curves

DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
TYPES = {name: kind for name, kind in ROPE_TYPES.items() if kind.builtin}


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered_types():
    """A block that registers a rope type leaves none behind."""
    before = dict(ROPE_TYPES)
    yield
    ROPE_TYPES.clear()
    ROPE_TYPES.update(before)


@pytest.mark.usefixtures("registered_types")
@pytest.mark.parametrize("block", [block for name in PAGES for block in blocks_of(f"docs/{name}")], ids=repr)
def test_block_runs(block):
    if "transformers" in block.text:
        pytest.importorskip("transformers")
    block.run()


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    sections = [pages for section in settings["nav"] for pages in section.values()]
    assert sorted(page for pages in sections for entry in pages for page in entry.values()) == sorted(PAGES)


def test_every_picture_is_shown_and_every_shown_one_is_drawn(pictures):
    shown = {name for text in PAGES.values() for name in re.findall(r"\]\(pictures/([\w-]+)\.svg\)", text)}
    assert shown == set(pictures.PICTURES)
    assert not list(DOCS.rglob("*.svg"))


def test_pictures_are_small_and_do_not_change_from_build_to_build(pictures, monkeypatch):
    monkeypatch.setattr(curves, "_LAST_POSITION_LOG2", 4)
    for name in pictures.PICTURES:
        text = pictures.svg(name)
        assert ET.fromstring(text).tag.endswith("svg")
        assert len(text) < 100_000, name
    assert pictures.svg("type-yarn") == pictures.svg("type-yarn")


def test_every_rope_type_has_its_formula_keys_picture_and_source():
    parts = re.split(r"^## (\w+)$", PAGES["rope-types.md"], flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(sections) == set(TYPES)
    for name, kind in TYPES.items():
        text = sections[name]
        assert f"pictures/type-{name}.svg" in text
        assert "```python" in text
        if name == "inv_freq":
            continue  # the caller's own table has no keys and no paper
        assert all(f"`{key}`" in text for key in kind.required), name
        assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}|transformers|HunYuan", text), name


def test_the_summary_of_rope_types_names_the_keys_that_each_needs():
    rows = re.findall(r"^\| \[(\w+)\]\(#\w+\) \| ([^|]*)\|", PAGES["rope-types.md"], re.MULTILINE)
    assert {name: set(re.findall(r"\w+", keys)) for name, keys in rows} == {
        n: set(k.required) for n, k in TYPES.items()
    }


def test_every_field_of_a_config_is_listed_with_its_default_and_its_types():
    rows = [line.strip("| ").split(" | ") for line in PAGES["config.md"].splitlines() if line.startswith("| `")]
    shown = {row[0].strip("`"): row[1:] for row in rows if len(row) == 5}
    assert list(shown) == [f.name for f in dataclasses.fields(RopeFields)]
    for f in dataclasses.fields(RopeFields):
        _, default, readers, _ = shown[f.name]
        if f.default is not dataclasses.MISSING:
            assert default.strip("`") == ("" if f.default is None else repr(f.default)), f.name
        needing = {name for name, kind in TYPES.items() if f.name in kind.required}
        reading = needing | {name for name, kind in TYPES.items() if f.name in kind.optional}
        assert set(re.findall(r"\*\*(\w+)\*\*", readers)) >= needing or readers.startswith("all"), f.name
        if readers[:3] not in ("all", "**d"):
            assert set(re.findall(r"\w+", readers)) == reading, f.name
    assert {row[0].strip("`") for row in rows if len(row) == 2} == set(OTHER_NAMES)


def test_every_public_name_is_on_the_api_page():
    documented = set(re.findall(r"^::: rope_kernels\.(\w+)$", PAGES["api.md"], re.MULTILINE))
    assert set(rope_kernels.__all__) - documented == {"ROPE_TYPES", "__version__"}
    assert "`ROPE_TYPES`" in PAGES["api.md"]


def test_every_command_and_exit_code_is_documented():
    text = PAGES["command-line.md"]
    for command in cli.app.registered_commands:
        assert re.search(rf"^\| `{command.callback.__name__}[` ]", text, re.MULTILINE), command.callback.__name__
    for code in re.findall(r"(\d) [a-z]", cli.EXIT_CODES):
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), code
