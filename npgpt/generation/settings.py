"""The settings of generation: transformers' names and meanings, checked before any work begins."""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from npgpt.errors import ConfigError
from npgpt.ranges import check_range, is_whole

LEAST, MOST = 1e-30, 1e30       # what float32 can divide logits by
MOST_ROWS = 10**6               # of GPT-2's vocabulary, 200 GB of scores a step
DEFAULT_NEW_TOKENS = 20         # where neither max_new_tokens nor max_length is given, as in transformers

WHOLE = {"max_new_tokens": 0, "max_length": 1, "min_new_tokens": 0, "min_length": 0, "pad_token_id": 0,
         "no_repeat_ngram_size": 0, "top_k": 0, "seed": 0, "num_beams": 1, "num_return_sequences": 1}  # least
SWITCHES = ("do_sample", "use_cache", "output_scores", "output_logits", "return_dict_in_generate")


@dataclass(frozen=True)
class GenerationSettings:
    """How to go on from a prompt. Raises ConfigError for what cannot be.

    `seed` is npgpt's own, and so is the default of top_k, which is 50 in transformers. A length counts the
    padding on the left of a prompt, as there.
    """

    # how long
    max_new_tokens: int | None = None           # over max_length; without either DEFAULT_NEW_TOKENS
    max_length: int | None = None               # of prompt and continuation
    min_new_tokens: int | None = None           # over min_length: so long, no token of eos_token_id is chosen
    min_length: int = 0
    eos_token_id: int | Sequence[int] | None = None     # a sequence ends with (any of) these
    stop_strings: str | Sequence[str] | None = None     # or when its text gets one of these, by a tokenizer
    pad_token_id: int | None = None             # fills prompts on the left, and sequences that have ended;
                                                # by default the (first) eos_token_id
    # which tokens may come
    repetition_penalty: float = 1.0             # above 1: less of the tokens that were there
    no_repeat_ngram_size: int = 0               # no n tokens in a row come twice; 0: they may
    bad_words_ids: Sequence[Sequence[int]] | None = None        # sequences of tokens that never come
    logits_processor: Callable | Sequence[Callable] | None = None   # own rules, after these: processors.py

    # one by chance
    do_sample: bool = False                     # draw; else the most likely
    temperature: float = 1.0                    # logits are divided by it; below 1 sharpens
    top_k: int | None = None                    # only the k most likely tokens; None or 0: all
    top_p: float = 1.0                          # only the likeliest that together reach p
    min_p: float | None = None                  # only those at least p times as likely as the likeliest
    seed: int = 0                               # the same seed draws the same

    # the best of several
    num_beams: int = 1                          # 1: no beam search
    length_penalty: float = 1.0                 # a score is divided by length ** length_penalty
    early_stopping: bool | str = False          # True, False or "never": see beam_search.py

    # what comes back
    num_return_sequences: int = 1               # continuations of each prompt
    return_dict_in_generate: bool = False       # a GenerationOutput instead of the tokens alone
    output_scores: bool = False                 # with, for each new token, what it was chosen by
    output_logits: bool = False                 # and what the model said
    use_cache: bool = True                      # read each position once

    def __post_init__(self):
        for name, least in WHOLE.items():
            value = getattr(self, name)
            if not (value is None and self._may_be_none(name)) and not (is_whole(value) and value >= least):
                raise ConfigError(f"{name} must be at least {least}, a whole number, not {value!r}")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        check_range("seed", self.seed, least=0, below=2**64)
        for name in ("num_beams", "num_return_sequences"):
            check_range(name, getattr(self, name), most=MOST_ROWS)
        self._check_numbers()
        self._check_lists()
        self._check_together()

    def _check_numbers(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty", "length_penalty", "min_p"):
            value = getattr(self, name)
            if not (_is_number(value) or (value is None and self._may_be_none(name))):
                raise ConfigError(f"{name} must be a number, not {value!r}")
        if self.temperature < LEAST:
            raise ConfigError(f"temperature must be above 0, at least 1e-30, not {self.temperature}; for the "
                              "most likely token turn sampling off: do_sample=False, or --no-do-sample")
        if self.repetition_penalty < LEAST:
            raise ConfigError("repetition_penalty must be above 0, at least 1e-30, not "
                              f"{self.repetition_penalty}")
        for name in ("temperature", "repetition_penalty"):
            if getattr(self, name) > MOST:
                raise ConfigError(f"{name} must be at most 1e30, not {getattr(self, name)}")
        if abs(self.length_penalty) > 50:                   # a million tokens to the 52nd is no number
            raise ConfigError(f"length_penalty must be from -50 to 50, not {self.length_penalty}")
        check_range("top_p", self.top_p, above=0, most=1)
        if self.min_p is not None:
            check_range("min_p", self.min_p, least=0, most=1)
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ConfigError(f"early_stopping must be True, False or 'never', not {self.early_stopping!r}")

    def _check_lists(self) -> None:
        if not all(is_whole(id) and id >= 0 for id in _several(self.eos_token_id)):
            raise ConfigError(f"eos_token_id must be a token's id or several, not {self.eos_token_id!r}")
        if not all(isinstance(text, str) and text for text in _several(self.stop_strings)):
            raise ConfigError("stop_strings must be a text or several, none empty, "
                              f"not {self.stop_strings!r}")
        words = _several(self.bad_words_ids)
        if not all(isinstance(word, Sequence | np.ndarray) and not isinstance(word, str) and len(word)
                   and all(is_whole(id) and id >= 0 for id in word) for word in words):
            raise ConfigError("bad_words_ids must be a list of lists of ids, none empty, "
                              f"not {self.bad_words_ids!r}")
        if not all(callable(rule) for rule in _several(self.logits_processor)):
            raise ConfigError("logits_processor must be functions of (sequences, scores) that give scores, "
                              f"not {self.logits_processor!r}")

    def _check_together(self) -> None:
        if self.num_return_sequences > 1 and not self.do_sample and self.num_beams == 1:
            raise ConfigError(f"num_return_sequences = {self.num_return_sequences} would be the same text "
                              "every time: set do_sample=True, or num_beams as large")
        if self.num_return_sequences > self.num_beams > 1:
            raise ConfigError(f"num_return_sequences must be at most num_beams = {self.num_beams}, "
                              f"not {self.num_return_sequences}")
        if (self.output_scores or self.output_logits) and not self.return_dict_in_generate:
            raise ConfigError("output_scores and output_logits need return_dict_in_generate=True")

    @classmethod
    def of(cls, **given) -> "GenerationSettings":
        """From settings by name. Raises ConfigError, which for an unknown name tells the nearest known."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(f"generation has no setting {name!r}"
                                  + (f"; did you mean {near[0]!r}?" if near else ""))
        return cls(**given)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return tuple(_several(self.eos_token_id))

    @property
    def texts_to_stop_at(self) -> tuple[str, ...]:
        return tuple(_several(self.stop_strings))

    @property
    def own_rules(self) -> tuple[Callable, ...]:
        return tuple(_several(self.logits_processor))

    @property
    def bad_words(self) -> tuple[tuple[int, ...], ...]:
        """Without those that are one token of eos_token_id: that one may come, as in transformers."""
        words = (tuple(word) for word in _several(self.bad_words_ids))
        return tuple(word for word in words if not (len(word) == 1 and word[0] in self.eos_token_ids))

    @property
    def pad(self) -> int | None:
        """pad_token_id, or what stands in for it."""
        if self.pad_token_id is None and self.eos_token_ids:
            return self.eos_token_ids[0]
        return self.pad_token_id

    def new_tokens(self, prompt_length: int) -> tuple[int, int]:
        """The least and the most tokens to follow prompts of this length, padding included.

        Raises ConfigError.
        """
        most = DEFAULT_NEW_TOKENS
        if self.max_new_tokens is not None:
            most = self.max_new_tokens
        elif self.max_length is not None:
            most = self.max_length - prompt_length
            if most <= 0:
                raise ConfigError(f"max_length = {self.max_length} leaves no room after a prompt of "
                                  f"{prompt_length} tokens: raise it, or set max_new_tokens instead")
        name, least = "min_new_tokens", self.min_new_tokens
        if least is None:
            name, least = "min_length", max(0, self.min_length - prompt_length)
        if least > most:
            raise ConfigError(f"{name} = {getattr(self, name)} asks for {least} new tokens, but at most "
                              f"{most} are to come: lower it, or raise max_new_tokens or max_length")
        return least, most

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ConfigError for a token that the model does not have."""
        named = {"eos_token_id": self.eos_token_ids, "pad_token_id": _several(self.pad_token_id),
                 "bad_words_ids": [id for word in self.bad_words for id in word]}
        for name, ids in named.items():
            if ids and max(ids) >= vocab_size:
                raise ConfigError(f"{name}: token {max(ids)} is not in the vocabulary of {vocab_size}")

    def _may_be_none(self, name: str) -> bool:
        return type(self).__dataclass_fields__[name].default is None


def _several(value) -> Sequence:
    """One or more of something, or none, as a sequence."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) \
        and bool(-math.inf < value < math.inf)
