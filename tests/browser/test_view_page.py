"""The page of scored completions in a real browser: pointing, keys, clicks and typing."""

from __future__ import annotations

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.browser.driver import resize
from tests.report.scored_files import ROWS

from densepath.report.compare import compare
from densepath.report.scored_row import scored_row
from densepath.report.view import ScoreView


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    rows = [scored_row(value, number, "scores.jsonl") for number, value in enumerate(ROWS, 1)]
    view = ScoreView(rows=tuple(rows), comparison=compare(rows[0], rows[1]), title="scores.jsonl")
    return view.save(tmp_path_factory.mktemp("view") / "view.html").html.as_uri()


@pytest.fixture
def page(driver, address):
    """The page, freshly opened; at the end the browser has nothing to complain of."""
    resize(driver, 1280, 1000)
    driver.get("about:blank")
    driver.get_log("browser")  # of whatever was open before
    driver.get(address)
    yield driver
    assert driver.get_log("browser") == []


def find(page, css):
    return page.find_element(By.CSS_SELECTOR, css)


def line(page):
    """What the line at the foot of the window says; None while it is hidden."""
    output = find(page, "#token")
    return output.text if output.is_displayed() else None


def numbers(page):
    """Row numbers of the rows that can be seen, in order."""
    return [
        item.get_dom_attribute("data-row")
        for item in page.find_elements(By.CSS_SELECTOR, "#rows > article")
        if item.is_displayed()
    ]


def test_pointing_at_a_token_tells_its_numbers(page):
    token = page.find_element(By.XPATH, "//*[@id='rows']/article[2]//b[contains(@class,'n') and text()='7']")
    assert line(page) is None
    ActionChains(page).move_to_element(token).perform()
    assert "“7”" in line(page)
    assert "reward −4.000" in line(page)
    assert "sum so far −3.500 nats" in line(page)


def test_a_completion_is_read_with_the_keys_alone(page):
    heat = find(page, "#rows > article:nth-child(2) .dp-heat")
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        if page.switch_to.active_element == heat:
            break
    assert page.switch_to.active_element == heat
    assert "“It”" in line(page)
    heat.send_keys(Keys.ARROW_RIGHT)
    assert "“␣costs”" in line(page)
    heat.send_keys(Keys.END)
    assert "“<|im_end|>”" in line(page)
    heat.send_keys(Keys.ARROW_RIGHT)  # there is no further one
    assert "“<|im_end|>”" in line(page)
    heat.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert "“␣costs”" in line(page)
    heat.send_keys(Keys.ESCAPE)
    assert line(page) is None


def test_a_worst_span_leads_to_its_tokens(page):
    resize(page, 1280, 500)
    link = find(page, "#rows > article:nth-child(2) .dp-worst a")
    assert link.text == "−4.00 7 token 4"
    link.click()
    run = find(page, "#r1-0-0")
    top = page.execute_script("return arguments[0].getBoundingClientRect().top", run)
    assert 0 < top < 500
    assert page.current_url.endswith("#r1-0-0")
    WebDriverWait(page, 5).until(lambda _: "reward −4.000" in (line(page) or ""))
    assert find(page, ".dp-heat b.on").text == "7"
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)  # the keys go on from there
    assert "“␣4”" in line(page)


def test_pointing_at_the_curve_finds_the_token(page):
    plot = find(page, "#rows > article:nth-child(2) .dp-plot")
    width = plot.size["width"]
    # Six runs: the fourth one's sum is drawn at 4/6 of the width.
    ActionChains(page).move_to_element_with_offset(plot, round(width * (4 / 6 - 1 / 2)), 0).perform()
    assert "“7”" in line(page)
    dot = find(page, "#rows > article:nth-child(2) .dp-dot")
    assert dot.is_displayed()
    left = page.execute_script("return arguments[0].style.left", dot)
    assert float(left.removesuffix("%")) == pytest.approx(100 * 4 / 6, abs=0.1)


def test_two_answers_stand_token_under_token(page):
    columns = page.find_elements(By.CSS_SELECTOR, ".dp-pair .dp-col")
    assert [column.text.split("\n") for column in columns][2:4] == [[" 4", " 4"], ["5", "7"]]
    for column in columns:
        above, below = (token.rect for token in column.find_elements(By.TAG_NAME, "b"))
        assert abs(above["x"] - below["x"]) < 1
        assert below["y"] > above["y"] + above["height"] / 2
    assert ["dp-changed" in column.get_dom_attribute("class") for column in columns] == [False] * 3 + [True] + [
        False
    ] * 2
    ActionChains(page).move_to_element(columns[3]).perform()
    first, second = line(page).split("\n")
    assert first.startswith("A  “5”")
    assert second.startswith("B  “7”")
    assert len([dot for dot in page.find_elements(By.CSS_SELECTOR, ".dp-both .dp-dot") if dot.is_displayed()]) == 2
    find(page, ".dp-pair").send_keys(Keys.ARROW_LEFT)
    assert line(page).startswith("A  “␣4”")


def test_rows_are_sorted_bounded_and_searched(page):
    assert numbers(page) == ["1", "2", "3"]
    Select(find(page, "#sort")).select_by_value("lowest")
    assert numbers(page) == ["2", "3", "1"]
    Select(find(page, "#direction")).select_by_value("down")
    assert numbers(page) == ["1", "3", "2"]
    find(page, "#low").send_keys("-2")
    assert numbers(page) == ["1", "3"]
    find(page, "#high").send_keys("-1")
    assert numbers(page) == ["3"]
    assert find(page, "#count").text == "1 of 3 rows shown"
    find(page, "#low").clear()
    find(page, "#high").clear()
    find(page, "#words").send_keys("COST 7")  # letter by letter: nothing holds it
    assert numbers(page) == []
    find(page, "#words").send_keys(*[Keys.BACKSPACE] * 2)
    assert numbers(page) == ["1", "2"]
    find(page, "#words").send_keys(Keys.ENTER)  # sends no form away
    assert numbers(page) == ["1", "2"]


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out_of_a_narrow_window(page, dark):
    resize(page, 360, 700, dark)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    ink, back = page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    brightness = [sum(map(int, color[4:-1].split(","))) for color in (ink, back)]
    assert (brightness[0] > brightness[1]) == dark
