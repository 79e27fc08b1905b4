"""Language modelling: npgpt/evaluation/language_modelling.py on texts, and on the answers of records."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from npgpt.cli.tasks.options import Options
from npgpt.cli.tasks.report import (
    context_of,
    counted,
    numbers_table,
    prefix_of,
    print_bootstrap,
    progress_bar,
    write_out,
)
from npgpt.evaluation import documents, language_modelling
from npgpt.evaluation.results import write_lines
from npgpt.terminal import warn
from npgpt.tokenizers.files import Tokenizer
from npgpt.training.loading import Loaded, load_model
from npgpt.training.runs import open_run

UNITS = {"loss": "nats a token", "perplexity": "", "bits_per_byte": ""}


def run(options: Options, console: Console) -> None:
    loaded = load_model(options.model, options.checkpoint, options.device, warn)
    _texts(options, loaded, console)


def _texts(options: Options, loaded: Loaded, console: Console) -> None:
    tokenizer, context, prefix = loaded.tokenizer, context_of(options, loaded), prefix_of(loaded)
    stride = options.stride or max(1, context // 2)
    data   = documents.read(options.data, tokenizer, options.limit) if options.data else \
        _own_documents(options.model, tokenizer)
    kept   = documents.limited(data.tokens, options.limit, prefix is not None)
    with progress_bar() as progress:
        task   = progress.add_task("tokens scored", total=None)
        result = language_modelling.measure(
            loaded.model, kept, documents.byte_lengths(kept, tokenizer), context, stride, prefix,
            options.batch_size, options.seed, options.resamples,
            lambda done, total: progress.update(task, completed=done, total=total))
    units, count = result.units
    protocol = {"context": context, "stride": stride, "documents": len(kept), "tokens": result.tokens,
                "bytes": result.bytes, "first_token_follows": prefix, "bootstrap_units": units,
                "bootstrap_number": count, "confidence": 0.95}
    numbers  = {name: getattr(result, name) for name in UNITS}
    if options.surprisal is not None:
        write_lines(options.surprisal, _surprisal_rows(kept, result.surprisals, tokenizer))
    write_out(options, loaded.model, {"source": options.data or options.model / "data" / "val.bin",
                                      "kind": data.kind, "sha256": data.sha256},
              numbers, result.intervals, protocol)

    console.print(numbers_table(UNITS, numbers, result.intervals))
    first = f"follows {tokenizer.decode([prefix])}" if prefix is not None else "is not scored"
    console.print(
        f"context {context:,}, stride {stride:,}: each token has at least {context - stride:,} before it "
        f"where there are so many; the first of a document {first}\n{counted(len(kept), 'document')}, "
        f"{counted(result.tokens, 'token')} scored, {counted(result.bytes, 'byte')}", markup=False)
    print_bootstrap(options, units, count, console)


def _own_documents(path: Path, tokenizer: Tokenizer) -> documents.Documents:
    return documents.read_stream(path / "data" / "val.bin", open_run(path).val, tokenizer)


def _surprisal_rows(tokens: Sequence[np.ndarray], surprisals: Sequence[np.ndarray],
                    tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """position: of the token in its document.  text: what it decodes to alone; bytes that are not UTF-8 by
    themselves are shown as U+FFFD."""
    for n, (ids, nats) in enumerate(zip(tokens, surprisals, strict=True)):
        first = len(ids) - len(nats)
        for position, (id, s) in enumerate(zip(ids[first:].tolist(), nats.tolist(), strict=True), first):
            yield {"document": n, "position": position, "token": id, "text": tokenizer.decode([id]),
                   "bits": s / math.log(2)}
