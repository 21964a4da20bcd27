"""The report as a browser shows it: offline, light and dark, on a telephone and on a desk."""

from __future__ import annotations

import pytest

from autodisc.reporting.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make.write(folder / "s", make.search(), make.answered(), make.baseline(), make.baseline("direct"))
    write_report([folder / "s"], folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def opened(browser, page_file):
    """``opened(width, scheme)``: the page without a network, and what its console and its requests said."""
    contexts = []

    def open_page(width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page, heard, asked = context.new_page(), [], []
        page.on("console", lambda message: heard.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 10")
        return page, heard, asked

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_opens_offline_whole_and_accessible(opened, page_file, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, heard, asked = opened(width, scheme)
    assert heard == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.locator(".plot")
    assert plots.count() == page.locator(".plot .svg-container").count() == 15
    for box in (plots.nth(i).bounding_box() for i in range(plots.count())):
        assert box["width"] > 250
        assert box["height"] > 150
    found = Axe().run(page).response
    assert len(found["passes"]) > 15  # it did look
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:80] for node in one["nodes"]]) for one in serious] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_take_the_page_s_colours_and_print_dark_on_white(opened, scheme):
    page, _, _ = opened(1440, scheme)

    def ink():
        return page.evaluate("document.querySelector('.plot .xtitle').style.fill")

    on_screen = ink()
    assert (on_screen == "rgb(69, 76, 85)") == (scheme == "light")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelector('.plot .xtitle').style.fill === 'rgb(69, 76, 85)'")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_keyboard_reaches_every_table_and_every_picture_s_words(opened):
    page, _, _ = opened(1440, "light")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.className"))
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            page.keyboard.press("Enter")
    assert {"SUMMARY ", "DIV scroll"} <= reached
    assert page.locator("figure details[open] p").first.is_visible()
    assert "sparsity 0.8" in page.locator("figure details[open] p").first.inner_text()
