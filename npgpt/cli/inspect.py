"""`npgpt inspect`: what a trained GPT makes of a text, as a page for the browser or as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from npgpt.cli.arguments import parse, unescaped
from npgpt.cli.progress import progress_bar
from npgpt.errors import ConfigError, DataError
from npgpt.files import check_output
from npgpt.inspection.page import write_page
from npgpt.inspection.pictures import check_matplotlib
from npgpt.inspection.report import make_report
from npgpt.inspection.report_picture import write_picture
from npgpt.terminal import warn
from npgpt.training.loading import load_model

SUFFIXES = (".html", ".png")


@dataclass(frozen=True)
class Options:
    """Look into a trained GPT as it reads a text: attention maps, logit lens, surprisal and saliency, as one
    HTML page or as a picture."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_MODEL")]
    """The folder of a run or of a model in Hugging Face's layout, the name of one on its hub, or a GGUF
    file."""
    text: str
    """What the model reads; \\n is a newline. At most 256 tokens, and no more than the model's context."""
    out: Path
    """The file to write, replaced if it is there: .html for a page that needs no network, .png for a picture
    by matplotlib."""
    target: int | None = None
    """Position of the token whose prediction saliency explains, from 1; by default what the model expects
    after the text. A page has them all, and opens with this one."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), latest, or the number of a step."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(arguments: list[str]) -> int:
    options = parse(Options, "inspect", arguments)
    page    = options.out.suffix.lower() == ".html"
    _check(options)
    loaded  = load_model(options.model, options.checkpoint, options.device, warn)
    tokens  = [*loaded.tokenizer.prefix, *loaded.tokenizer.encode_ordinary(unescaped(options.text))]
    target  = len(tokens) if options.target is None else options.target
    with progress_bar("predictions explained") as progress:
        report = make_report(Path(options.model).resolve().name, loaded.model, loaded.tokenizer, tokens,
                             target, page, progress)
    if page:
        write_page(report, options.out)
    else:
        write_picture(report, options.out)
    print(f"{'page' if page else 'picture'}: {options.out}")
    return 0


def _check(options: Options) -> None:
    """Raises for what would otherwise be told only after the work."""
    if options.out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"cannot write {options.out}: its name must end with {' or '.join(SUFFIXES)}")
    check_output(options.out)
    if options.out.suffix.lower() == ".png":
        check_matplotlib()
    if not options.text:
        raise DataError("the text is empty: give by --text what the model is to read")
