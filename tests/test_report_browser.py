"""The report in a real browser: no error, no request, filters, search and sorting, and hostile names that stay text."""

import browser
import pytest
import report_task
from report_task import BIDI_NAME, COPIED, COPY, HOSTILE_CLASS, HOSTILE_NAME, LONG_NAME, MISLABELLED, PAIR, TEST

import predict

pytestmark = pytest.mark.skipif(browser.find() is None, reason="needs Chromium (Debian, Ubuntu: apt install chromium)")
TOTAL = 4 * TEST


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    task = report_task.make(folder / "task")
    arguments = ["--output", task.output, "--data", task.data, "--result", folder / "result.txt"]
    assert predict.main([*map(str, arguments), "--report", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def opened(started, path):
    """Open the report; afterwards the console must be empty, and the page the only request."""
    started.problems.clear()
    started.requests.clear()
    started.open(path)
    yield started
    assert started.problems == []
    assert set(started.requests) == {path.resolve().as_uri()}


def choose(page, control, value):
    page.js(
        f"(() => {{ const e = document.getElementById({control!r}); e.value = {value!r};"
        " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def rows(page):
    """Return the rows in test.npz of the photographs in the grid."""
    return page.js("[...document.querySelectorAll('#grid .card')].map((card) => Number(card.dataset.row))")


def verdicts(page):
    return set(page.js("[...document.querySelectorAll('#grid .card')].map((card) => card.classList[1])"))


def text(page, selector):
    return page.js(f"document.querySelector({selector!r}).textContent")


def test_all_photographs_and_their_pictures_are_shown(opened):
    assert sorted(rows(opened)) == list(range(TOTAL)) and f"{TOTAL} of {TOTAL}" in text(opened, "#count")
    opened.until("[...document.querySelectorAll('#grid img')].every((image) => image.complete)")
    assert (
        opened.js("[...document.querySelectorAll('#grid img')].filter((i) => i.naturalWidth === 160).length") == TOTAL
    )
    assert opened.js("[...document.images].every((image) => image.alt)")


def test_filters_and_search_do_what_they_say(opened):
    choose(opened, "verdict-filter", "wrong")
    assert verdicts(opened) == {"wrong"} and {PAIR[0] * TEST + i for i in range(PAIR[2])} <= set(rows(opened))
    wrong = len(rows(opened))
    choose(opened, "verdict-filter", "right")
    assert verdicts(opened) == {"right"} and len(rows(opened)) == TOTAL - wrong
    opened.js("document.getElementById('reset').click()")
    assert len(rows(opened)) == TOTAL
    choose(opened, "search", "IMAGE_17")
    assert rows(opened) == [17]
    choose(opened, "search", "no such name")
    assert rows(opened) == [] and "No photograph" in text(opened, "#count")
    choose(opened, "search", "")
    choose(opened, "class-filter", "3")
    assert {3 * TEST + i for i in range(TEST)} | {PAIR[0] * TEST + i for i in range(PAIR[2])} <= set(rows(opened))
    choose(opened, "class-filter", "")
    seen = []
    for level in ("0", "1", "2", "3"):
        choose(opened, "confidence-filter", level)
        seen += rows(opened)
    assert sorted(seen) == list(range(TOTAL))


def test_the_order_is_by_margin(opened):
    margins = (
        "JSON.parse(document.getElementById('data').textContent).photographs.map((p) => p.top[0][1] - p.top[1][1])"
    )
    margin = opened.js(margins)
    for order, sign in (("unsure", 1), ("sure", -1)):
        choose(opened, "sort", order)
        shown = [sign * margin[row] for row in rows(opened)]
        assert shown == sorted(shown) and len(shown) == TOTAL


def test_tables_sort_by_their_heads_and_say_so(opened):
    click = "document.querySelector('#classes thead th:nth-child(1) button').click()"
    names = "[...document.querySelectorAll('#classes tbody th')].map((cell) => cell.textContent)"
    state = "document.querySelector('#classes thead th').getAttribute('aria-sort')"
    assert opened.js(state) == "none"
    opened.js(click)
    ascending = opened.js(names)
    assert opened.js(state) == "ascending" and len(ascending) == 4
    opened.js(click)
    assert opened.js(state) == "descending" and opened.js(names) == ascending[::-1]
    choose(opened, "class-search", "DOG")
    assert opened.js("[...document.querySelectorAll('#classes tbody tr')].filter((row) => !row.hidden).length") == 1


def test_a_photograph_opens_with_its_evidence(opened):
    choose(opened, "search", "image_17")
    opened.js("document.querySelector('#grid .card').focus()")
    opened.press("Enter", 13)
    opened.until("document.getElementById('dialog').open")
    assert "image_17" in text(opened, "#dialog-title") and "dog" in text(opened, "#dialog-body")
    assert "Shots that speak for dog" in text(opened, "#dialog-body")
    assert opened.js("document.querySelectorAll('#dialog .strip img').length") == 8
    assert opened.js("document.getElementById('dialog').contains(document.activeElement)")
    opened.press("Escape", 27)
    opened.until("!document.getElementById('dialog').open")
    assert opened.js("document.activeElement.classList.contains('card')")


def test_arrow_keys_lead_to_the_next_photograph(opened):
    opened.js("document.querySelector('#grid .card').click()")
    assert "1 of" in text(opened, "#dialog-position")
    opened.press("ArrowRight", 39)
    opened.until("document.getElementById('dialog-position').textContent.startsWith('2 of')")
    opened.js("document.getElementById('close').click()")


def test_the_photographs_of_a_class_are_as_many_as_its_table_says(opened):
    """Those that are of the class; with the answers of other classes where that is asked for."""
    row = "document.querySelector('#classes tbody tr')"
    said = int(opened.js(f"[...{row}.querySelectorAll('td.number')].at(-2).textContent"))  # photographs, then shots
    opened.js(f"{row}.querySelector('button').click()")
    label = opened.js("Number(document.getElementById('class-filter').value)")
    assert rows(opened) == [label * TEST + i for i in range(TEST)] and said == TEST
    choose(opened, "class-filter", str(PAIR[1]))
    choose(opened, "role-filter", "answered")
    assert {PAIR[0] * TEST + i for i in range(PAIR[2])} <= set(rows(opened))
    choose(opened, "role-filter", "")
    assert set(rows(opened)) >= {PAIR[1] * TEST + i for i in range(TEST)}


def test_names_show_their_end(opened):
    """The file's name is whole; of a long folder the beginning is cut off."""
    assert text(opened, "#suspect-labels .card .base") == f"shot_{MISLABELLED}.jpg"
    assert opened.js("""[...document.querySelectorAll('.card .base')].filter((base) => base.textContent.length < 20)
        .every((base) => base.scrollWidth <= base.clientWidth && base.scrollHeight <= base.clientHeight)""")
    assert opened.js("getComputedStyle(document.querySelector('.card .folder')).direction") == "rtl"


def test_a_doubtful_label_opens_with_shots_of_both_classes(opened):
    opened.js("document.querySelector('#suspect-labels .card').click()")
    opened.until("document.getElementById('dialog').open")
    shown = text(opened, "#dialog-body")
    assert f"shot_{MISLABELLED}.jpg" in shown and "Nearest shots of cat" in shown and "Nearest shots of dog" in shown
    assert opened.js("document.querySelectorAll('#dialog .strip img').length") == 8
    opened.js("document.getElementById('close').click()")
    opened.js("document.querySelector('#suspect-copies .card').click()")
    assert opened.js("document.querySelectorAll('#dialog .two img').length") == 2
    assert f"image_{COPY}.jpg" in text(opened, "#dialog") and f"shot_{COPIED}.jpg" in text(opened, "#dialog")
    opened.js("document.getElementById('close').click()")
    photographs = "JSON.parse(document.getElementById('data').textContent).photographs"
    row = opened.js(f"{photographs}.find((p) => p.shots.flat().some(([shot]) => shot === {MISLABELLED})).row")
    opened.js(f"document.querySelector('#grid .card[data-row=\"{row}\"]').click()")
    assert "label in doubt" in text(opened, "#dialog-body")


def test_what_was_compared_is_said_where_nothing_was_found(opened):
    shown = text(opened, "#suspect-copies")
    assert f"Compared: {TOTAL} test photographs and 36 training photographs" in shown
    assert f"{TOTAL} test and 20 training photographs" in shown  # those of validation are not there
    assert opened.js("document.querySelectorAll('#suspect-copies details .card').length") == 2  # across classes: none


def test_pairs_confidence_and_suggestions_are_put_in_words(opened):
    assert f"of {TEST} (33\u00a0%)" in text(opened, "#pairs summary") and PAIR[2] == 4
    assert "90\u00a0% and more were right in" in text(opened, "#reliability .trust")
    assert "torn between" in text(opened, "#next-grid .card")
    assert opened.js("document.querySelectorAll('#next-grid .card .mark').length") > 0


def test_planted_faults_are_seen_first(opened):
    first = "#suspect-labels .card"
    assert f"shot_{MISLABELLED}.jpg" in text(opened, first)
    assert "Labelled dog" in text(opened, first) and "looks like cat" in text(opened, first)
    assert f"image_{COPY}.jpg" in text(opened, "#suspect-copies .couple")
    assert f"shot_{COPIED}.jpg" in text(opened, "#suspect-copies .couple")
    assert text(opened, "#pairs summary").startswith(f'{PAIR[2]}dog → Tower & \'"bridge"')
    opened.js("document.querySelector('#pairs summary').click()")
    opened.until(f"document.querySelectorAll('#pairs .strip img').length === {PAIR[2]}")


def test_hostile_names_stay_text(opened):
    assert text(opened, "title") == "Classification report"
    assert opened.js("document.querySelectorAll('img:not(.picture)').length") == 0
    assert HOSTILE_CLASS in text(opened, "#classes") and HOSTILE_CLASS in text(opened, "#class-filter")
    shown = text(opened, "#grid")
    assert HOSTILE_NAME in shown and LONG_NAME in shown and "broken <b>.jpg" in text(opened, "#unreadable")
    assert BIDI_NAME not in shown and "photo‹U+202E›gpj.exe.jpg" in shown
    choose(opened, "search", "exe.jpg")
    assert rows(opened) == [2]


def test_nothing_of_a_hostile_page_could_run(opened):
    """The policy holds even if a name were to become HTML."""
    opened.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    opened.js("new Promise((done) => setTimeout(done, 200))")
    assert text(opened, "title") == "Classification report"
    assert any("Content Security Policy" in problem for problem in opened.problems)
    opened.problems.clear()
    assert opened.requests.pop().endswith("/x")  # asked for, and refused


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (390, True)])
def test_it_fits_the_window(opened, path, width, dark):
    opened.open(path, width, 844, dark)
    assert opened.js("document.documentElement.scrollWidth") <= width
    opened.js("document.querySelector('#grid .card').click()")
    assert opened.js("document.getElementById('dialog').scrollWidth <= document.getElementById('dialog').clientWidth")
    assert opened.js("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 23, 26)" if dark else "rgb(247, 247, 244)"
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_no_column_is_lost_without_a_hint(opened, path, width):
    opened.open(path, width, 844)
    assert opened.js(
        f"[...document.querySelectorAll('nav.bar a')].every((a) => a.getBoundingClientRect().right <= {width})"
    )
    fits = "(e) => e.scrollWidth <= e.clientWidth"
    assert opened.js(f"({fits})(document.querySelector('#beside .scroll'))")
    hidden = f"""[...document.querySelectorAll('.scroll')].filter((e) => e.clientWidth && !({fits})(e)
        && getComputedStyle(e.parentElement.querySelector('.more-hint')).display === 'none').length"""
    opened.until(f"{hidden} === 0")
    wide = opened.js(f"[...document.querySelectorAll('.scroll')].findIndex((e) => e.clientWidth && !({fits})(e))")
    assert (wide >= 0) == (width == 390)
    if wide >= 0:
        opened.js(f"document.querySelectorAll('.scroll')[{wide}].scrollLeft = 9999")
        opened.until(f"!document.querySelectorAll('.frame')[{wide}].classList.contains('more-right')")


def test_every_control_has_a_name(opened):
    nameless = """[...document.querySelectorAll('button, input, select, summary, [role=region], [role=img]')].filter(
        (e) => !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).length"""
    assert opened.js(nameless) == 0
    assert opened.js(
        "[...document.querySelectorAll('table')].every((t) => t.caption && t.querySelector('th[scope=col]'))"
    )


def test_chinese_where_the_browser_says_so_and_by_the_button(opened, path):
    opened.open(path, language="zh-CN")
    assert text(opened, "#good-title") == "效果如何？" and opened.js("document.documentElement.lang") == "zh"
    opened.js("document.getElementById('language').click()")
    assert text(opened, "#good-title") == "How good is it?" and opened.js("document.title") == "Classification report"


def test_without_pictures_the_page_works(started, tmp_path):
    task = report_task.make(tmp_path / "task", "blend", labelled=False, photographs=False)
    arguments = ["--output", task.output, "--data", task.data, "--result", tmp_path / "result.txt"]
    assert predict.main([*map(str, arguments), "--report", str(tmp_path / "report.html")]) == 0
    started.problems.clear()
    started.open(tmp_path / "report.html")
    assert len(rows(started)) == TOTAL and verdicts(started) == {"unknown"}
    assert "no pictures" in text(started, "#photos-note") and "validation" in text(started, "#good-note")
    started.js("document.querySelector('#grid .card').click()")
    assert "cosine similarity" in text(started, "#dialog-body") and started.problems == []
