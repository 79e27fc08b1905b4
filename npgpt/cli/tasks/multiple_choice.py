"""Multiple choice: npgpt/evaluation/multiple_choice.py on a file of questions."""

from pathlib import Path

from rich.console import Console

from npgpt.cli.progress import progress_bar
from npgpt.cli.tasks.options import Options
from npgpt.cli.tasks.report import (
    bootstrap_entries,
    context_of,
    counted,
    numbers_table,
    prefix_of,
    print_bootstrap,
    write_out,
)
from npgpt.evaluation import multiple_choice
from npgpt.terminal import warn
from npgpt.training.loading import load_model


def run(options: Options, console: Console) -> None:
    loaded  = load_model(options.model, options.checkpoint, options.device, warn)
    context = context_of(options, loaded)
    data    = multiple_choice.read_questions(Path(options.data), options.limit)
    with progress_bar("tokens scored") as progress:
        result = multiple_choice.measure(
            loaded.model, data.questions, loaded.tokenizer, context, prefix_of(loaded), options.delimiter,
            options.batch_size, options.seed, options.resamples, progress)
    count, endings = len(data.questions), sum(map(len, result.log_likelihoods))
    protocol = {"context": context, "delimiter": options.delimiter, "questions": count, "endings": endings,
                "tokens": result.tokens, "truncated": result.truncated, "acc_norm_per": "character",
                "acc_bytes_per": "byte", **bootstrap_entries("questions", count)}
    write_out(options, loaded.model, {"source": options.data, "kind": "questions", "sha256": data.sha256},
              result.numbers, result.intervals, protocol)

    console.print(numbers_table({"acc": "the likeliest ending", "acc_norm": "the likeliest per character",
                                 "acc_bytes": "the likeliest per byte"}, result.numbers, result.intervals))
    console.print(f"{counted(count, 'question')}, {counted(endings, 'ending')} of "
                  f"{counted(result.tokens, 'token')} in all, {options.delimiter!r} before each; context "
                  f"{context:,}, which cut the text before {counted(result.truncated, 'ending')}\n"
                  "tokenised and normalised as lm-evaluation-harness does it", markup=False)
    print_bootstrap(options, "questions", count, console)
