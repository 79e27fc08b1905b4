"""All that is shown of one text, as numbers: what page.py and report_picture.py draw."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npgpt.errors import DataError, TokenizerError
from npgpt.inspection.attention_maps import attention_maps
from npgpt.inspection.logit_lens import LogitLens, logit_lens
from npgpt.inspection.residual_stream import checked_tokens, residual_stream
from npgpt.inspection.saliency import Progress, Saliency, saliency
from npgpt.inspection.token_names import characters_cut, token_name
from npgpt.models import GPT
from npgpt.tokenizers.files import Tokenizer

MOST_TOKENS = 256               # of a text that is shown
MOST_WEIGHTS = 8_000_000        # of attention, on and below the diagonals: more, and layers are left out


class Report(NamedTuple):
    """tokens: (T,).  data: their bytes.  cut: of each, the characters of which it holds a part only.
    names: of these tokens and of all that the lens names.
    attention: (layers, H, T, T), of the layers in attention_layers.
    targets: N pairs of position and token whose saliency is known, in its rows; target: the position that
    is shown first.
    """

    model: str
    facts: list[str]
    tokens: np.ndarray
    data: list[bytes]
    cut: list[str]
    names: dict[int, str]
    lens: LogitLens
    attention: np.ndarray
    attention_layers: list[int]
    targets: list[tuple[int, int]]
    saliency: Saliency
    target: int

    @property
    def guess(self) -> int:
        """What the model holds the most likely after the text."""
        return int(self.lens.tokens[-1, -1, 0])

    @property
    def n_layer(self) -> int:
        return len(self.lens.tokens) - 1

    def name(self, position: int) -> str:
        """Of the token at a position, or of the guess at the one after the last."""
        return self.names[int(self.tokens[position]) if position < len(self.tokens) else self.guess]


def make_report(name: str, model: GPT, tokenizer: Tokenizer, tokens: Sequence[int],
                target: int, every: bool = True, progress: Progress | None = None) -> Report:
    """name: the model's, to be shown.  tokens: those of the text.

    target: the position whose prediction saliency explains, 1 to len(tokens), where the last is the model's
    guess at what follows.  every: it explains all the others too.

    Raises DataError for a text that is empty or too long, or a target that is none of it.
    """
    array = checked_tokens(model, tokens, 1)
    T     = len(array)
    if T > MOST_TOKENS:
        raise DataError(f"the text has {T:,} tokens, and at most {MOST_TOKENS} can be shown: shorten it")
    if not 1 <= target <= T:
        raise DataError(f"target must be 1 to {T}, for the text has {T:,} token{'s' * (T > 1)}, "
                        f"not {target}; the first, 0, follows nothing")
    stream  = residual_stream(model, array[None])
    lens    = logit_lens(model, stream, array)
    layers  = attended_layers(model.config.n_layer, model.config.n_head, T)
    maps    = np.stack([p[0] for n, p in enumerate(attention_maps(model, stream)) if n in layers])
    guess   = int(lens.tokens[-1, -1, 0])
    asked   = range(1, T + 1) if every else [target]
    targets = [(n, int(array[n]) if n < T else guess) for n in asked]
    ids     = {*map(int, lens.tokens.flat), *map(int, array)}
    data    = [_bytes(tokenizer, int(id)) or b"" for id in array]
    return Report(name, _facts(model), array, data, characters_cut(data),
                  {id: _name(tokenizer, id) for id in sorted(ids)}, lens, maps, layers, targets,
                  saliency(model, array, targets, progress), target)


def attended_layers(n_layer: int, n_head: int, T: int) -> list[int]:
    """The layers whose maps are kept: all, or as many as MOST_WEIGHTS allows, evenly from first to last."""
    return evenly(n_layer, max(1, MOST_WEIGHTS // (n_head * T * (T + 1) // 2)))


def evenly(count: int, most: int) -> list[int]:
    """At most so many of 0 … count − 1, evenly from the first to the last; the last alone where one is."""
    if most == 1:
        return [count - 1]
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, most))})


def _facts(model: GPT) -> list[str]:
    c = model.config
    shared = f" sharing {c.kv_heads} of keys" if c.kv_heads != c.n_head else ""
    return [f"{c.n_layer} layer{'s' * (c.n_layer > 1)}", f"{c.n_head} head{'s' * (c.n_head > 1)}{shared}",
            f"width {c.n_embd:,}", f"{c.vocab_size:,} tokens in the vocabulary",
            f"{model.flat.size:,} parameters"]


def _bytes(tokenizer: Tokenizer, id: int) -> bytes | None:
    """None for an id that only the model has: a vocabulary filled up to a round number."""
    try:
        return tokenizer.token_bytes(id)
    except TokenizerError:
        return None


def _name(tokenizer: Tokenizer, id: int) -> str:
    data = _bytes(tokenizer, id)
    return f"‹token {id}›" if data is None else token_name(data)
