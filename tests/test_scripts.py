"""The scripts: started again until a run is complete, true in what they say a run takes, and with flags that exist."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import tyro
from conftest import ROOT, train_words

import fineweb
from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import make_config
from gpt2.logs.reader import read_log
from gpt2.planning.flops import flops_per_token, published_parameters
from gpt2.planning.plan import Options, make_plan

LANGUINI, README = ROOT / "scripts" / "languini.sh", ROOT / "scripts" / "README.md"


def loop(shards: Path, folder: Path, *flags: str, processes: int = 2, **variables: str) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GPUS": str(processes), "PAUSE": "0.2", "OMP_NUM_THREADS": "1"}
    environment |= variables
    words = ["bash", "scripts/train.sh", *map(str, train_words(shards, folder, *flags)[1:])]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]


LONG = ("--schedule.steps", "60", "--data.batch-tokens", "2048", "--system.micro-batch", "1", "--log.save-every", "10")


def test_the_loop_goes_on_after_everything_was_killed_and_ends_on_done(shards, tmp_path):
    folder = tmp_path / "run"
    script = loop(shards, folder, *LONG)
    wait_for(lambda: (folder / "step_000020").exists())
    for pid in descendants(script.pid):
        os.kill(pid, signal.SIGKILL)
    said, _ = script.communicate(timeout=90)
    assert script.returncode == 0, said
    assert (folder / "DONE").exists() and said.count("# command") >= 2
    assert list(read_log(folder / "log.txt").step) == list(range(60))
    again = loop(shards, folder, "--data.shards", "nowhere", TORCHRUN="false", PYTHON=sys.executable)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and said.startswith(f"{folder} is complete") and said.count("\n") == 1, said


def test_the_loop_ends_when_it_is_asked_to_or_gets_no_further(shards, tmp_path):
    folder = tmp_path / "run"
    script = loop(shards, folder, *LONG)
    wait_for(lambda: (folder / "log.txt").exists() and "| loss" in (folder / "log.txt").read_text())
    script.send_signal(signal.SIGTERM)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == 1 and "stopped: asked to by SIGTERM" in said and not (folder / "DONE").exists()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho an attempt\nexit 1\n")
    broken.chmod(0o755)
    script = loop(shards, tmp_path / "other", TORCHRUN=str(broken), PYTHON=sys.executable)
    said, _ = script.communicate(timeout=90)
    assert script.returncode == 1 and said.count("an attempt") == 3


def test_a_mistake_that_the_trainer_names_ends_the_loop_at_once(shards, tmp_path):
    (tmp_path / "log.txt").write_text("of another run\n")
    script = loop(shards, tmp_path)
    said, _ = script.communicate(timeout=90)
    assert script.returncode == 2 and said.count("error: ") == said.count(f"{tmp_path} holds another run") == 1, said


MISTAKES = {
    "--data.shards nowhere": "no train shards in 'nowhere'",
    "--log.overwrite": "--log.overwrite would train from step 0 after every restart; name another --log.folder",
    "--resume never": "--resume never would train from step 0 after every restart",
    "--schedule.steps 0": "--schedule.steps 0 is out of range",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_refused_in_one_line_before_torchrun_starts(shards, tmp_path, flags):
    script = loop(shards, tmp_path / "run", *flags.split(), TORCHRUN="false", PYTHON=sys.executable)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == 2 and said.startswith(f"error: {MISTAKES[flags]}") and said.count("\n") == 1, said


@pytest.mark.parametrize(("word", "status"), [("nonsense", 2), ("--help", 0)])
def test_the_loop_answers_with_the_name_of_the_trainer(word, status):
    environment = {**os.environ, "TORCHRUN": "false", "PYTHON": sys.executable}
    done = subprocess.run(["bash", "scripts/train.sh", word], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == status and "train_gpt2.py" in done.stderr and "-c" not in done.stderr.split()


def test_machines_that_meet_train_one_run(shards, tmp_path):
    """Two loops, each as on a machine of its own: one run of two processes, and both end on its marker."""
    lost = loop(shards, tmp_path / "run", NODES="2", HEAD="")
    assert lost.communicate(timeout=60)[0].endswith("give HEAD=node1\n") and lost.returncode == 2
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meeting = {"NODES": "2", "HEAD": "localhost", "PORT": str(port)}
    machines = [loop(shards, tmp_path / "run", processes=1, **meeting) for _ in range(2)]
    said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "2 process(es), 1 on this machine" in (tmp_path / "run" / "log.txt").read_text()


def slurm_job(folder: Path, *words: str | Path, **variables: str) -> subprocess.Popen:
    """scripts/train.sbatch with stand-ins: srun starts its command here, scontrol notes what is queued again."""
    stand_ins = {
        "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
        "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$QUEUE"; fi',
    }
    for name, line in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": ROOT, "SLURM_JOB_ID": os.getpid(), "SLURM_JOB_NODELIST": "localhost"}
    job |= {"SLURM_NNODES": 1, "SLURM_GPUS_ON_NODE": 1, "QUEUE": folder / "queue", "OMP_NUM_THREADS": 1}
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", ROOT / "scripts" / "train.sbatch", *map(str, words)],
        env={**os.environ, **{name: str(value) for name, value in job.items()}, "PATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_job_is_queued_again_until_its_run_is_complete(shards, tmp_path):
    folder = tmp_path / "run"
    words = train_words(shards, folder, *LONG, "--data.batch-tokens", "1024", "--system.micro-batch", "8")[1:]
    job = slurm_job(tmp_path, *words)
    wait_for(lambda: (folder / "log.txt").exists() and "| loss" in (folder / "log.txt").read_text())
    job.send_signal(signal.SIGUSR1)  # its time is almost up
    said, _ = job.communicate(timeout=150)
    assert job.returncode == 0 and "stopped: asked to by SIGUSR1" in said, said
    assert (tmp_path / "queue").read_text() == f"requeue {os.getpid()}\n"
    job = slurm_job(tmp_path, *words)
    said, _ = job.communicate(timeout=150)
    assert job.returncode == 0 and (folder / "DONE").exists(), said
    assert (tmp_path / "queue").read_text().count("requeue") == 1
    assert list(read_log(folder / "log.txt").step) == list(range(60))


def test_a_slurm_job_that_gets_no_further_is_not_queued_again(shards, tmp_path):
    words = train_words(shards, tmp_path / "run")[1:]
    job = slurm_job(tmp_path, *words, TORCHRUN="false", PYTHON=sys.executable)  # a torchrun that ends at once
    said, _ = job.communicate(timeout=150)
    assert job.returncode == 1 and "not queued again" in said, said
    assert not (tmp_path / "queue").exists()


SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.suffix in (".sh", ".sbatch"))
RUNS = [path for path in SCRIPTS if path.stem in PRESETS]  # languini.sh takes the size


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses_and_names_presets_that_exist(script):
    subprocess.run(["bash", "-n", script], check=True)
    named = re.findall(r"train\.(?:sh|sbatch) ([a-z][\w-]*)", script.read_text())
    assert set(named) <= set(PRESETS), named
    assert script not in RUNS or script.stem in named


def test_every_real_run_has_a_script():
    """A run of a billion tokens or more is one for rented machines."""
    real = [name for name, (_, run) in PRESETS.items() if run.data.batch_tokens * run.schedule.steps > 1e9]
    assert len(real) > 10
    assert {"languini" if name.startswith("languini") else name for name in real} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", RUNS, ids=lambda path: path.stem)
def test_a_script_says_what_its_run_takes(script):
    """Tokens, steps, parameters and FLOPs as gpt2.planning counts them; hours and dollars follow from these."""
    run = resolve(PRESETS[script.stem][1])
    config = make_config(run.model, run.parts)
    batch, steps = run.data.batch_tokens, run.schedule.steps
    flops = flops_per_token(config) * batch * steps
    text = script.read_text()
    assert f"{published_parameters(config) / 1e6:,.0f} M parameters" in text
    assert f"{batch * steps / 1e9:.1f} B: {steps:,} steps of {batch:,}\n" in text
    assert f"FLOPs      {flops:.2e}\n".replace("e+", "e") in text
    assert all(f"\n#   {word}" in text for word in ("published", "estimate", "measured"))
    part = text.partition("\n#   estimate")[2].partition("\n#   measured")[0]
    estimates = re.findall(r"8 × (\w100) 80GB: ([\d.,]+) (m?s) per step, ([\d.]+) (\w+), \$([\d.,]+)", part)
    assert estimates
    for gpu, step, unit, time_, hours, dollars in estimates:
        seconds = make_plan(Options(script.stem, gpus=8, hardware=gpu.lower())).step_time.total * steps
        assert float(step.replace(",", "")) == pytest.approx(seconds / steps * (1000 if unit == "ms" else 1), rel=0.03)
        assert float(time_) == pytest.approx(seconds / (3600 if hours == "hours" else 60), rel=0.03)
        price = {"A100": 14, "H100": 28}[gpu]
        assert float(dollars.replace(",", "")) == pytest.approx(seconds / 3600 * price, rel=0.03)


def test_languini_classes_have_the_steps_of_their_table():
    rows = re.findall(r"# +(\d+) h +(\w+) +(\d+) M +(\d+) +([\d,]+) +([\d.]+) B +(\S+)", LANGUINI.read_text())
    assert [int(row[0]) for row in rows] == [6, 12, 24, 48, 96]
    for hours, size, parameters, sequences, steps, tokens, flops in rows:
        run = PRESETS[f"languini-{size}"][1]
        run = replace(run, data=replace(run.data, batch_tokens=512 * int(sequences)))
        run = resolve(replace(run, languini=replace(run.languini, hours=float(hours))))
        config = make_config(run.model, run.parts)
        trained = run.data.batch_tokens * run.schedule.steps
        assert f"{run.schedule.steps:,}" == steps and f"{trained / 1e9:.1f}" == tokens
        assert f"{published_parameters(config) / 1e6:.0f}" == parameters
        assert f"{flops_per_token(config) * trained:.2e}".replace("e+", "e") == flops


def prepared(folder: Path, script: Path, *words: str, **variables: str) -> tuple[fineweb.Options, list[str]]:
    """What a script gives to fineweb.py and to torchrun, by stand-ins for both."""
    stand_ins = {
        "python": f'[[ $1 == *read_run.py ]] && echo {folder}/run || printf "%s\\n" "$@" > {folder}/python.txt',
        "torchrun": f'mkdir {folder}/run; touch {folder}/run/DONE; printf "%s\\n" "$@" > {folder}/torchrun.txt',
    }
    for name, line in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", script, *words], env=environment, check=True, capture_output=True)
    data, trainer = ((folder / f"{name}.txt").read_text().splitlines() for name in stand_ins)
    return tyro.cli(fineweb.Options, args=data[1:]), trainer[trainer.index("train_gpt2.py") + 1 :]


@pytest.mark.parametrize("script", RUNS, ids=lambda path: path.stem)
def test_a_script_makes_the_shards_that_its_run_reads(tmp_path, script):
    data, trainer = prepared(tmp_path, script, "--optim.lr", "1e-3")
    run = PRESETS[script.stem][1]
    assert trainer == [script.stem, "--optim.lr", "1e-3"]
    assert (str(data.out or f"data/{data.source}"), data.vocab_size) == (run.data.shards, run.model.vocab_size)
    if data.max_shards is not None:
        assert data.max_shards * data.shard_tokens > run.data.batch_tokens * run.schedule.steps


def test_languini_takes_a_size_and_hours(tmp_path):
    data, trainer = prepared(tmp_path, LANGUINI, "medium", "96", "--data.seed", "1", BOOKS="books/*.txt")
    words = "languini-medium --languini.hours 96 --log.folder runs/languini-medium-96h --data.seed 1"
    assert trainer == words.split()
    run = PRESETS["languini-medium"][1]
    assert (str(data.out), data.vocab_size, data.files) == (run.data.shards, run.model.vocab_size, ("books/*.txt",))
    mistakes = {"": "the size is ''", "huge 6": "'huge'", "small": "the hours are ''", "small 6": "BOOKS='books/*.txt'"}
    for line, says in mistakes.items():
        refused = subprocess.run(["bash", LANGUINI, *line.split()], capture_output=True, text=True)
        assert refused.returncode == 2 and says in refused.stderr and refused.stderr.count("\n") == 1


def test_the_readme_names_only_flags_that_exist():
    leaves = {
        f"--{group.name}.{leaf.name}".replace("_", "-")
        for group in fields(Run())
        if is_dataclass(getattr(Run(), group.name))
        for leaf in fields(getattr(Run(), group.name))
    }
    text = README.read_text()
    named = set(re.findall(r"--[a-z]+\.[a-z0-9-]+", text))
    assert len(named) > 50 and {flag.replace(".no-", ".") for flag in named} <= leaves, named - leaves
    assert set(re.findall(r"`(\w[\w-]*\.(?:sh|sbatch))", text)) == {path.name for path in SCRIPTS}


def test_both_pages_count_with_the_same_prices():
    readme, cloud = (" ".join(path.read_text().split()) for path in (README, README.with_name("cloud.md")))
    assert f"`gpt2 plan` counts US$ {Options('demo').price_per_gpu_hour} per GPU-hour" in readme
    assert set(re.findall(r"US\$ (\d+) (?:per hour )?for", readme + cloud)) == {"14", "28"} and "€" not in cloud
    assert set(re.findall(r"--price-per-gpu-hour ([\d.]+)", readme + cloud)) == {"1.75", "3.5"}  # 14 / 8, 28 / 8


@pytest.mark.skipif("LLM_C" not in os.environ, reason="LLM_C names no clone of llm.c")
def test_the_readme_has_every_flag_of_llm_c():
    source = Path(os.environ["LLM_C"], "train_gpt2.cu").read_text()
    flags = {f"-{a}{b}" for a, b in re.findall(r"argv\[i\]\[1\] == '(.)'(?: && argv\[i\]\[2\] == '(\w)')?", source)}
    flags |= {f"-{name}" for name in re.findall(r'fprintf\(stderr, "  -(\w+) <', source)}
    assert len(flags) > 35
    table = README.read_text().split("## llm.c's flags")[1].split("\n## ")[0]
    assert not [flag for flag in flags if not re.search(rf"`{flag}[` ]", table)]


def test_the_array_job_deals_parts(tmp_path):
    """With a stand-in for Python that prints what it is given."""
    words = ["bash", ROOT / "scripts" / "fineweb.sbatch", "--out", "data/x"]
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "PYTHON": "echo"}
    done = subprocess.run(words, env={**os.environ, **job}, capture_output=True, text=True, check=True)
    assert done.stdout == "fineweb.py --part 3 --parts 8 --out data/x\n"
