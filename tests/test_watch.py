"""`gpt2 watch`: logs that grow, shrink, disappear and come back, as data and in a real browser."""

import http.client
import json
import math
import os
import re
import shutil
import socket
import statistics
import struct
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, accessibility_faults, wait_for
from test_logs_and_plot import PEERS

from gpt2.logs.reader import published_log, read_log
from gpt2.logs.writer import RunLog, StepMetrics
from gpt2.system.errors import UserError
from gpt2.web.server import make_server
from gpt2.web.watch import Options, Watched, find_logs, main, short_names

LONG = 100_000
HOSTILE = "<img src=x onerror=alert(1)>"
HEADER = '# model: 8 parameters, {"vocab_size": 4096}\n# tokens: 81,920 = 40 steps of 2,048; 1.00e+09 FLOPs\n'


def step_lines(first: int, last: int, loss: float = 5.0, ms: float = 100.0) -> str:
    """Lines of a log about the steps from `first` to `last`, without the latter."""
    return "".join(
        f"step {i:4d} | loss: {loss + 4 * math.exp(-i / 10):.6f} | lr: 1.0000e-04 | norm: {0.5 + i % 7 / 10:.4f} | "
        f"dt: {ms:.2f}ms | tok/sec: {2048 / ms * 1e3:.2f}\n"
        for i in range(first, last)
    )


