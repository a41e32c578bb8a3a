"""The report in a real browser: Chromium of the system's packages, driven by playwright; skipped with a reason where either is missing.

Text is read as `textContent` where it may lie outside the window, which the browser does not lay out.
"""

import shutil
from pathlib import Path

import pytest

from eval_suites.report.__main__ import main as report_main
from tests.eval_suites.helpers.handmade_results import make, right_share, write_results

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

ODD = {3: "<img src=x onerror=\"document.title='owned'\">", 5: "x" * 50_000, 7: "\u05e9\u05dc\u05d5\u05dd", 9: "a cat \U0001f408", 11: ""}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        root, data = make(folder, patch)
        skilled = right_share(6, 0.5)
        write_results(root, data, "odd", lambda kind, i: (ODD[i], 0.0) if i in ODD else skilled(kind, i))
        write_results(root, data, "unfinished", right_share(7, 0.6), kinds=("shape",))
        assert report_main([str(root), "--data-root", str(data), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture
def open_page(browser, file):
    """Opens the file; at the end: nothing was said on the console, nothing was asked for outside the page."""
    contexts, problems = [], []

    def open_page(link: str = "", width: int = 1280, dark: bool = False):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        page.goto(f"file://{file}{link}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def column(page, name: str) -> list[str]:
    """The table's texts under a head, top to bottom."""
    heads = page.locator("#table-box thead tr").nth(1).locator("th").all_inner_texts()
    return [line.locator("th, td").nth(heads.index(name)).inner_text().split("\n")[0] for line in page.locator("#table-box tbody tr").all()]


def test_sorting_sorts_and_what_is_missing_stands_last(open_page):
    page = open_page()
    page.click("[data-sort=colour]")
    values = column(page, "colour")
    assert values[-1] == "-" and values[:-1] == sorted(values[:-1], key=float, reverse=True)
    page.click("[data-sort=colour]")
    values = column(page, "colour")
    assert values[-1] == "-" and values[:-1] == sorted(values[:-1], key=float)
    assert page.locator("th[aria-sort=ascending]").inner_text() == "colour"


def test_a_number_tells_what_is_behind_it_and_a_hole_why(open_page):
    page = open_page()
    line = page.locator("#table-box tbody tr", has_text="good")
    line.locator("button").nth(2).hover()
    text = page.locator("#tip").inner_text()
    for word in ("40 of 40", "standard error", "exact_match,none", "which shape, 0?", "95 % interval"):
        assert word in text
    page.locator("#table-box tbody tr", has_text="unfinished").locator("button").nth(3).click()
    assert "not evaluated" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_filters_and_search_change_what_is_shown(open_page):
    page = open_page()
    shown = lambda: int(page.locator("#shown").inner_text().split()[0])  # noqa: E731
    assert shown() == page.locator(".sample").count() == 40
    page.select_option("#show", "right")
    page.select_option("#of", label="good")
    right = shown()
    assert 0 < right < 40
    assert all("✓" in text for text in page.locator(".sample .answers li", has_text="good").all_text_contents())
    page.select_option("#show", "wrong")
    assert shown() == 40 - right
    for task in ("easyvqa_shape", "easyvqa_colour", "easyvqa_yes_no"):
        page.select_option("#benchmark", task)
        agree = []
        for show in ("all", "differ"):
            page.select_option("#show", show)
            cards = [card.locator(".verdict").all_text_contents() for card in page.locator(".sample").all()]
            agree.append(sum(len({"✓" in text for text in verdicts}) == 1 for verdicts in cards))
        assert agree[1] == 0 < len(cards) == 40 - agree[0]
        if agree[0]:
            break
    assert agree[0] > 0, "a benchmark on which some questions are not disagreed about"
    page.select_option("#benchmark", "easyvqa_shape")
    page.select_option("#show", "all")
    page.select_option("#category", "odd")
    assert shown() == 20 and page.locator(".sample header", has_text="even").count() == 0
    page.select_option("#category", "")
    page.fill("#search", "shape, 17?")
    assert shown() == 1 and "sample 17" in page.locator(".sample").text_content()
    page.fill("#search", "no such thing")
    assert page.locator("#shown").inner_text() == "No sample is like that." and page.locator(".sample").count() == 0
    page.fill("#search", "")
    page.select_option("#benchmark", "easyvqa_colour")
    assert "which colour, 0?" in page.locator(".sample").first.text_content()


def test_a_shared_link_opens_its_sample(open_page):
    page = open_page("#sample=easyvqa_yes_no/33")
    assert page.locator("#benchmark").input_value() == "easyvqa_yes_no"
    target = page.locator(".sample.linked")
    assert "which yes_no, 33?" in target.text_content()
    box = target.bounding_box()
    assert 0 <= box["y"] < 900
    page.locator("#sample-34").get_by_role("link").click()
    assert page.url.endswith("#sample=easyvqa_yes_no/34") and "34?" in page.locator(".sample.linked").text_content()
    assert "is not among those" in open_page("#sample=easyvqa_shape/999").locator("#shown").inner_text()


def test_odd_answers_are_shown_as_what_they_are(open_page):
    page = open_page()
    said = lambda doc: page.locator(f"#sample-{doc} .answers li", has_text="odd")  # noqa: E731
    assert said(3).locator(".said").text_content() == ODD[3] and page.title() != "owned"
    page.locator("#sample-5").scroll_into_view_if_needed()
    assert len(said(5).locator(".said").text_content()) == 50_000 and said(5).bounding_box()["height"] < 400
    assert "50,000 characters" in said(5).text_content()
    assert said(7).locator(".said").evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert said(9).locator(".said").text_content() == ODD[9]
    assert said(11).locator(".empty").text_content() == "(empty)"
    assert page.locator(".sample img").count() == 40
    assert page.locator("#sample-3 img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


def test_the_comparison_says_better_worse_and_greys_what_is_not_told_apart(open_page):
    page = open_page()
    page.select_option("#pair", label="good against poor")
    line = page.locator("#pair-box tbody tr", has_text="ALL AVG")
    assert "better" in line.inner_text() and "unsure" not in (line.get_attribute("class") or "")
    page.select_option("#pair", label="good against unfinished")
    assert "not every column is complete" in page.locator("#pair-box tbody tr", has_text="ALL AVG").inner_text()
    assert page.locator("#pair-box tr.unsure").count() >= 2
    page.select_option("#pair", label="odd against unfinished")
    line = page.locator("#pair-box tbody tr", has_text="shape")
    assert "not told apart" in line.inner_text() and line.get_attribute("class") == "unsure"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_on_a_phone(open_page, dark):
    page = open_page(width=400, dark=dark)
    page.locator("#runs details").first.locator("summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    cut = page.evaluate("""() => [...document.querySelectorAll('main *')].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width && (box.right > 400.5 || box.left < -0.5) && !element.closest('.scroll') && !element.closest('svg');
    }).map((element) => element.outerHTML.slice(0, 80))""")
    assert cut == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((box) => box.getBoundingClientRect().right <= 400)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark


def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    # One card stands for all; not typed, for then the next Tab would start from there.
    page.evaluate("() => { search.value = 'shape, 17?'; search.dispatchEvent(new Event('input')); }")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate("[document.activeElement.id, document.activeElement.className, document.activeElement.tagName]")
        if at[2] == "BODY":
            break
        reached |= {at[0], at[1], at[2]}
    for name in ("skip", "sort", "pair", "benchmark", "show", "of", "category", "search", "picture", "SUMMARY"):
        assert name in reached, name
    page.locator("#table-box .sort").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.evaluate("dispatchEvent(new Event('scroll'))")  # as where the focus scrolls its cell into view
    assert page.evaluate("document.activeElement.className") == "cell" and page.locator("#tip").is_visible()
    page.locator("#table-box .sort").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=descending]").inner_text() == "ALL AVG"
    assert page.evaluate("document.activeElement.dataset.sort") == "all_avg"  # the focus stays where it was
    page.locator(".picture").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#large").is_hidden()


def test_without_its_script_the_page_still_shows_the_charts(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{file}")
    assert page.locator("figure svg").count() == 2 and "drawn by a script" in page.locator("noscript").inner_text()
    context.close()


def test_the_file_lies_beside_nothing_else(file):
    assert {path.name for path in Path(file).parent.iterdir()} == {"report.html", "results", "data"}
