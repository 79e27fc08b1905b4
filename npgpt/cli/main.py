"""`npgpt COMMAND …`: finds the command's file, and turns errors into one line and an exit status.

Exit status: 0 done, 1 an error (one line on stderr), 2 a wrong command line, 130 interrupted.
"""

import difflib
import importlib
import io
import os
import sys
from pathlib import Path

import npgpt
from npgpt.errors import NpgptError, UsageError
from npgpt.terminal import silence

WINDOWS = os.name == "nt"       # it has no locks, signals and folders of the kind that a run relies on

COMMANDS = {
    "train": "train a GPT on a text, from scratch or from where a run stopped",
    "finetune": "teach a GPT that is there: texts, answers, conversations, classes",
    "sample": "let a trained GPT write",
    "chat": "talk with a trained GPT",
    "evaluate": "measure what a GPT has learned: loss, right endings, what it writes, classes",
    "export": "write a run's model, or a GGUF file, in Hugging Face's layout, for transformers to read",
    "prepare": "turn text into token shards: clean, without duplicates, split and encoded",
    "verify": "say whether the loss of a run of a known preset is normal",
    "plot": "draw the curves of one or several runs as a picture",
    "inspect": "show what a GPT makes of a text: attention, logit lens, surprisal, saliency",
    "bench": "time training and generation on this machine",
    "tokenizer": "train a tokenizer; encode, decode and show with any",
    "gradcheck": "check every op's, layer's and model's gradients against differences",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command in `arguments` (by default the process's) and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _prepare_streams()
    try:
        try:
            return _run(arguments)
        finally:
            _flush()
    except UsageError as error:
        return _fail(str(error), 2)
    except NpgptError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:                        # the reader of our output has gone: nobody to tell
        return 1
    except MemoryError:
        return _fail("out of memory: use a smaller model or batch", 1)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        return _fail("no more threads can be started: see what `ulimit -u` allows", 1)
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"npgpt {npgpt.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(f"unknown command {name!r}{f'; did you mean {near[0]!r}?' if near else ''} "
                         "(npgpt --help lists them)")
    if WINDOWS:
        raise NpgptError("the commands of npgpt run on Linux and macOS: on Windows, run them within WSL")
    return importlib.import_module(f"npgpt.cli.{name}").run(rest)


def _flush() -> None:
    """Raises OSError where what was printed cannot be written, which at the exit would be a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


def _prepare_streams() -> None:
    """A closed one is one without anything, and what an encoding cannot show is shown as a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))                   # noqa: SIM115
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _fail(sentence: str, status: int) -> int:
    try:
        print(f"npgpt: {' '.join(sentence.split())}", file=sys.stderr)
    except OSError:
        silence(sys.stderr)
    return status


def _help() -> str:
    lines = ["npgpt: a GPT that can be read down to the last derivative and really trained", "",
             "usage: npgpt COMMAND [OPTION …]      npgpt COMMAND --help lists a command's options", ""]
    lines += [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, "", "Begin with: npgpt train"])
