"""The page in Chromium: what a reader does with it, and what axe says of it."""

import json
import threading

import pytest
from browser import chromium, go, launched, opened
from report_runs import HOSTILE, make_hostile_run, make_run, training, write, write_phase

from pact_lightning.report.content import Reader
from pact_lightning.report.page import page as page_of
from pact_lightning.report.server import ViewServer

pytest.importorskip("playwright", reason="needs playwright, of the extra `test`")
pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")

ONE = "/rollout/0.phase-0000.1"
TWO = "/compare/0.validation-0000.1/0.validation-0002.1"
ROUTES = ["/", "/rollouts", "/rollouts?by=task", ONE, TWO]


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run and its page, two runs and theirs, a hostile run and its page."""
    folder = tmp_path_factory.mktemp("runs")
    run, other = make_run(folder / "mine"), make_run(folder / "other", gain=4)
    hostile = make_hostile_run(folder / "hostile")
    for name, named in {"one": [run], "two": [f"pact={run}", f"grpo={other}"], "hostile": [hostile]}.items():
        text = page_of(name, "now", Reader([str(each) for each in named]).read())
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: f"file://{folder / name}.html" for name in ("one", "two", "hostile")}


@pytest.fixture
def show(browser, files):
    """Opens a page; at the end no page may have complained or asked for anything but itself."""
    contexts, pages = [], []

    def open_(name="one", route="/", **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options))
        pages.append(opened(contexts[-1], files[name], route))
        return pages[-1]

    yield open_
    complaints = [page.complaints for page in pages]
    asked = {url.partition("#")[0] for page in pages for url in page.asked}
    for context in contexts:
        context.close()
    assert complaints == [[]] * len(pages)
    assert asked <= set(files.values())


def test_the_overview_has_scores_curves_and_their_numbers(show):
    page = show()
    assert page.inner_text(".headline") == "0.0%→50.0%"
    charts = page.eval_on_selector_all("[data-chart]", "all => all.map((each) => each.dataset.chart)")
    assert {"success-validation-0", "loss", "level", "stops", "seconds"} <= set(charts)
    assert (
        page.get_attribute('[data-chart="loss"] svg', "aria-label")
        == "Loss by term: loss from 1.5 to 1; SFT from 0.5 to 0.25"
    )
    page.click('[data-chart="reward"] summary')
    page.wait_for_selector('[data-chart="reward"] tbody')
    assert page.inner_text('[data-chart="reward"] tbody').split() == ["0", "1.5", "1", "2.5"]
    page.hover('[data-chart="loss"] .picture svg')
    assert "optimiser step" in page.inner_text('[data-chart="loss"] .tip')


def test_filters_search_and_sort_are_in_the_link(show):
    page = show(route="/rollouts?set=phase-0001&solved=true")
    assert page.inner_text(".status").startswith("4 of 24")
    page.fill("#search", "looking up TRAIN-3")
    page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('1 of')")
    assert "q=looking" in page.url
    assert page.inner_text(".spacer .task a") == "train-3 #0"
    page.select_option('[name="solved"]', "")
    page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('2 of')")
    page.click(".clear")
    page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('24 of')")
    page.select_option('[name="sort"]', "high")
    page.wait_for_function("() => document.querySelector('.spacer .score').textContent === '2.00'")


def test_any_score_is_shown_sorted_and_filtered_by_its_range(show):
    page = show(route="/rollouts?score=solve_f1&min=0.6")
    assert page.inner_text(".status").startswith("2 of 24"), "rollouts of training have no such score"
    page.fill('[name="min"]', "")
    page.fill('[name="max"]', "0.5")
    page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('6 of 24')")
    assert "max=0.5" in page.url
    page.fill('[name="max"]', "")
    page.select_option('[name="score"]', "calls")
    page.select_option('[name="sort"]', "high")
    page.wait_for_function("() => document.querySelector('.spacer .score').textContent === '1.00'")
    assert "calls" in page.inner_text(".heads")
    page.fill('[name="min"]', "1")
    page.fill('[name="max"]', "1")
    page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('8 of 24')")  # bounds count


def test_a_trajectory_says_where_it_stands_and_can_be_taken_along(show):
    page = show(route=ONE, permissions=["clipboard-read", "clipboard-write"])
    assert "phase-0000.jsonl, line 1" in page.inner_text(".one .chips")
    assert page.inner_text(".expert h2 >> nth=0") == "Reference answer"
    page.click("#copy")
    page.wait_for_function("() => document.getElementById('copy').textContent !== 'Copy JSON'")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["task"], copied["rewards"], len(copied["turns"])) == ("train-0", [1.0, 1.0], 2)


def test_keys_walk_through_the_list_and_the_trajectories(show):
    page = show(route="/rollouts?set=phase-0000")
    page.wait_for_selector(".spacer .row")
    for key in ("j", "ArrowDown", "k", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(".one h1")
    assert page.inner_text(".one h1").startswith("train-0 ")
    assert [each.inner_text() for each in page.query_selector_all(".turn > h2")][:1] == [
        "Turn 1\nreward 1.00\nadvantage +0.50"
    ]
    page.keyboard.press("j")
    page.wait_for_function("() => document.querySelector('.one h1').textContent.includes('sample 1')")
    page.keyboard.press("f")
    assert page.eval_on_selector_all(".conversation details.part", "all => all.some((each) => each.open)") is False
    page.keyboard.press("Escape")
    page.wait_for_selector(".list")
    assert "set=phase-0000" in page.url
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_the_expert_trace_stands_beside_with_its_levels(show):
    page = show(route="/rollout/0.phase-0001.1")
    assert "In phase 1 the level was L2" in page.inner_text(".expert")
    levels = page.eval_on_selector_all(".expert .level", "all => all.map((each) => each.textContent)")
    marked = page.eval_on_selector_all(".expert .chunk.active .level", "all => all.map((each) => each.textContent)")
    assert marked
    assert marked == [level for level in levels if level in ("L1", "L2")]


def test_tokens_are_coloured_by_their_gap(show):
    page = show(route=ONE)
    page.keyboard.press("h")
    assert "color-mix" in page.get_attribute(".conversation .turn >> nth=0", "style")
    page.keyboard.press("h")
    read = "all => all.map((token) => [token.textContent, token.title, token.style.background])"
    tokens = page.eval_on_selector_all('.tokens[data-heat="gap"] .tok', read)
    assert [text for text, *_ in tokens] == ["Look", "ing ", "<call>", "8053"]
    assert tokens[1][1] == "gap −2.00 nats, reasoning"
    assert "--low" in tokens[1][2]
    assert "--high" in tokens[3][2]
    assert "transparent" in tokens[2][2]
    page.keyboard.press("h")
    assert page.get_attribute(".tokens .tok >> nth=3", "title") == "probability 0.135, answer"


def test_two_checkpoints_stand_side_by_side(show):
    page = show(route="/rollout/0.validation-0000.1")
    page.select_option("#beside", "0.validation-0002.1")
    page.wait_for_selector(".two")
    titles = page.eval_on_selector_all(".two h2 small", "all => all.map((each) => each.textContent.trim())")
    assert [title.split(", sample")[0] for title in titles] == ["validation, before", "validation, after 2"]
    assert [len(each.query_selector_all(".turn")) for each in page.query_selector_all(".two > section")] == [2, 2]


def test_two_runs_lie_over_each_other(show):
    page = show("two")
    lines = page.query_selector_all('[data-chart^="success"] path.curve')
    assert len(lines) == 2
    titles = page.eval_on_selector_all('[data-chart^="stops"] h3', "all => all.map((each) => each.textContent)")
    assert titles == ["Stop reasons: pact", "Stop reasons: grpo"]
    assert "+50.0 points" in page.inner_text(".scores tbody tr >> nth=1")
    go(page, "/rollouts?run=1")
    page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('24 of 48')")


def test_hostile_text_stays_text(show):
    page = show("hostile", "/rollouts")
    page.wait_for_selector(".spacer .row")
    for number in range(len(HOSTILE)):
        go(page, f"/rollout/0.phase-0000.{number + 1}")
        page.wait_for_selector(".conversation .turn")
    assert page.evaluate("window.taken") is None
    assert page.query_selector("main img, main script") is None
    go(page, "/rollout/0.phase-0000.3")
    assert "␛[31mred␛[0m" in page.inner_text(".conversation")
    go(page, "/rollout/0.phase-0000.5")
    assert "⟨U+202E⟩txt.exe" in page.inner_text(".conversation")
    go(page, "/rollout/0.phase-0000.7")
    assert "980,000 characters are left out" in page.inner_text(".conversation")
    go(page, "/")
    page.click(".notes summary")
    page.wait_for_selector(".notes li")
    assert "line 10: is not valid JSON" in page.inner_text(".notes")


def test_of_two_thousand_rows_only_those_in_view_are_there(browser, tmp_path):
    for phase in range(5):
        records = [training(f"train-{n}", sample, phase) for n in range(100) for sample in range(4)]
        write(tmp_path / "run" / "trajectories" / f"phase-{phase:04d}.jsonl", records)
    text = page_of("many", "now", Reader([str(tmp_path / "run")]).read())
    (tmp_path / "many.html").write_text(text)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = opened(context, f"file://{tmp_path / 'many.html'}", "/rollouts")
    page.wait_for_selector(".spacer .row")
    assert page.inner_text(".status").startswith("2,000 of 2,000")
    assert page.eval_on_selector_all(".spacer .row", "all => all.length") < 60
    page.evaluate("document.querySelector('.scroller').scrollTop = 1e9")
    page.wait_for_selector('.spacer .row[aria-rowindex="2001"]')
    assert page.eval_on_selector_all(".spacer .row", "all => all.length") < 60
    context.close()


def test_a_new_phase_appears_while_it_is_watched(browser, tmp_path):
    run = make_run(tmp_path / "mine", phases=1)
    with ViewServer(Reader([str(run)]), "mine") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        context = browser.new_context()
        page = opened(context, server.address, "/rollouts?set=phase-0001")
        assert page.inner_text(".status").startswith("0 of 16")
        write_phase(run, 1)
        page.wait_for_function("() => document.querySelector('.status').textContent.startsWith('8 of 24')")
        assert page.inner_text("#live").startswith("live")
        go(page, "/rollout/0.phase-0001.1")
        assert page.inner_text(".one h1").startswith("train-0")
        assert page.complaints == []
        context.close()
        server.shutdown()
        thread.join()


def test_dark_follows_the_system_and_the_button(show):
    page = show(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert dark == "rgb(17, 21, 28)"
    assert light == "rgb(246, 247, 249)"
    page.keyboard.press("t")
    assert page.evaluate(colour) == dark


def test_a_narrow_screen_needs_no_scrolling_sideways(show):
    page = show(viewport={"width": 375, "height": 700})
    for route in ROUTES:
        go(page, route)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, route


@pytest.mark.parametrize(("scheme", "routes"), [("light", ROUTES), ("dark", ["/rollouts", ONE])])
def test_axe_finds_nothing(show, scheme, routes):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = show(color_scheme=scheme)
    for route in routes:
        go(page, route)
        page.wait_for_selector(".card, .spacer .row, .turn")
        if route == ONE:
            page.select_option("#heat", "gap")
        found = axe.run(page).response["violations"]
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found] == [], route
