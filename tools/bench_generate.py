"""Times generation of npgpt beside transformers with its cache, the same weights and the same tokens:

    python tools/bench_generate.py                          # GPT-2 124M's shape, batches of 1 and 8
    python tools/bench_generate.py --model FOLDER --batch-size 1 --rounds 9

--model: a folder in Hugging Face's layout; by default random weights in the shape of GPT-2 124M.
Prompts have 32 tokens, and 512 for "first token", which is the time from such a prompt to the first token
after it. Both generate greedily. The competitors take turns (tools/competitors.py); npgpt runs twice, to show
the noise. "GB/s" is how fast the weights went by, all of them once a token, and "of it" the share of what a
product of one large matrix with a vector reaches in the same process. Needs PyTorch and transformers; run
nothing else meanwhile.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from competitors import paired, take_turns
from rich import box
from rich.console import Console
from rich.table import Table

PROMPT, LONG_PROMPT, NEW = 32, 512, 32
NAMES = ("npgpt", "npgpt again", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder in Hugging Face's layout")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8], help="1 and 8")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each competitor (7)")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, folder, batch_size = options.work
        work(name, folder, int(batch_size))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            from npgpt import GPT, GPTConfig
            GPT(GPTConfig()).save_pretrained(Path(folder) / "gpt2")
        for batch_size in options.batch_size:
            compare(options.model or Path(folder) / "gpt2", batch_size, options.rounds, Console(width=100))


def compare(model: Path, batch_size: int, rounds: int, console: Console) -> None:
    turns   = take_turns({name: [sys.executable, __file__, "--work", name, str(model), str(batch_size)]
                          for name in NAMES}, rounds)
    columns = {name: list(zip(*turns[name], strict=True)) for name in NAMES}
    table   = Table("", "tokens/s", "npgpt over it", "GB/s", "of it", "first token, ms", "npgpt over it",
                    box=box.SIMPLE_HEAD, title=f"{model.name}, batch of {batch_size}")
    for name in NAMES:
        each, first, weights, limit = map(statistics.median, columns[name])
        further, long = (paired(columns["npgpt"][n], columns[name][n]) for n in (0, 1))
        table.add_row(name, f"{batch_size / each:,.1f}", f"{further:.2f}",
                      f"{weights / each / 1e9:.1f}", f"{weights / each / limit:.0%}",
                      f"{1e3 * first:,.0f}", f"{long:.2f}")
    console.print(table)


def work(name: str, folder: str, batch_size: int) -> None:
    """For every line of standard input: seconds of a further token and of a first one, bytes of the weights,
    and bytes a second of a matrix times a vector.
    """
    rng = np.random.default_rng(0)
    if name == "transformers":
        import torch
        from transformers import AutoModelForCausalLM
        model  = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        size   = sum(parameter.numel() for parameter in model.parameters())
        vocab  = model.config.vocab_size
        matrix, vector = torch.ones(16384, 4096), torch.ones(4096)

        def generate(tokens, count):
            tokens = torch.from_numpy(tokens)
            model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count,
                           min_new_tokens=count, do_sample=False, pad_token_id=0)
    else:
        from npgpt import GPT
        model  = GPT.from_pretrained(folder)
        size   = model.flat.size
        vocab  = model.config.vocab_size
        matrix, vector = np.ones((16384, 4096), np.float32), np.ones(4096, np.float32)

        def generate(tokens, count):
            model.generate(tokens, max_new_tokens=count)

    prompt, long_prompt = (rng.integers(0, vocab, (batch_size, length)) for length in (PROMPT, LONG_PROMPT))
    while sys.stdin.readline():
        first = seconds(lambda: generate(long_prompt, 1))
        each  = (seconds(lambda: generate(prompt, 1 + NEW)) - seconds(lambda: generate(prompt, 1))) / NEW
        limit = matrix.nbytes / min(seconds(lambda: matrix @ vector) for _ in range(5))
        print(each, first, 4 * size, limit, flush=True)


def seconds(run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    os.environ |= {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    main()
