"""The command `gpt2`: one module per subcommand, imported when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

from gpt2.system.errors import UserError, is_first_on_machine, run_command

# subcommand → its module (which has `Options` and `main`), and what it does
COMMANDS = {
    "generate": ("gpt2.generate", "continue a prompt with a trained model"),
    "evaluate": ("gpt2.evaluation.report", "loss, perplexity and bits per byte on held-out text"),
    "hellaswag": ("gpt2.evaluation.hellaswag", "how often a model finds the true one of four endings"),
    "plot": ("gpt2.logs.plot", "draw the losses of one log or several"),
    "watch": ("gpt2.web.watch", "follow the logs of runs in the browser, while they train"),
    "playground": ("gpt2.web.playground", "look inside a model in the browser, and let it write"),
    "plan": ("gpt2.planning.plan", "what a run needs and costs, before machines are rented"),
    "sweep": ("gpt2.training.sweep", "how fast a preset trains on this machine, by micro-batch"),
    "inspect": ("gpt2.planning.inspect", "build a preset's model, and show the shapes on the way through it"),
    "convert": ("gpt2.formats.convert", "write a model for transformers, llm.c, onnxruntime or llama.cpp"),
    "check": ("gpt2.data.check", "compare every shard of a folder with its index"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the subcommand that `words` (default: the command line) begin with. Raises UserError for an unknown one."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; give one of {', '.join(COMMANDS)}")
    import tyro

    module = importlib.import_module(COMMANDS[name][0])
    module.main(tyro.cli(module.Options, args=rest, prog=f"gpt2 {name}", console_outputs=is_first_on_machine()))


def help_text() -> str:
    """The subcommands, a line each."""
    lines = [f"  {name:10} {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(["usage: gpt2 COMMAND …      gpt2 COMMAND --help shows its flags", "", *lines])


def run() -> None:
    """The console script: a mistake is one line and exit status 2."""
    run_command(main)


if __name__ == "__main__":
    run()
