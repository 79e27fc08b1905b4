"""Byte-level BPE tokenizers that others have saved, read into npgpt's terms:

vocab.bpe + encoder.json, vocab.json + merges.txt   GPT-2's files, by their two names
tokenizer.json                                      Hugging Face's tokenizers
NAME.tiktoken                                       tiktoken's, a line of base64 and rank for each token

The first has no special tokens but what no merge makes (<|endoftext|>), the last none at all. And both do not
say how text is split: GPT-2's way, or that of the known file NAME, or as the caller says.

tokenizer_config.json and added_tokens.json in a folder may know of more: a way to split text, further tokens.
That is not read, but refused, for the same text would have other ids there.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from npgpt.errors import TokenizerError, shown
from npgpt.tokenizers.byte_alphabet import from_symbols
from npgpt.tokenizers.formats import (
    CONFIG,
    HUGGING_FACE,
    MERGES,
    VOCABULARY,
    BytePair,
    checked_byte_pair,
    checked_ids,
    from_json,
    merge_lines,
    read_text,
    refused,
)
from npgpt.tokenizers.patterns import SPLIT_PATTERNS

ADDED_TOKENS = "added_tokens.json"
GPT2_FILES = (("encoder.json", "vocab.bpe"), (VOCABULARY, MERGES))
TIKTOKEN = {        # file → pattern and special tokens, as tiktoken has them (tiktoken_ext/openai_public.py)
    "r50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "cl100k_base": ("cl100k", {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259,
                               "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}),
    "o200k_base": ("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}
SAVE_AGAIN = "let transformers read and save it again (AutoTokenizer, save_pretrained)"
# The pattern as others write it → npgpt's name for it.
SPELLINGS = {pattern: name for name, pattern in reversed(SPLIT_PATTERNS.items())} | {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
}


def read_foreign(path: Path, pattern: str | None = None,
                 special_tokens: Mapping[str, int] | None = None) -> BytePair:
    """path: a folder with such files, or a tokenizer.json, .tiktoken or vocab.bpe file.

    pattern, special_tokens: instead of what the files say, or do not say.  Raises TokenizerError.
    """
    if path.is_file() and path.suffix == ".json":
        parts = _read_hugging_face(path)
    elif path.is_file() and path.name == "vocab.bpe":      # by that name it can be GPT-2's alone
        parts = _read_gpt2(path.parent)
    elif path.is_file():
        parts = _read_tiktoken(path, pattern, special_tokens)
    else:
        found = (path / HUGGING_FACE).is_file()
        parts = _read_hugging_face(path / HUGGING_FACE) if found else _read_gpt2(path)
        if pattern is None:
            _refuse_other_ways(path / CONFIG, _beside(path, CONFIG), found)
    if special_tokens is None:
        special_tokens = parts.special_tokens
        _refuse_further_tokens(path, parts)
    return parts._replace(pattern=pattern or parts.pattern, special_tokens=special_tokens,
                          prefix_token=parts.prefix_token if parts.prefix_token in (
                              *special_tokens, *parts.added_tokens) else None)


def is_foreign(path: Path) -> bool:
    """Whether there is something for `read_foreign`."""
    return path.is_file() or any((path / name).is_file()
                                 for name in (HUGGING_FACE, *(merges for _, merges in GPT2_FILES)))


def _refuse_other_ways(path: Path, config: Mapping[str, Any], found: bool) -> None:
    """found: there is a tokenizer.json, which says how text is split, and what is put before it. But where
    transformers has a class for the tokenizer, as GPT-2's, its settings go before.
    """
    kind = config.get("tokenizer_class") or "GPT2Tokenizer"
    if kind in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        for name in ("add_prefix_space",) if found else ("add_prefix_space", "add_bos_token"):
            if config.get(name):
                raise refused(path, f"it asks for {name}, which npgpt has not for GPT-2's tokenizers")
    elif not found:
        raise refused(path, f"its tokenizer_class is {shown(kind)}, and there is no {HUGGING_FACE} to tell "
                            f"how that splits text: {SAVE_AGAIN}")


def _refuse_further_tokens(folder: Path, parts: BytePair) -> None:
    config, known = _beside(folder, CONFIG), {*parts.special_tokens, *parts.added_tokens}
    tokens: list[tuple[str, Any]] = [(ADDED_TOKENS, token) for token in _beside(folder, ADDED_TOKENS)]
    for name in ("bos_token", "eos_token", "additional_special_tokens", "extra_special_tokens",
                 "added_tokens_decoder"):
        said = config.get(name)
        if isinstance(said, dict) and "content" not in said:             # by their ids, or by names
            said = list(said.values())
        tokens += [(f"{name} in {CONFIG}", token) for token in (said if isinstance(said, list) else [said])]
    for where, token in tokens:
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token and token not in known:
            raise refused(folder, f"{shown(token)}, of {where}, is no special or added token of its "
                                  f"tokenizer: {SAVE_AGAIN}")


def _beside(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object beside the tokenizer; empty where there is none."""
    path = folder / name
    said = from_json(path, read_text(path)) if path.is_file() else {}
    return said if isinstance(said, dict) else {}


