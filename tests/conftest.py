"""What several tests share: text, shards, and commands that run as a person runs them, on forked processes."""

import atexit
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.data.shards import write_shard

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    *("--model.init", "d6", "--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "32"),
    *("--model.vocab-size", "257", "--model.block-size", "16", "--data.batch-tokens", "256"),
    *("--optim.lr", "3e-3", "--schedule.steps", "20", "--schedule.warmup", "4"),
    *("--system.precision", "fp32", "--system.compile", "off"),
    *("--system.device", "cpu", "--eval.tokens", "512", "--eval.every", "10", "--eval.sample-every", "0"),
]
LECTURE = [  # the demo with the lecture's optimiser, in place of Muon
    *("--optim.kind", "adamw", "--optim.embedding-lr", "None", "--optim.vector-lr", "None"),
    *("--optim.weight-decay", "0.1", "--schedule.kind", "cosine"),
]
PRELOADED = ("torch", "torch._dynamo", "matplotlib.pyplot", "train_gpt2", "fineweb", "gpt2")
# after which a command hangs (two that compile took over 120), and others of a failed process are killed
SECONDS, GRACE = 300, 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def make_shards(folder: Path) -> Path:
    """A folder of byte tokens: a val shard and train shards of odd lengths, so that sequences cross their ends."""
    text = np.random.default_rng(0)
    for name, tokens in (("val_000000", 1500), ("train_000001", 1013), ("train_000002", 911), ("train_000003", 1601)):
        write_shard(folder / f"{name}.npy", np.minimum(text.geometric(0.05, tokens), 256).astype(np.uint16))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of a test's own."""
    (tmp_path / "data").mkdir()
    return make_shards(tmp_path / "data")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when `condition` is true; fail if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def environment(root: Path = ROOT) -> dict[str, str]:
    """The environment of commands: the repository at `root` first, one thread, output at once."""
    paths = {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **paths}


@functools.cache
def fork_server(preloaded: tuple[str, ...]) -> str:
    """The socket of a fork server with these modules, which is started when it is first needed."""
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "socket")
    words = [sys.executable, str(Path(__file__).parent / "fork_server.py"), path, *preloaded]
    server = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return path


@dataclass
class Process:
    """A forked process that runs `python words…`."""

    words: list[str]
    root: Path
    preloaded: tuple[str, ...]
    env: dict[str, str]
    stdout: Path
    stderr: Path
    pid: int = 0
    returncode: int | None = None
    connection: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX))

    def __post_init__(self) -> None:
        """Start it."""
        self.connection.connect(fork_server(self.preloaded))
        request = {"argv": self.words, "env": self.env, "cwd": str(self.root)}
        request |= {"stdout": str(self.stdout), "stderr": str(self.stderr)}
        self.stream = self.connection.makefile("rw")
        self.stream.write(json.dumps(request) + "\n")
        self.stream.flush()
        self.pid = int(self.stream.readline())

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            self.connection.settimeout(0.001)
            try:
                self.returncode = int(self.stream.readline())
            except (TimeoutError, OSError):
                # a stream that has timed out can't be read again; a second one takes its place
                self.stream = self.connection.makefile("rw")
        return self.returncode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Run:
    """A command on one process or several, which find each other as they do under torchrun."""

    def __init__(
        self, *words: str | Path, processes: int = 1, root: Path = ROOT, preloaded: tuple[str, ...] = PRELOADED
    ):
        self.folder, self.failed_at = Path(tempfile.mkdtemp()), 0.0
        self.words, env = [str(word) for word in words], environment(root)
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": "0"}
            env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self.workers = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            out, err = self.folder / f"out{rank}", self.folder / f"err{rank}"
            out.touch()
            err.touch()
            self.workers.append(Process(self.words, root, preloaded, env | own, out, err))

    def is_running(self) -> bool:
        """Whether a process is left. When one has failed, the others get a few seconds to end, too, and are killed."""
        if any(worker.poll() for worker in self.workers):
            self.failed_at = self.failed_at or time.monotonic()
            if time.monotonic() - self.failed_at > GRACE:
                for worker in self.workers:
                    worker.kill()
        return any(worker.poll() is None for worker in self.workers)

    def output(self, name: str) -> str:
        """What all processes have written to `out` or `err` so far."""
        return "".join((self.folder / f"{name}{rank}").read_text() for rank in range(len(self.workers)))

    def wait(self) -> subprocess.CompletedProcess[str]:
        """The result, when all processes have ended."""
        try:
            wait_for(lambda: not self.is_running(), SECONDS)
        finally:
            for worker in self.workers:
                worker.kill()
        status = next((worker.returncode for worker in self.workers if worker.returncode not in (0, -9)), 0)
        status = status or next((worker.returncode for worker in self.workers if worker.returncode), 0)
        result = subprocess.CompletedProcess(self.words, status, self.output("out"), self.output("err"))
        shutil.rmtree(self.folder)
        return result


