import re
import shutil
import subprocess

import pytest

from densepath.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH")
def test_a_browser_opens_the_page_without_a_complaint(run_dir, tmp_path):
    page = write_report(run_dir).html
    picture = tmp_path / "page.png"
    command = [CHROMIUM, *FLAGS.split(), "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--window-size=1280,4000"]
    drawn = subprocess.run(
        [*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert picture.stat().st_size > 50_000
    assert [line for line in drawn.stderr.splitlines() if "CONSOLE" in line] == []
    dumped = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert "2 of 2 shown" in dumped.stdout  # the script ran: its hash is the one that the policy allows
    assert re.search(r'class="dp-heat"[^>]* tabindex="0"', dumped.stdout)