def _read_gpt2(folder: Path) -> BytePair:
    vocabulary, merges = max(((folder / v, folder / m) for v, m in GPT2_FILES),
                             key=lambda two: (two[0].exists(), two[1].exists()))
    ids   = checked_ids(vocabulary, from_json(vocabulary, read_text(vocabulary)))
    lines = list(merge_lines(merges, read_text(merges)))
    made  = {left + right for _, left, right in lines}
    special = {token: id for token, id in ids.items()
               if token not in made and len(from_symbols(token) or "no") > 1}
    ids   = {token: id for token, id in ids.items() if token not in special}
    return checked_byte_pair(vocabulary, ids, merges, lines, special, "gpt2", True)       # as tiktoken has it


def _read_hugging_face(path: Path) -> BytePair:
    data  = from_json(path, read_text(path))
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list) \
            or model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise refused(path, "it holds no byte-level BPE tokenizer")
    for name in ("dropout", "end_of_word_suffix", "continuing_subword_prefix"):
        if model.get(name):
            raise refused(path, f"its {name} is {shown(model[name])}, which npgpt does not have")
    normalizer = _hugging_face_normalizer(path, data.get("normalizer"))
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(
            isinstance(token, dict) and isinstance(token.get("content"), str) for token in added):
        raise refused(path, "its added_tokens are not a list of tokens with their content")
    own = checked_ids(path, {token["content"]: token.get("id") for token in added}) if added else {}
    ids = checked_ids(path, model.get("vocab"))
    for token, id in own.items():
        if ids.get(token, id) != id:
            raise refused(path, f"the token {shown(token)} has two ids, {ids[token]} and {id}")
    ids = {token: id for token, id in ids.items() if token not in own}
    if model.get("unk_token") is not None and sum(len(token) == 1 for token in ids) < 256:
        raise refused(path, f"it writes {shown(model['unk_token'])} for bytes that no token stands for "
                            "(unk_token), which npgpt leaves out")
    taken = set(ids.values())
    for token, id in own.items():
        if id in taken:
            raise refused(path, f"the id {id} of the token {shown(token)} is another token's too")
    plain = _plain_tokens(path, added, normalizer)
    special, further = ({token: id for token, id in own.items() if (token in plain) is kind}
                        for kind in (False, True))
    return checked_byte_pair(path, ids, path, _hugging_face_merges(path, model["merges"]), special,
                             _hugging_face_pattern(path, data.get("pre_tokenizer")),
                             model.get("ignore_merges") is True,
                             _hugging_face_prefix(path, data.get("post_processor"), own)
                             )._replace(normalizer=normalizer, added_tokens=further)


def _plain_tokens(path: Path, added: list[dict[str, Any]], normalizer: str | None) -> set[str]:
    """Those of the added tokens that are not special. They are found in every text just as they are, as
    special ones are where they are allowed.
    """
    plain = [token for token in added if token.get("special") is False]
    for token in added:
        changes = ["normalized"] if token in plain and normalizer else []
        for flag in ("lstrip", "rstrip", "single_word", *changes):
            if token.get(flag):
                raise refused(path, f"its added token {shown(token['content'])} asks for {flag}, and npgpt "
                                    "finds added tokens just as they are written")
    return {token["content"] for token in plain}