def add(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def write_run(folder: Path, steps: int = 20, sample: str = "Once upon a time", loss: float = 5.0) -> Path:
    """A run folder with a log of some steps, two validations and a sample; the path of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.write_text(HEADER + "step    0 | val loss: 9.0000 | bits/byte: 4.0000\n" + step_lines(0, steps, loss))
    add(log, f"step {steps:4d} | val loss: 5.5000 | bits/byte: 2.4444\n")
    add(log, f"step {steps:4d} | sample: {json.dumps(sample, ensure_ascii=False)}\n")
    return log


class Page:
    """What the page holds of a run: it asks as the page asks."""

    def __init__(self, watched: Watched, number: int = 0):
        self.watched, self.number, self.generation, self.counts = watched, number, 0, [0, 0, 0, 0]
        self.columns: dict[str, np.ndarray] = {}
        self.entries: list[dict] = []

    def update(self) -> int:
        """Ask for what is new; the bytes of the answer."""
        self.info = self.watched.answer_runs({})["runs"][self.number]
        asked = {"run": self.info["id"], "generation": str(self.generation), "since": ",".join(map(str, self.counts))}
        answer = self.watched.answer_data(asked)
        (length,) = struct.unpack("<I", answer[:4])
        header, at = json.loads(answer[4 : 4 + length]), 4 + length
        assert at % 8 == 0
        for table in header["tables"]:
            for name in table["columns"]:
                new = np.frombuffer(answer, dtype="<f8", offset=at, count=table["rows"])
                self.columns[name] = np.concatenate([self.columns.get(name, new)[: table["from"]], new])
                at += 8 * table["rows"]
        assert at == len(answer)
        self.entries = [] if header["generation"] != self.generation else self.entries
        self.entries += header["entries"]
        self.generation, self.counts = header["generation"], header["counts"]
        return len(answer)

    def shows(self, path: Path) -> bool:
        """Whether it holds what the log says, read from its beginning."""
        log = read_log(path)
        names = ("step", "loss", "lr", "norm", "tok_per_sec", "val_step", "val_loss", "bits_per_byte", "hellaswag")
        same = [np.array_equal(self.columns[name], getattr(log, name), equal_nan=True) for name in names]
        return all(same) and np.allclose(self.columns["hours"][1:] * 3600, log.seconds[:-1], equal_nan=True, rtol=0.01)


@pytest.mark.parametrize("name", [*PEERS, "ours"])
def test_a_log_read_piece_by_piece_is_the_log_read_at_once(tmp_path, name):
    path = tmp_path / "log.txt"
    text = PEERS.get(name) or (ROOT / "log.txt").read_text(encoding="utf-8")[:25_000]
    page = Page(Watched([path]))
    for start in range(0, len(text), 113):
        add(path, text[start : start + 113])
        page.update()
    os.utime(path, (1, 1))  # its last line has no end, and is not written any more
    page.update()
    assert page.shows(path) and page.info["source"] == read_log(path).source


BUFFERED = {
    "log.txt": step_lines(0, 1000),
    "build-nanogpt": "".join(
        f"{i} val {9 - i / 250:.4f}\n" * (i % 250 == 0) + f"{i} train {10 - i / 200:.6f}\n" for i in range(1000)
    ),
    "nanoGPT": "".join(f"iter {i}: loss {10 - i / 200:.4f}, time {100 + i}.00ms, mfu 35.12%\n" for i in range(1000)),
}


@pytest.mark.parametrize("name", BUFFERED)
def test_a_log_that_arrives_in_blocks_is_read_whole(tmp_path, name):
    """A process that writes to a pipe or a file writes 8,192 bytes at a time, and waits in the middle of a line."""
    path, text = tmp_path / "log.txt", BUFFERED[name]
    page = Page(Watched([path]))
    for start in range(0, len(text), 8192):
        add(path, text[start : start + 8192])
        os.utime(path, (1, start + 1))
        page.update()
    assert page.shows(path) and len(page.columns["step"]) == 1000 and page.info["event"] == ""


@pytest.mark.parametrize("cut", [0, 1, 6], ids=["no end of the line", "no quotation mark", "half of the text"])
@pytest.mark.parametrize("kind", ["sample", "skipped"])
def test_a_last_line_without_an_end_counts_once_when_it_goes_on(tmp_path, kind, cut):
    path = write_run(tmp_path / "run")
    page = Page(Watched([path]))
    line = f'step   20 | {kind}: "the newest"'
    add(path, line[: len(line) - cut])
    os.utime(path, (1, 1))
    page.update()
    assert len(page.entries) == 2 and "the" in page.entries[1]["text"]
    add(path, f"{line[len(line) - cut :]}\n" + step_lines(20, 22))
    for _ in range(2):
        page.update()
        text = "the newest" if kind == "sample" else '"the newest"'
        assert page.entries[1:] == [{"step": 20, "kind": kind, "text": text}]
        assert page.shows(path) and page.info["event"] == ""


def test_a_last_line_without_an_end_may_disappear(tmp_path):
    path = write_run(tmp_path / "run")
    page = Page(Watched([path]))
    size = path.stat().st_size
    add(path, step_lines(20, 21).rstrip())
    os.utime(path, (1, 1))
    page.update()
    assert page.columns["step"][-1] == 20
    os.truncate(path, size)
    page.update()
    assert page.columns["step"][-1] == 19 and page.shows(path)


def test_a_number_that_was_cut_off_is_read_again(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("validation loss: 10.9500\ntotal desired batch size: 524")
    os.utime(path, (1, 1))
    page = Page(Watched([path]))
    page.update()
    add(path, "288\n" + PEERS["build-nanogpt, printed"].split("0.2463\n")[1])
    page.update()
    assert page.info["batch_tokens"] == 524288


def test_few_lines_of_a_file_that_is_no_log_are_kept(tmp_path):
    path = tmp_path / "out.txt"
    page = Page(Watched([path]))
    for _ in range(3):
        add(path, "epoch 1, batch 2\n" * 10_000)
        page.update()
    (log,) = page.watched.logs.values()
    assert len(log.head) <= 200
    for line in HEADER.splitlines(keepends=True):  # only the second one has a form of the project
        add(path, line)
        page.update()
    add(path, step_lines(0, 3))
    page.update()
    assert page.shows(path) and page.info["vocab_size"] == 4096 and page.info["steps"] == 40


@pytest.mark.parametrize("step", ["nan", "inf", "9" * 5000], ids=["nan", "inf", "5000 digits"])
@pytest.mark.parametrize(
    "form",
    [
        "step {} | loss: 5.0 | lr: 1e-4 | norm: 1.0 | dt: 1.00ms | tok/sec: 2048.00",
        "step {} | val loss: 5.0000 | bits/byte: 2.0000",
        "step {} | sample: text",
    ],
)
def test_a_step_that_is_no_number_does_not_hide_the_lines_beside_it(tmp_path, form, step):
    path = write_run(tmp_path / "run")
    page = Page(Watched([path]))
    page.update()
    add(path, step_lines(20, 22) + form.format(step) + "\n" + step_lines(22, 24))
    page.update()
    assert page.columns["step"].tolist() == list(range(24)) and page.shows(path)


def test_only_new_lines_are_sent(tmp_path):
    path = write_run(tmp_path / "run", steps=2000)
    page = Page(Watched([path]))
    whole = page.update()
    generation = page.generation
    add(path, step_lines(2000, 2003))
    assert page.update() < 1000 < whole / 50
    assert page.shows(path) and page.generation == generation
    assert page.info["last"]["step"] == 2002 and page.info["steps"] == 40 and page.info["vocab_size"] == 4096


def test_a_line_that_is_being_written_is_not_half_read(tmp_path):
    path = write_run(tmp_path / "run")
    page = Page(Watched([path]))
    line = step_lines(20, 21)
    add(path, line[:22])
    page.update()
    assert page.info["last"]["step"] == 19
    add(path, line[22:])
    page.update()
    assert page.info["last"]["step"] == 20 and page.shows(path)


@pytest.mark.parametrize("steps", [12, 25, 38], ids=["shorter", "a little longer", "longer"])
def test_a_resumed_run_is_followed_on(tmp_path, steps):
    """Its log is cut back to a checkpoint and written on, perhaps beyond where it was, before the page asks again."""
    path = write_run(tmp_path / "run")
    page = Page(Watched([path]))
    page.update()
    kept = path.read_text().split("step   10 | loss")[0]
    with open(path, "r+") as file:  # the same file, as `truncate_log` does it
        file.truncate(len(kept))
    add(path, HEADER + step_lines(10, steps, loss=4.0))
    page.update()
    assert page.shows(path) and len(page.columns["step"]) == steps
    assert page.info["event"].endswith(f"step {steps - 1}") and page.info["state"] == "there"


@pytest.mark.parametrize("step", [5, 7])
def test_steps_that_another_project_made_again_count_once(tmp_path, step):
    path = tmp_path / "main.log"
    path.write_text("".join(f"s:{i} trl:{9 - i / 10:.4f} lr:0.000001 norm:1.00\n" for i in range(8)))
    page = Page(Watched([path]))
    page.update()
    add(path, f"s:{step} trl:8.1111 lr:0.000001 norm:1.00\n")
    page.update()
    assert page.shows(path) and len(page.columns["step"]) == step + 1 and page.columns["loss"][step] == 8.1111


def test_a_log_may_be_emptied_replaced_and_deleted(tmp_path):
    path = write_run(tmp_path / "run")
    page = Page(Watched([path]))
    page.update()
    path.write_text("")
    page.update()
    assert (
        page.info["state"] == "empty"
        and "emptied after step 20" in page.info["event"]
        and not page.columns["step"].size
    )
    path.unlink()
    page.update()
    assert page.info["state"] == "gone" and page.info["problem"] == f"{path} was deleted"
    write_run(tmp_path / "run", steps=30)
    page.update()
    assert page.info["state"] == "there" and not page.info["problem"] and page.shows(path)
    other = write_run(tmp_path / "other", steps=35)
    os.replace(other, path)
    page.update()
    assert page.shows(path) and "goes on at step 35" in page.info["event"]
    (tmp_path / "run" / "DONE").touch()
    page.update()
    assert page.info["state"] == "finished"


def test_a_deleted_log_keeps_its_curves(tmp_path):
    path = write_run(tmp_path / "run")
    page = Page(Watched([tmp_path]))
    page.update()
    shutil.rmtree(tmp_path / "run")
    page.watched.looked_at = 0.0
    page.update()
    assert page.info["state"] == "gone" and len(page.columns["step"]) == 20
    write_run(tmp_path / "run")
    page.update()
    assert page.info["state"] == "there" and page.shows(path)


def test_samples_and_notes_arrive_as_they_were_logged(tmp_path):
    text = f"{HOSTILE}\n\nΩ \u2028 \\"
    path = tmp_path / "log.txt"
    log = RunLog(path, active=True, steps=10)
    log.line("# tokens: 20,480 = 10 steps of 2,048; 1 FLOPs")
    log.step(0, StepMetrics(loss=9.0, lr=1e-4, norm=1.0, seconds=0.1, tokens=2048, epoch=0.1))
    log.samples(1, [text])
    log.skipped(1, "the loss is nan")
    log.norms(1, {"h.0": (1.0, 2.0, 3.0)})
    log.close()
    page = Page(Watched([path]))
    page.update()
    sample = {"step": 1, "kind": "sample", "text": text}
    assert page.entries == [sample, {"step": 1, "kind": "skipped", "text": "the loss is nan"}]
    add(path, f"step    2 | sample: {json.dumps('two')}\n" + step_lines(2, 3))
    page.update()
    assert page.entries[2:] == [{"step": 2, "kind": "sample", "text": "two"}]


def test_losses_that_are_not_numbers_do_not_stop_the_page(tmp_path):
    path = write_run(tmp_path / "run")
    add(path, "step   20 | loss: nan | lr: 1.0000e-04 | norm: inf | dt: 100.00ms | tok/sec: 20480.00\n")
    page = Page(Watched([path]))
    page.update()
    assert np.isnan(page.columns["loss"][-1]) and np.isinf(page.columns["norm"][-1])
    assert page.info["last"]["loss"] is None
    json.dumps(page.info, allow_nan=False)  # JavaScript reads no NaN


def test_a_loss_that_was_not_logged_is_not_called_infinite(tmp_path):
    path = tmp_path / "record.log"
    path.write_text("".join(f"step:{i}/9 val_loss:{9 - i}.0000 train_time:{i}000ms step_avg:1ms\n" for i in range(3)))
    watched = Watched([path], ["llmc-124m", "train-gpt-2"])
    record, llmc, lecture = (info["last"] for info in watched.answer_runs({})["runs"])
    assert record["val_loss"] == 7 and record["step"] == 1 and "loss" not in record
    assert llmc["val_loss"] == 3.2722 and "loss" not in llmc and lecture["loss"] == 7.34128


def test_runs_below_a_folder_are_found_when_they_begin(tmp_path):
    runs = tmp_path / "runs"
    watched = Watched([runs])
    (info,) = watched.answer_runs({})["runs"]
    assert info["state"] == "missing" and info["problem"] == f"{runs} holds no log yet"
    write_run(runs / "demo")
    write_run(runs / "sweep" / "lr-0.02")
    (runs / "demo" / "step_000010").mkdir()
    watched.looked_at = 0.0
    found = watched.answer_runs({})["runs"]
    assert [info["name"] for info in found] == ["demo", "lr-0.02"]
    assert find_logs(runs / "demo") == [runs / "demo" / "log.txt"]
    assert find_logs(runs / "v0.2") == [runs / "v0.2" / "log.txt"]  # the name of a folder that does not exist yet
    assert find_logs(runs / "main.log") == [runs / "main.log"]


def test_a_run_whose_name_is_not_utf8_is_drawn(tmp_path, monkeypatch, capsys):
    path = write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")))
    page = Page(Watched([tmp_path]))
    page.update()
    assert page.shows(path) and page.info["id"].isascii() and page.info["path"] == f"{tmp_path}/run\ufffd/log.txt"
    path.unlink()
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: (_ for _ in ()).throw(KeyboardInterrupt))
    main(Options((path,), port=0))
    assert "run\ufffd holds no log yet" in capsys.readouterr().out


def test_names_are_what_tells_runs_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_names([Path("log.txt")]) == ["log.txt"]
    assert short_names([tmp_path / "runs" / "demo" / "log.txt"]) == ["demo"]
    assert short_names([Path("a/x/log.txt"), Path("b/x/log.txt"), Path("b/main.log")]) == ["a/x", "b/x", "main.log"]


def test_published_runs_stand_beside_ours(tmp_path):
    path = write_run(tmp_path / "run")
    page = Page(Watched([path], ["llmc-124m"], x="tokens"), number=1)
    page.update()
    log = published_log("llmc-124m")
    assert page.info["name"] == log.name and page.info["state"] == "published" and page.info["batch_tokens"] == 524288
    assert page.columns["val_loss"].tolist() == log.val_loss.tolist()
    assert page.watched.answer_runs({})["x"] == "tokens"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options((ROOT / "pyproject.toml",)), "pyproject.toml holds no line of a log; give the log.txt of a run"),
        (Options(published=("gpt-5",)), "--with gpt-5 is not a published run; known: lecture"),
        (Options(port=70000), "--port 70000 is out of range"),
        (Options((Path("x" * 300),)), "x can't be read (File name too long); give a run folder or a log"),
    ],
    ids=["no log", "no such run", "no port", "long name"],
)
def test_mistakes_are_answered_by_a_sentence(options, message):
    with pytest.raises(UserError) as caught:
        main(options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_port_in_use_is_said_and_ctrl_c_ends_quietly(tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=f"port {taken.getsockname()[1]} can't be used"):
            main(Options((write_run(tmp_path / "run"),), port=taken.getsockname()[1]))
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: (_ for _ in ()).throw(KeyboardInterrupt))
    main(Options((tmp_path / "later",), port=0))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path / 'later'} holds no log yet; the page shows it as soon as it is there"
    assert out[1].startswith("http://127.0.0.1:") and "/watch.html (Ctrl-C ends it)" in out[1]


def test_only_watched_files_are_read(tmp_path):
    watched = Watched([write_run(tmp_path / "run")])
    watched.answer_runs({})
    with pytest.raises(UserError, match="is not a run that is watched"):
        watched.answer_data({"run": os.fsencode("/etc/passwd").hex()})
    run = os.fsencode(tmp_path / "run" / "log.txt").hex()
    whole = watched.answer_data({"run": run})
    for since in ("", "-1,0,0,0", "a", "9"):
        assert watched.answer_data({"run": run, "generation": "1", "since": since}) == whole


@pytest.fixture(scope="module")
def long_log(tmp_path_factory) -> Watched:
    """A log of 100,000 steps, which was read once."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text(HEADER + step_lines(0, LONG))
    watched = Watched([path])
    watched.answer_runs({})
    return watched


@pytest.mark.alone
def test_a_new_line_of_a_long_log_costs_little(long_log):
    page = Page(long_log)
    page.update()
    path = long_log.runs[0]
    seconds = []
    for i in range(5):
        add(path, step_lines(LONG + i, LONG + i + 1))
        start = time.perf_counter()
        assert page.update() < 1000
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.05 and page.columns["step"][-1] == LONG + 4


# In a browser

NAMELESS = """
    const name = (one) => one.ariaLabel || one.labels?.[0]?.textContent.trim() || one.textContent.trim()
        || document.getElementById(one.getAttribute('aria-labelledby'))?.textContent;
    const all = [...document.querySelectorAll('button, input, select, a, [tabindex], [role=img]')];
    return all.filter((one) => !name(one)).map((one) => one.outerHTML);
"""
# how many pixels of the first chart have the colour of the run, exactly
PIXELS = """
    const canvas = document.querySelector('#charts canvas'), style = getComputedStyle(canvas);
    const colour = style.getPropertyValue(arguments[0]).trim().match(/\\w\\w/g).map((digits) => parseInt(digits, 16));
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    let found = 0;
    for (let i = 0; i < data.length; i += 4)
        found += colour.every((value, j) => data[i + j] === value) && data[i + 3] > 0;
    return found;
"""
DRAWN = "return performance.getEntriesByName('update').length > 0"
TEXT = "return document.body.innerText"
MARKUP = "return [document.querySelectorAll('img, script:not([src])').length, window.alerted]"


@pytest.fixture
def opened(browser):
    """Open the page of some watched runs; afterwards, nothing was logged to the console or asked of another host."""
    servers = []

    def open_page(watched: Watched) -> str:
        server = make_server(watched.answers(), 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser.get_log("browser")
        browser.get(f"{address}watch.html")
        wait_for(lambda: browser.execute_script(DRAWN))
        return address

    yield open_page
    address = f"http://127.0.0.1:{servers[-1].server_port}/"
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked and all(name.startswith((address, "data:")) for name in asked)
    assert browser.get_log("browser") == []
    browser.get("about:blank")
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_line_appears_without_reloading_and_hostile_text_is_text(tmp_path, browser, opened):
    markup = f"<b>bold</b> {HOSTILE} <script>alert(2)</script>"
    write_run(tmp_path / "runs" / "plain", loss=4.0)
    path = write_run(tmp_path / "runs" / HOSTILE, sample=markup)
    opened(Watched([tmp_path / "runs"], ["llmc-124m"]))
    browser.execute_script("window.marker = 1; window.alert = () => { window.alerted = true }")
    text = browser.execute_script(TEXT)
    assert HOSTILE in text and markup in text and "llm.c 124M, val of FineWeb" in text
    assert browser.execute_script(NAMELESS) == []
    spoken = browser.find_element("css selector", "[role=status]")
    assert "step 19 of 40, loss" in spoken.text
    assert browser.execute_script(PIXELS, "--query") > 50 and browser.execute_script(PIXELS, "--key") > 50
    assert "vocabulary of 4,096 tokens" in text and "circles" in text
    add(path, step_lines(20, 24) + f"step   24 | sample: {json.dumps('the newest ' + markup)}\n")
    wait_for(lambda: f"{HOSTILE}: step 23 of 40" in browser.execute_script(TEXT), 10)
    assert f"the newest {markup}" in browser.execute_script(TEXT)
    assert browser.execute_script("return window.marker") == 1
    assert browser.execute_script(MARKUP) == [0, None]
    browser.find_element("name", "full").click()  # up to step 19,560, beside which these runs are a pixel wide
    assert browser.execute_script(PIXELS, "--query") < 50 < browser.execute_script(PIXELS, "--value")
    browser.find_element("name", "full").click()
    box = browser.find_element("css selector", "#runs tbody tr:nth-child(2) input")
    box.click()
    wait_for(lambda: browser.execute_script(PIXELS, "--key") == 0, 10)


def test_a_run_without_times_leaves_the_others_in_the_chart_of_hours(tmp_path, browser, opened):
    write_run(tmp_path / "run")
    (tmp_path / "main.log").write_text("".join(f"s:{n} trl:{5 - n / 9:.4f}\n" for n in range(5)))  # llm.c's own log
    opened(Watched([tmp_path / "run", tmp_path / "main.log"], x="hours"))
    assert browser.execute_script(PIXELS, "--query") > 50
    assert "how long a step took" in browser.execute_script(TEXT)


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("", "/watch.html", 200),
        ("", "/", 200),
        ("elsewhere.example", "/watch.html", 403),
        ("", "/..%2fserver.py", 404),
        ("", "/%00", 404),
    ],
)
def test_only_this_machine_is_answered_and_only_with_pages(host, path, status):
    """A page of another site could have a name of its own point to 127.0.0.1."""
    with make_server({}, 0, "watch.html") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = http.client.HTTPConnection("127.0.0.1", server.server_port)
        asked.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
        assert asked.getresponse().status == status
        server.shutdown()


