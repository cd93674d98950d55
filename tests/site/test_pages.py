"""The built pages in Chromium, on a screen and on a phone, light and dark: nothing is cut off, all text can be read."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = sorted(str(path.parent.relative_to(SITE)) for path in SITE.rglob("index.html"))
SCREENS = {"screen": (1440, 900), "phone": (390, 844)}
BLOCKS = "article :is(h1, h2, h3, p, li, td, th, pre)"
LEAST_CONTRAST = 0.3
"""Of the luminance of a block's darkest and lightest points. Text that cannot be seen has less than 0.05."""


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "there is no chromium: apt-get install chromium"
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(s, c) for s in SCREENS for c in ("light", "dark")], ids="-".join, scope="module")
def view(request, browser):
    screen, scheme = request.param
    width, height = SCREENS[screen]
    view = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    yield view
    view.close()


def boxes(view):
    """(x, y, width, height, text) of each block that is shown whole, in the coordinates of the page."""
    return view.evaluate(
        """selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility()).map(e => {
            const box = e.getBoundingClientRect();
            return [box.x, box.y + scrollY, box.width, box.height, e.textContent.trim()];
        }).filter(box => box[2] > 0 && box[0] >= 0 && box[0] + box[2] <= innerWidth && box[4])""",
        BLOCKS,
    )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_not_scroll_sideways(view, page):
    view.goto(f"file://{SITE / page}/index.html")
    assert view.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_too_wide_scrolls_in_itself(view, page):
    """On a screen, code and tables fit without scrolling."""
    view.goto(f"file://{SITE / page}/index.html")
    cut_off = view.evaluate(
        """selector => [...document.querySelectorAll(selector)].filter(e => {
            const edge = document.documentElement.clientWidth + 1;
            if (e.getBoundingClientRect().right <= edge) return false;
            for (let outer = e; outer; outer = outer.parentElement)
                if (["auto", "scroll"].includes(getComputedStyle(outer).overflowX) &&
                    outer.getBoundingClientRect().right <= edge) return false;
            return true;
        }).map(e => e.textContent.trim().slice(0, 60))""",
        f"{BLOCKS}, article table, article img",
    )
    assert cut_off == []
    if view.viewport_size["width"] == SCREENS["screen"][0]:
        scrolling = view.evaluate(
            """[...document.querySelectorAll("article pre > code, article table")]
               .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
               .map(e => e.textContent.trim().slice(0, 60))"""
        )
        assert scrolling == []


@pytest.mark.parametrize("page", PAGES)
def test_text_stands_out(view, page):
    """In the screenshot itself: where the page says that there is text, some points are far darker than others."""
    view.goto(f"file://{SITE / page}/index.html")
    picture = Image.open(io.BytesIO(view.screenshot(full_page=True))).convert("L")
    points = np.asarray(picture, dtype=np.float32) / 255.0
    seen = 0
    for x, y, width, height, text in boxes(view):
        part = points[int(y) : int(y + height), int(x) : int(x + width)]
        if part.size:
            seen += 1
            assert part.max() - part.min() >= LEAST_CONTRAST, text[:60]
    assert seen


def test_every_page_leads_to_the_next(view):
    view.goto(f"file://{SITE}/index.html")
    assert view.locator(".md-footer__link--next").count() == 1


def test_a_reader_can_choose_dark(view):
    view.goto(f"file://{SITE}/index.html")
    assert view.locator("[data-md-component=palette] input").count() == 2