def _hugging_face_merges(path: Path, merges: list[Any]) -> Iterator[tuple[str, str, str]]:
    """Each is "left right", or since 2024 a list of the two."""
    for number, merge in enumerate(merges):
        two = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(two, list) or len(two) != 2 or not all(t and isinstance(t, str) for t in two):
            raise refused(path, f"merge {number} is not two tokens: {shown(merge)}")
        yield f"merge {number}", two[0], two[1]


def _hugging_face_normalizer(path: Path, normalizer: Any) -> str | None:
    match normalizer, _steps(normalizer, "normalizers"):
        case None, _:
            return None
        case _, [{"type": "NFC"}]:
            return "NFC"
    raise refused(path, "it changes the text before splitting it otherwise than by NFC (normalizer), which "
                        "npgpt does not")


def _hugging_face_pattern(path: Path, splitter: Any) -> str:
    """npgpt's name for how a tokenizer.json splits text."""
    match _steps(splitter, "pretokenizers"):
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}] if rest.get("use_regex", True):
            return "gpt2"
        case [{"type": "Digits", "individual_digits": True},
              {"type": "ByteLevel", "add_prefix_space": False, **rest}] if rest.get("use_regex", True):
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}] if regex in SPELLINGS:
            return SPELLINGS[regex]
    raise refused(path, "it splits text in a way that npgpt does not know (pre_tokenizer); the known ones "
                        f"are {', '.join(SPLIT_PATTERNS)}")


def _hugging_face_prefix(path: Path, processor: Any, own: Mapping[str, int]) -> str | None:
    """The token that a tokenizer.json puts before every text. What it would put after one is passed over: a
    text that a model writes on does not end there.
    """
    before: list[tuple[str, Any]] = []
    try:
        for step in _steps(processor, "processors"):
            kind = step.get("type")
            if kind in ("BertProcessing", "RobertaProcessing"):
                before.append((step["cls"][0], [step["cls"][1]]))
            elif kind == "TemplateProcessing":
                names   = [piece["SpecialToken"]["id"]
                           for piece in takewhile(lambda piece: "SpecialToken" in piece, step["single"])]
                before += [(name, step["special_tokens"][name]["ids"]) for name in names]
            elif kind != "ByteLevel":                         # which changes no ids
                raise refused(path, f"npgpt does not know its post_processor {shown(kind)}")
    except (LookupError, TypeError):
        raise refused(path, "its post_processor is no template") from None
    if len(before) > 1 or not all(name in own and ids == [own[name]] for name, ids in before):
        begin = " and ".join(shown(name) for name, _ in before[:3])
        raise refused(path, f"it begins every text with {begin} (post_processor), and npgpt with one "
                            "of its added_tokens at most")
    return before[0][0] if before else None


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """A part of a tokenizer.json, which may be a sequence of others, in a list of that name."""
    many  = isinstance(part, dict) and part.get("type") == "Sequence"
    steps = part.get(name) if many else [part]
    return steps if isinstance(steps, list) and all(isinstance(step, dict) for step in steps) else []


def _read_tiktoken(path: Path, pattern: str | None, special_tokens: Mapping[str, int] | None) -> BytePair:
    """tiktoken merges any two tokens whose bytes together are a token, the one of the smallest rank first."""
    known_pattern, known_special = TIKTOKEN.get(path.stem, ("", {}))
    if not (pattern or known_pattern):
        raise TokenizerError(f"{path} does not say how to split text: pass pattern=, one of "
                             f"{', '.join(SPLIT_PATTERNS)}")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        text, _, rank = line.partition(" ")
        try:
            token = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            token = b""
        if not token or not rank.isdecimal() or len(rank) > 9:
            raise refused(path, f"line {number} is not a token in base64 and its rank: {shown(line)}")
        if token in ranks:
            raise refused(path, f"line {number} has the token {shown(token)} a second time")
        ranks[token] = int(rank)
    if len(set(ranks.values())) < len(ranks):
        raise refused(path, "two tokens have the same rank")
    merges = [(ranks[token[:cut]], ranks[token[cut:]])
              for token in sorted(ranks, key=ranks.__getitem__)
              for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
    return BytePair(merges, known_special if special_tokens is None else special_tokens,
                    pattern or known_pattern, {rank: token for token, rank in ranks.items()},
                    ignore_merges=True)
