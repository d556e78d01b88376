"""The page in a real browser: a query, its results, and a result that plays from its second."""

import re

import pytest
from playwright.sync_api import Page, sync_playwright
from support.server import Server, make_index
from support.tuned_model import make
from support.video import write_video

WIDTHS = [1400, 390]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for name in ("holidays/a video with a rather long name that no phone shows in one line.mp4", "b.mp4"):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 150)
    index = make_index(folder / "index", folder / "videos", make(folder / "run", "vop").folder)
    with Server(index) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, url):
    """The page as it opens, on a desk or on a phone; whatever goes wrong in it fails the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    opened = context.new_page()
    mistakes = []
    opened.on("pageerror", lambda error: mistakes.append(str(error)))
    opened.goto(url)
    yield opened
    assert mistakes == []
    context.close()


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def search(page: Page, text: str) -> None:
    page.get_by_role("searchbox").fill(text)
    page.get_by_role("button", name="Search").click()
    page.locator("#results li").first.wait_for()


def test_a_query_shows_results_with_pictures_and_nothing_is_wider_than_the_window(page):
    page.locator("#status", has_text="2 videos").wait_for()
    assert overflow(page) == 0
    search(page, "a red ball")
    page.locator("#status", has_text=re.compile(r"^\d+ moments")).wait_for()
    assert overflow(page) == 0
    picture = page.locator("#results img").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('#results img').naturalWidth > 0")


def test_a_result_plays_from_its_second_and_closes(page):
    search(page, "a red ball")
    later = None
    for button in page.locator("#results .play").all():
        start = re.search(r" from (\d+):(\d\d)$", button.get_attribute("aria-label"))
        if int(start[2]) > 0:
            later = button
            break
    assert later is not None, "every answer begins with its video"

    later.click()
    page.wait_for_function("() => document.getElementById('video').readyState >= 2")
    assert page.evaluate("document.getElementById('video').currentTime") > 0.9
    assert overflow(page) == 0
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.getElementById('player').open")
    assert page.evaluate("document.getElementById('video').paused")


def test_a_folder_narrows_the_results_down(page):
    page.get_by_label("Folder").select_option("holidays")
    search(page, "a red ball")
    names = page.locator("#results .name").all_text_contents()
    assert names
    assert all(name.startswith("holidays/") for name in names)
