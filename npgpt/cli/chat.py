"""`npgpt chat`: a conversation with a trained GPT."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from npgpt.cli.arguments import parse
from npgpt.errors import NpgptError
from npgpt.generation.chat import Conversation
from npgpt.ranges import check_range
from npgpt.terminal import printable, warn
from npgpt.training.loading import load_model

HELP = "Type a message and Enter. Ctrl-C stops an answer; /reset forgets all, /quit or Ctrl-D ends."


@dataclass(frozen=True)
class Options:
    """Talk with a trained GPT. It remembers what was said, as far as its context reaches; answers come word
    by word, and Ctrl-C stops one. A model that has no chat template is given a transcript to go on with."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
    system: str = ""
    """What the model is told before all else."""
    max_new_tokens: int = 256
    """Tokens of an answer, at most."""
    do_sample: bool = True
    """Draw tokens; --no-do-sample takes the most likely one each time."""
    temperature: float = 0.7
    """Below 1 keeps to what is likely, above 1 dares more."""
    top_k: int = 50
    """Draw from the k most likely tokens only; 0 for all."""
    top_p: float = 0.9
    """Draw from the smallest set of likely tokens that has this much probability."""
    repetition_penalty: float = 1.0
    """Above 1 avoids the tokens that were there before."""
    seed: int = 0
    """The same seed and the same messages give the same answers."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "chat", arguments)
    check_range("max_new_tokens", options.max_new_tokens, least=1)
    loaded  = load_model(options.model, options.checkpoint, options.device, warn)
    conversation = Conversation(
        loaded.model, loaded.tokenizer, loaded.model.config.block_size, loaded.chat_template, options.system,
        options.max_new_tokens, loaded.named_tokens, eos_token_id=loaded.eos_token_ids or None,
        do_sample=options.do_sample, temperature=options.temperature, top_k=options.top_k,
        top_p=options.top_p, repetition_penalty=options.repetition_penalty, seed=options.seed)
    typed = sys.stdin.isatty()
    if typed:
        print(HELP, file=sys.stderr)
    while (text := _read(typed)) is not None:
        if text == "/quit":
            break
        if text == "/reset":
            conversation.reset()
        elif text:
            _answer(conversation, text)
    return 0


def _read(typed: bool) -> str | None:
    """The next message, or None at the end."""
    while True:
        try:
            return input("\n> " if typed else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not typed:
                raise
            print("\n/quit or Ctrl-D ends", file=sys.stderr)


def _answer(conversation: Conversation, text: str) -> None:
    show  = printable if sys.stdout.isatty() else str
    parts = conversation.answer(text)
    try:
        first = True
        for part in parts:
            print(show(part.lstrip() if first else part), end="", flush=True)
            first = first and not part.strip()
        print()
    except KeyboardInterrupt:
        parts.close()
        print(" …")
    except NpgptError as error:
        warn(str(error))