def test_the_page_is_readable_in_light_and_dark_and_fits_a_phone(tmp_path, browser, opened):
    write_run(tmp_path / "runs" / "one")
    opened(Watched([tmp_path / "runs"], ["llmc-124m"]))
    assert accessibility_faults(browser) == []
    size = browser.get_window_size()
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_window_size() == size


def test_a_deleted_log_is_said_and_the_page_goes_on_when_it_is_back(tmp_path, browser, opened):
    path = write_run(tmp_path / "run")
    opened(Watched([path]))
    path.unlink()
    wait_for(lambda: f"{path} was deleted. The page shows it as soon" in browser.execute_script(TEXT), 10)
    assert browser.execute_script(PIXELS, "--query") > 50
    write_run(tmp_path / "run", steps=8)
    wait_for(lambda: "step 7 of 40" in browser.execute_script(TEXT), 10)
    text = browser.execute_script(TEXT)
    assert "was deleted" not in text and "the log went back from step 20 to step 8" in text


def test_charts_are_read_and_zoomed_with_keys_and_pointer(tmp_path, browser, opened):
    from selenium.webdriver import ActionChains, Keys

    opened(Watched([write_run(tmp_path / "run", steps=101)]))
    chart = browser.find_element("css selector", ".overlay")
    readout = "return document.querySelector('.readout').innerText"
    whole = "return !document.getElementById('whole').hidden"
    browser.execute_script("arguments[0].focus()", chart)
    chart.send_keys(Keys.END)
    assert browser.execute_script(readout).split() == ["step", "101", "training", "5.0002", "validation", "5.5"]
    assert "5.0002" in browser.find_element("id", "spoken").text
    chart.send_keys("+")
    assert browser.execute_script(whole)
    chart.send_keys(Keys.ESCAPE)
    assert not browser.execute_script(whole)
    ActionChains(browser).move_to_element(chart).click_and_hold().move_by_offset(200, 0).release().perform()
    assert browser.execute_script(whole)
    browser.find_element("id", "whole").click()
    for name, label in (("tokens", "207k"), ("hours", "0.0028")):
        browser.find_element("css selector", f"[value={name}]").click()
        browser.execute_script("arguments[0].focus()", chart)
        chart.send_keys(Keys.END)
        assert label in browser.execute_script(readout)
    browser.find_element("css selector", "[value=bits]").click()
    chart.send_keys(Keys.END)
    assert "2.4444" in browser.execute_script(readout)