def run_python(*words: str | Path, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script (or `-m module`) of this repository to its end, on forked processes."""
    done = Run(*words, processes=processes).wait()
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def command(*words: str | Path, processes: int = 1, restarts: int = 0) -> dict:
    """How to run a script (or `-m module`) in interpreters of its own, under torchrun for several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += [f"--max-restarts={restarts}"]
    return {"args": [*launcher, *map(str, words)], "cwd": ROOT, "env": environment(), "text": True}


def train_words(shards: Path, folder: Path, *flags: str, preset: str = "demo") -> list[str | Path]:
    """`train_gpt2.py PRESET` on a tiny model, writing into `folder`."""
    tiny = [*TINY, *LECTURE] if preset == "demo" else TINY
    return ["train_gpt2.py", preset, *tiny, "--data.shards", shards, "--log.folder", folder, *flags]


def train(shards: Path, folder: Path, *flags: str, preset: str = "demo", processes: int = 1, check: bool = True):
    """That, run to its end."""
    return run_python(*train_words(shards, folder, *flags, preset=preset), processes=processes, check=check)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium without a window, 1200 pixels wide; tests that need it are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium with chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1200,1600")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    started.set_script_timeout(60)
    yield started
    started.quit()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on a plain web server, as a hosting site serves it, for this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def until(browser, script: str, *arguments: object, seconds: float = 60) -> None:
    """Wait until a script of the page says true."""
    wait_for(lambda: browser.execute_script(script, *arguments), seconds)


# texts whose contrast with what lies below them is under 4.5 (WCAG 2.2, AA)
CONTRAST = """
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const over = (below, colour) => {  // a colour of any notation, on another
        canvas.fillStyle = `rgb(${below})`;
        canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const backgrounds = each => {
        const below = each.parentElement ? backgrounds(each.parentElement) : [255, 255, 255];
        return over(below, getComputedStyle(each).backgroundColor);
    };
    const light = colour => colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const found = [];
    for (const each of document.querySelectorAll("body *")) {
        const text = [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!text || !each.getClientRects().length || each.closest("[aria-disabled=true], .visually-hidden")) continue;
        const style = getComputedStyle(each), below = backgrounds(each);
        const own = light(over(below, each instanceof SVGElement ? style.fill : style.color));
        const [high, low] = [own, light(below)].sort((a, b) => b - a);
        const ratio = (high + 0.05) / (low + 0.05);
        const name = `${each.tagName}.${each.getAttribute("class")}`;
        if (ratio < 4.5) found.push(`${name} ${ratio.toFixed(2)} ${each.textContent}`);
    }
    return found;
"""


# what axe-core finds that is serious; it does not read all colours, so contrast is measured above
AXE = """
    const done = arguments[0], options = {preload: false, rules: {"color-contrast": {enabled: false}}};
    axe.run(document, options).then(({violations}) => done(
        violations.filter(each => ["serious", "critical"].includes(each.impact))
            .flatMap(({id, nodes}) => nodes.map(({html}) => `${id} ${html}`))));
"""


def accessibility_faults(browser) -> list[str]:
    """What makes a page hard to read or to use, in light or in dark: low contrast, and what axe-core finds.

    axe-core comes with a package that is not imported: pip install --no-deps axe-playwright-python. Without it, the
    contrast alone is measured.
    """
    axe = importlib.util.find_spec("axe_playwright_python")
    if axe and axe.origin:
        browser.execute_script(Path(axe.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        faults = browser.execute_script(CONTRAST) + (browser.execute_async_script(AXE) if axe else [])
        found += [f"{scheme}: {fault}" for fault in faults]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    return found
