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

pytestmark = pytest.mark.alone

NAME = "00_start_here.ipynb"
NOTEBOOK = f"[...(window.jupyterapp?.shell.widgets('main') ?? [])].find(w => w.context?.path === '{NAME}')"
READY = f"return {NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = f"""
    jupyterapp.shell.activateById({NOTEBOOK}.id);
    jupyterapp.commands.execute('notebook:clear-all-cell-outputs');
    jupyterapp.commands.execute('notebook:run-all-cells');
"""
CELLS = f"return {NOTEBOOK}.content.model.toJSON().cells"
FINISHED = f"""
    const cells = {NOTEBOOK}.content.model.toJSON().cells.filter(cell => cell.cell_type === 'code');
    const failed = cells.some(cell => cell.outputs.some(output => output.output_type === 'error'));
    return failed || cells.every(cell => cell.execution_count);
"""
SHOW = f"{NOTEBOOK}.content.scrollToItem(arguments[0], 'center')"
DRAWN = f"""
    const images = [...{NOTEBOOK}.content.widgets[arguments[0]].node.querySelectorAll('.jp-OutputArea img')];
    return images.length > 0 && images.every(image => image.naturalWidth > 300 && image.clientWidth > 300)
"""


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


def until(browser, script: str, *arguments, seconds: float = 60) -> None:
    """Wait until a script of the page says true. Raises AssertionError where it takes longer."""
    deadline = time.monotonic() + seconds
    while not browser.execute_script(script, *arguments):
        assert time.monotonic() < deadline, script
        time.sleep(0.5)


def test_the_first_notebook_opens_and_runs_in_jupyterlab(address, browser):
    """Open, run all: no error, every cell executed, every figure drawn."""
    assert f"notebooks/{NAME}" in (ROOT / "Makefile").read_text()
    browser.get(f"{address}lab/tree/{NAME}")
    until(browser, READY)
    browser.execute_script(RUN_ALL)
    until(browser, FINISHED, seconds=240)
    cells = browser.execute_script(CELLS)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = {i: cell.get("outputs", []) for i, cell in enumerate(cells)}
    assert not [out for one in outputs.values() for out in one if out["output_type"] == "error"]
    shown = {i: [out["data"].get("text/html", "") for out in one if "data" in out] for i, one in outputs.items()}
    figures = [i for i, one in shown.items() if any('src="data:image/png' in "".join(html) for html in one)]
    assert len(figures) >= 3
    for i in figures:
        browser.execute_script(SHOW, i)
        until(browser, DRAWN, i)
