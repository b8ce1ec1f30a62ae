"""A server that has torch and this project loaded, and forks a process for every command that it is sent.

A new interpreter needs five seconds to import torch; a fork needs none. Each request is a line of JSON (`argv`, `cwd`,
`env`, `stdout` and `stderr` as paths) on a Unix socket. The answer is the process id, and when the process has ended,
its exit status.

    python tests/fork_server.py SOCKET MODULE …      modules to import first; `gpt2` stands for all of its modules
"""

import contextlib
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import traceback
from typing import Any


def preload(name: str) -> None:
    """Import a module; of the package gpt2, all modules. What is not installed is left to the command that needs it."""
    with contextlib.suppress(ModuleNotFoundError):
        module = importlib.import_module(name)
        if name == "gpt2":
            for each in pkgutil.walk_packages(module.__path__, "gpt2."):
                if not each.name.endswith("__main__"):
                    preload(each.name)


def serve(path: str) -> None:
    """Fork a supervisor for every connection, until the process that started the server ends, which closes stdin."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no supervisor becomes a zombie
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                supervise(connection)
                os._exit(0)
            connection.close()


def supervise(connection: socket.socket) -> None:
    """Fork the process that a request describes; report its id, wait for it, report its status."""
    with connection, connection.makefile("rw") as stream:
        request = json.loads(stream.readline())
        pid = os.fork()
        if pid == 0:
            connection.close()
            run(request)
        stream.write(f"{pid}\n")
        stream.flush()
        _, status = os.waitpid(pid, 0)
        stream.write(f"{os.waitstatus_to_exitcode(status)}\n")


def run(request: dict[str, Any]) -> None:
    """Be the process that `python argv…` would have been."""
    for name, descriptor in ((os.devnull, 0), (request["stdout"], 1), (request["stderr"], 2)):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    own = os.environ["PYTHONPATH"].split(":")
    sys.path[:] = [*request["env"]["PYTHONPATH"].split(":"), *(path for path in sys.path[1:] if path not in own)]
    os.environ.clear()
    os.environ.update(request["env"])
    first, *rest = request["argv"]
    module = rest.pop(0) if first == "-m" else None
    sys.argv = [module or first, *rest]
    sys.path.insert(0, request["cwd"] if module else os.path.dirname(os.path.abspath(first)))
    status = 0
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(first, run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # without the shutdown of an interpreter whose threads were not forked


if __name__ == "__main__":
    for name in sys.argv[2:]:
        preload(name)
    serve(sys.argv[1])