def test_a_zoom_is_spoken_and_its_end_gives_the_focus_to_a_chart(tmp_path, browser, opened):
    opened(Watched([write_run(tmp_path / "run", steps=101)]))
    chart, spoken = browser.find_element("css selector", ".overlay"), browser.find_element("id", "spoken")
    browser.execute_script("arguments[0].focus()", chart)
    chart.send_keys("+")
    assert spoken.text == "step 25.25 to 75.75"
    chart.send_keys("0")
    assert spoken.text == "the whole run"
    chart.send_keys("+")
    browser.find_element("id", "whole").click()
    assert browser.switch_to.active_element == chart


def test_a_tap_shows_the_values(tmp_path, browser, opened):
    opened(Watched([write_run(tmp_path / "run", steps=101)]))
    box = browser.find_element("css selector", ".overlay").rect
    point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind, points in (("touchStart", [point]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    readout = browser.find_element("css selector", ".readout")
    assert readout.is_displayed() and "training" in readout.text


def test_a_chart_is_named_after_the_runs_in_it(tmp_path, browser, opened):
    write_run(tmp_path / "run")
    (tmp_path / "main.log").write_text("".join(f"s:{n} trl:{5 - n / 9:.4f}\n" for n in range(5)))
    opened(Watched([tmp_path / "run", tmp_path / "main.log"]))
    labels = browser.execute_script("return [...document.querySelectorAll('.overlay')].map((one) => one.ariaLabel)")
    assert labels[:2] == ["Loss by step of run, main.log", "Learning rate by step of run"]
    browser.find_element("css selector", "[value=hours]").click()
    label = browser.find_element("css selector", ".overlay").get_attribute("aria-label")
    assert label == "Loss by hours of training of run"


def test_bits_per_byte_are_chosen_where_vocabularies_differ(tmp_path, browser, opened):
    path = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other")
    other.write_text(other.read_text().replace("4096", "2048"))
    opened(Watched([path, other]))
    assert browser.find_element("css selector", "[value=bits]").is_selected()
    assert "bits per byte" in browser.find_element("css selector", "figcaption").text
    browser.find_element("css selector", "#runs tbody tr:nth-child(2) input").click()
    wait_for(lambda: browser.find_element("css selector", "[value=nats]").is_selected(), 10)


def test_the_remaining_time_and_a_long_silence_are_said(tmp_path, browser, opened):
    path = tmp_path / "log.txt"
    path.write_text(HEADER + step_lines(0, 20, ms=60_000))
    opened(Watched([path]))
    assert "tokens/s, about 20 min left" in browser.find_element("id", "newest").text
    assert browser.find_element("css selector", "#runs td.state").text == "training"
    os.utime(path, (1, 1))
    wait_for(lambda: "left" not in browser.find_element("id", "newest").text, 10)
    assert re.fullmatch(r"quiet for \d{5} d \d+ h", browser.find_element("css selector", "#runs td.state").text)


def test_a_run_that_diverged_says_so(tmp_path, browser, opened):
    path = write_run(tmp_path / "run")
    add(path, "step   20 | loss: nan | lr: 1.0000e-04 | norm: nan | dt: 100.00ms | tok/sec: 20480.00\n")
    add(path, "step   21 | val loss: nan | bits/byte: nan\n")
    opened(Watched([path], ["llmc-124m"]))
    assert (
        "step 20 of 40, loss not finite, validation loss not finite, 20,480"
        in browser.find_element("id", "newest").text
    )
    rows = [row.text for row in browser.find_elements("css selector", "#runs tr")]
    assert "Loss Validation" in rows[0].replace("\n", " ")
    assert "training 20 not finite not finite" in rows[1] and "published 19,560 – 3.2722" in rows[2]


def test_a_log_of_validations_alone_has_steps(tmp_path, browser, opened):
    path = tmp_path / "log.txt"
    path.write_text(HEADER + "step   40 | val loss: 5.5000 | bits/byte: 2.4444\n")
    opened(Watched([path]))
    assert browser.find_element("id", "newest").text.endswith(": step 40 of 40, validation loss 5.5000")
    browser.find_element("css selector", "#runs input").click()
    wait_for(lambda: browser.find_element("id", "newest").text == "No run is chosen.", 10)


def test_a_run_with_any_name_is_drawn(tmp_path, browser, opened):
    path = write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")))
    opened(Watched([path]))
    assert browser.execute_script(PIXELS, "--query") > 50
    shown = browser.find_element("css selector", "#runs .name")
    assert shown.text == "run\ufffd" and shown.get_attribute("title") == f"{tmp_path}/run\ufffd/log.txt"


def test_only_a_server_that_does_not_answer_is_called_that(tmp_path, browser, opened):
    path = write_run(tmp_path / "run")
    opened(Watched([path]))
    silence = "gpt2 watch does not answer"
    problems = browser.find_element("id", "problems")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **conditions})
    wait_for(lambda: silence in problems.text, 10)
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **conditions})
    wait_for(lambda: not problems.text, 10)
    assert {entry["source"] for entry in browser.get_log("browser")} == {"network"}
    browser.execute_script("document.getElementById('newest').id = 'renamed'")
    errors = []
    wait_for(lambda: errors.extend(browser.get_log("browser")) or len(errors) > 1, 10)  # the page goes on asking
    assert all("TypeError" in error["message"] for error in errors) and silence not in problems.text
    browser.execute_script("document.getElementById('renamed').id = 'newest'")
    add(path, step_lines(20, 21))
    wait_for(lambda: "step 20 of 40" in browser.execute_script(TEXT), 10)
    browser.get_log("browser")


@pytest.mark.alone
def test_a_hundred_thousand_lines_are_drawn_and_followed_smoothly(long_log, browser, opened):
    start = time.monotonic()
    opened(long_log)
    assert time.monotonic() - start < 10 and browser.execute_script(PIXELS, "--query") > 500
    path, took = long_log.runs[0], []
    for i in range(5):
        add(path, step_lines(LONG + 10 + i, LONG + 11 + i))
        wait_for(lambda i=i: f"step {LONG + 10 + i:,}" in browser.execute_script(TEXT), 10)
        took.append(browser.execute_script("return performance.getEntriesByName('update').at(-1).duration"))
    assert statistics.median(took) < 100, took
