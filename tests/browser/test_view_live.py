"""The page of a running server in a real browser: typing, scoring, comparing, paging, and what goes wrong."""

from __future__ import annotations

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.browser.driver import resize
from tests.serve.conftest import KEY, serving
from tests.serve.view_app import model_choices, scored_file

from densepath.serve.settings import Access
from densepath.serve.view import VIEW_LIMITS, create_view_app

HOSTILE = "<img src=x onerror=alert(1)></div><script>alert(2)</script>"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A file and models to look at."""
    folder = tmp_path_factory.mktemp("view")
    return {"file": scored_file(folder), "choices": model_choices(folder)}


@pytest.fixture(scope="module")
def url(shown):
    with serving(create_view_app(**shown, max_characters=400), VIEW_LIMITS) as address:
        yield address


@pytest.fixture
def page(driver, url):
    """The page, freshly opened and filled; at the end the browser has nothing to complain of."""
    resize(driver, 1280, 1000)
    driver.get("about:blank")
    driver.get_log("browser")  # of whatever was open before
    driver.get(url)
    until(driver, lambda: len(rows(driver)) == 20)
    yield driver
    assert [entry for entry in driver.get_log("browser") if "status of 422" not in entry["message"]] == []


def find(page, css):
    return page.find_element(By.CSS_SELECTOR, css)


def until(page, condition):
    WebDriverWait(page, 20, poll_frequency=0.05).until(lambda _: condition())


def rows(page):
    """Row numbers shown, in order; read in one go, since they may be replaced meanwhile."""
    return page.execute_script("return [...document.querySelectorAll('#rows > article')].map(a => a.dataset.row)")


def heading(page):
    return page.execute_script("return document.querySelector('#result h3')?.textContent ?? ''")


def type_text(page, prompt, *answers):
    for field, text in zip(("#prompt", "#answer-a", "#answer-b"), (prompt, *answers), strict=False):
        find(page, field).send_keys(text)


def test_two_answers_are_typed_scored_aligned_and_kept(page, shown, downloads):
    type_text(page, "Say 3:", "3, 4", "3, 5")
    Select(find(page, "#ref")).select_by_visible_text(shown["choices"].ref[1])
    find(page, "#score").click()
    until(page, lambda: heading(page).startswith("A against B"))
    assert find(page, "#error").is_displayed() is False
    text = find(page, "#result").text
    assert f"reference {shown['choices'].ref[1]}" in text
    expected = shown["choices"].view(
        "Say 3:", ["3, 4", "3, 5"], sft=shown["choices"].sft[0], ref=shown["choices"].ref[1],
        dense_reward="baseline_relative", chat=True,
    ).comparison  # fmt: skip
    assert f"reward {expected.a.reward:+.2f} {expected.b.reward:+.2f}".replace("-", "−") in text
    columns = page.find_elements(By.CSS_SELECTOR, "#result .dp-col")
    assert sum("dp-changed" in column.get_dom_attribute("class") for column in columns) == 1
    ActionChains(page).move_to_element(columns[0]).perform()
    first, second = find(page, "#token").text.split("\n")
    assert (first[:3], second[:3]) == ("A  ", "B  ")
    find(page, "#save").click()
    until(page, lambda: (downloads / "view.html").is_file())
    assert "A against B" in (downloads / "view.html").read_text(encoding="utf-8")


def test_one_hostile_answer_is_scored_with_the_keys_alone_and_shown_as_it_is(page):
    field = find(page, "#prompt")
    field.send_keys(HOSTILE, Keys.TAB)
    page.switch_to.active_element.send_keys(HOSTILE)
    page.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    until(page, lambda: heading(page).startswith("answer"))
    assert find(page, "#result .dp-turn .dp-heat").text.startswith(HOSTILE)
    assert find(page, "#result .dp-prompt").text == HOSTILE
    assert page.execute_script("return document.querySelectorAll('#result img, #result script').length") == 0


@pytest.mark.slow
def test_a_reading_that_needs_no_reference(page):
    Select(find(page, "#dense-reward")).select_by_value("logprob")
    assert not find(page, "#ref").is_enabled()
    type_text(page, "Say 3:", "3")
    find(page, "#score").click()
    until(page, lambda: heading(page).startswith("answer"))
    assert "reward logprob" in find(page, "#result").text
    assert "reference" not in find(page, "#result .dp-note").text


@pytest.mark.slow
def test_what_goes_wrong_is_said_and_can_be_mended(page):
    find(page, "#score").click()  # the browser itself asks for a prompt
    assert page.switch_to.active_element == find(page, "#prompt")
    type_text(page, "z" * 500, "z" * 300)  # the box takes 400; together they do not fit the context of 256
    assert len(find(page, "#prompt").get_property("value")) == 400
    find(page, "#score").click()
    until(page, lambda: find(page, "#error").is_displayed())
    assert "but the models' context holds 256; shorten or leave it out" in find(page, "#error").text
    find(page, "#prompt").clear()
    find(page, "#answer-a").clear()
    type_text(page, "Say 3:", "3")
    find(page, "#score").click()
    until(page, lambda: heading(page).startswith("answer"))
    assert not find(page, "#error").is_displayed()


def test_rows_are_paged_sorted_bounded_and_searched_by_the_server(page):
    assert rows(page)[0] == "1"
    assert find(page, "#count").text == "Rows 1 to 20 of 45"
    assert not find(page, "#previous").is_enabled()
    for first, last in (("21", "40"), ("41", "45")):
        find(page, "#next").click()
        until(page, lambda first=first: rows(page)[0] == first)
        assert rows(page)[-1] == last
    assert not find(page, "#next").is_enabled()
    find(page, "#previous").click()
    until(page, lambda: rows(page)[0] == "21")
    Select(find(page, "#sort")).select_by_value("reward")
    until(page, lambda: rows(page)[0] == "2")  # the first page of the new order
    Select(find(page, "#direction")).select_by_value("down")
    until(page, lambda: rows(page)[0] == "45")
    find(page, "#low").send_keys("5.6")
    until(page, lambda: rows(page) == ["45", "44"])
    find(page, "#low").clear()
    find(page, "#words").send_keys("zwei")
    until(page, lambda: rows(page) == ["3"])
    assert find(page, "#count").text == "1 found in rows 1 to 45 of 45"


def test_two_rows_are_picked_and_compared(page):
    find(page, "[data-pick=a][data-number='1']").click()
    assert find(page, "[data-pick=a][data-number='1']").get_dom_attribute("aria-pressed") == "true"
    assert heading(page) == ""
    find(page, "[data-pick=b][data-number='2']").send_keys(Keys.ENTER)
    until(page, lambda: heading(page) == "A: right against B: wrong")
    changed = [column.text.split("\n") for column in page.find_elements(By.CSS_SELECTOR, "#result .dp-changed")]
    assert changed == [["5", "7"]]
    until(
        page, lambda: page.execute_script("return document.querySelector('#result').getBoundingClientRect().top") < 60
    )


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_for_the_session(driver, shown):
    with serving(create_view_app(**shown, access=Access(api_key=KEY)), VIEW_LIMITS) as address:
        driver.get(address)
        until(driver, lambda: find(driver, "#key-form").is_displayed())
        assert "scores.jsonl" not in driver.page_source
        find(driver, "#key").send_keys("wrong", Keys.ENTER)
        until(driver, lambda: find(driver, "#key-error").text == "That is not the key.")
        find(driver, "#key").clear()
        find(driver, "#key").send_keys(KEY, Keys.ENTER)
        until(driver, lambda: len(rows(driver)) == 20)
        assert not find(driver, "#key-form").is_displayed()
        driver.refresh()
        until(driver, lambda: len(rows(driver)) == 20)
    find(driver, "#next").click()
    until(
        driver, lambda: find(driver, "#count").text == "The server does not answer. Is densepath view still running?"
    )
