"""JupyterLab as a reader has it, in a real browser; skipped where there is no Chromium with its driver."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with chromedriver here")

RUN_ALL = "const done = arguments[0]; jupyterapp.commands.execute('notebook:run-all-cells').then(done, done)"
CELLS = "return jupyterapp.shell.currentWidget.content.model.toJSON().cells"
READY = "return Boolean(window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel)"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the notebooks use: they write beside themselves."""
    for name in ("notebooks", "gpt2", "train_gpt2.py", "fineweb.py", "log.txt"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def address(repository: Path):
    """A JupyterLab server on the notebooks, as `make lab` starts it, but without opening a browser."""
    command = [sys.executable, "-m", "jupyter", "lab", "--notebook-dir", "notebooks", "--no-browser", "--allow-root"]
    command += ["--port", "0", "--LabApp.expose_app_in_browser=True", "--IdentityProvider.token="]
    runtime = repository / "runtime"
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(repository / "config")}
    with open(repository / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=repository, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (found := list(runtime.glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < deadline, (repository / "lab.log").read_text()
            time.sleep(0.2)
        time.sleep(1)
        yield json.loads(found[0].read_text())["url"]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def browser(tmp_path: Path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1200,1600")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(240)
    yield driver
    driver.quit()


def test_the_first_notebook_opens_and_runs_in_jupyterlab(address, browser, tmp_path):
    """Open, run all: no error, every cell executed, figures on the page."""
    assert "notebooks/00_start_here.ipynb" in (ROOT / "Makefile").read_text()
    browser.get(f"{address}lab/tree/00_start_here.ipynb")
    deadline = time.monotonic() + 90
    while not browser.execute_script(READY):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    browser.execute_async_script(RUN_ALL)
    cells = [cell for cell in browser.execute_script(CELLS) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    browser.save_screenshot(str(tmp_path / "lab.png"))
    drawn = "return [...document.querySelectorAll('.jp-OutputArea img')].filter(i => i.naturalWidth > 300).length"
    assert browser.execute_script(drawn) > 0
