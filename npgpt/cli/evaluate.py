"""`npgpt evaluate`: what a model has learned, in numbers with their protocol beside them."""

from rich.console import Console

from npgpt.cli.arguments import parse
from npgpt.cli.tasks import classification, generation, language_modelling, multiple_choice
from npgpt.cli.tasks.options import Options, check

TASKS = {"language-modelling": language_modelling.run, "multiple-choice": multiple_choice.run,
         "generation": generation.run, "classification": classification.run}

WHAT  = {"out": "result", "surprisal": "surprisals", "predictions": "predictions"}


def run(arguments: list[str]) -> int:
    options = parse(Options, "evaluate", arguments)
    check(options)
    console = Console(highlight=False, soft_wrap=True)
    TASKS[options.task](options, console)
    for name, path in options.files.items():
        console.print(f"{WHAT[name]}: {path}", markup=False)
    return 0
