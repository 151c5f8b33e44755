"""The OpenAPI page in a real browser: a key is typed in, a request is sent, and nothing is fetched from elsewhere."""

from __future__ import annotations

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as shown
from selenium.webdriver.support.ui import WebDriverWait
from tests.serve.conftest import KEY, served, tiny_reward

from densepath.serve.settings import Access


@pytest.mark.slow
def test_a_request_is_tried_on_the_page(driver):
    wait = WebDriverWait(driver, 30)

    def click(selector: str) -> None:
        wait.until(shown.element_to_be_clickable((By.CSS_SELECTOR, selector))).click()

    with served(tiny_reward(), access=Access(api_key=KEY)) as url:
        driver.get(f"{url}/docs")
        click(".btn.authorize")
        wait.until(shown.element_to_be_clickable((By.CSS_SELECTOR, ".auth-container input"))).send_keys(KEY)
        click(".auth-container .authorize")
        click(".auth-container .btn-done")
        click("#operations-reward-score .opblock-summary-control")
        click("#operations-reward-score .execute")
        live = "#operations-reward-score .live-responses-table"
        wait.until(shown.text_to_be_present_in_element((By.CSS_SELECTOR, f"{live} tbody .response-col_status"), "200"))
        answer = json.loads(driver.find_element(By.CSS_SELECTOR, f"{live} .microlight").text)
        loaded = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [result["text"] for result in answer["results"]] == [" Seven.", "Seven."]
    assert all(name.startswith((url, "data:")) for name in loaded)
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
