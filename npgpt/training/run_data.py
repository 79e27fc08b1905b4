"""What a run learns from, as it stands in the run's folder: the tokenizer, or the base of a fine-tuning, and
the tokens of a text, of a prepared folder, or of examples.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from npgpt.data.corpora import read_documents, split_documents, table_to_records
from npgpt.data.examples import Examples, encode_records, save_examples, split_records
from npgpt.data.packing import pack
from npgpt.data.prepared import is_prepared, open_prepared
from npgpt.data.records import FILES, Dialogue, Labelled, Record, Text, read_records, texts_of
from npgpt.data.shards import check_uncut, write_shard
from npgpt.errors import ConfigError, DataError
from npgpt.generation.chat import chat_template, transcript
from npgpt.interop.classifiers import Labels
from npgpt.interop.huggingface_writing import write_model, write_tokenizer
from npgpt.models import SequenceClassifier
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, load_tokenizer
from npgpt.tokenizers.files import Tokenizer, load_setting
from npgpt.training.config import TrainConfig
from npgpt.training.finetuning import BASE, LONGEST, FinetuneConfig, Loaded, finetuned_model

Config = TrainConfig | FinetuneConfig
Tokens = np.ndarray | Examples
Note   = Callable[[str], None]

CHUNK  = 1 << 20        # token ids of a prepared shard that are copied at once
LABELS_TOLD = 10        # with how many records each has, the most first, or that it has none


def write_data(path: Path, config: Config, note: Note, start: Loaded | None) -> Config:
    """Writes tokenizer or base, and data; returns the configuration with what was found out on the way.

    Raises DataError, TokenizerError, ConfigError, OSError.
    """
    if start and isinstance(config, FinetuneConfig):
        most   = start.model.config.block_size
        config = replace(config, block_size=config.block_size or min(most, LONGEST))
        if config.block_size > most:
            raise ConfigError(f"block_size must be at most the model's {most}, not {config.block_size}")
    (path / "data").mkdir(exist_ok=True)
    sides = [read_records(Path(name)) for name in (config.data, config.val_data) if name.endswith(FILES)]
    if config.val_data and is_prepared(Path(config.val_data)):
        raise ConfigError(f"val_data cannot be a prepared folder, as {config.val_data} is: one given as data "
                          "brings its own validation tokens")
    if is_prepared(Path(config.data)):
        if config.val_data:
            raise ConfigError(f"{config.data} is prepared, and brings its own validation tokens: leave "
                              "val_data out, or prepare it with the val_fraction that is wanted")
        rows = _copy_prepared(path, config, note, start)
    elif not sides or all(isinstance(record, Text) for side in sides for record in side):
        rows = _encode_text(path, config, note, start)
    else:
        rows = _encode_examples(path, config, note, start, sides)
    if isinstance(config, FinetuneConfig):
        finetuned_model(path / BASE, config)               # what cannot learn as it is told is refused now
        return config.resolved(rows)
    return config


def _encode_text(path: Path, config: Config, note: Note, start: Loaded | None) -> int:
    """From a text; returns how many windows there are to train on."""
    documents = _documents(config.data)
    note(f"{config.data}: {len(documents):,} document{'s' * (len(documents) != 1)}, "
         f"{sum(map(len, documents)):,} characters")
    if make := table_to_records(Path(config.data)):
        note(f"a table is learned as the text that it is: in Python, {make} makes records of its rows")
    train, val = (documents, _documents(config.val_data)) if config.val_data else \
        split_documents(documents, config.val_fraction, config.seed)
    tokenizer  = _tokenizer(config, start, [*train, *val], train)
    _save_tokenizer(path, tokenizer, start)
    end    = _end(tokenizer, start)
    counts = _save_tokens(path, config, tokenizer, _encoded(train, tokenizer, end),
                          _encoded(val, tokenizer, end))
    note(f"tokenizer: {_name(config)}, {tokenizer.vocab_size:,} tokens; "
         f"{counts[0]:,} to train on, {counts[1]:,} to validate")
    return counts[0] // config.block_size


def _copy_prepared(path: Path, config: Config, note: Note, start: Loaded | None) -> int:
    """The same from a folder that npgpt prepare made. Its shards become one file a side: a window of the
    training data may then lie across two of them, and the run's folder needs no other."""
    prepared  = open_prepared(Path(config.data))
    tokenizer = load_tokenizer(prepared.tokenizer)
    if start and not _same(tokenizer, start.tokenizer):
        raise DataError(f"{config.data} was prepared with another tokenizer than the model's: prepare it "
                        "again with the model's own")
    _save_tokenizer(path, tokenizer, start)
    counts = _save_tokens(path, config, tokenizer, _chunks(prepared.train), _chunks(prepared.val))
    note(f"{config.data}, prepared: a tokenizer of {tokenizer.vocab_size:,} tokens; "
         f"{counts[0]:,} to train on, {counts[1]:,} to validate")
    return counts[0] // config.block_size


def _encode_examples(path: Path, config: Config, note: Note, start: Loaded | None,
                     sides: list[list[Record]]) -> int:
    """From records; returns how many rows there are to train on."""
    if config.val_data and len(sides) < 2:
        raise ConfigError("data and val_data must be of one kind: both files of records, or neither")
    train, val = sides if config.val_data else split_records(sides[0], config.val_fraction, config.seed)
    records    = [*train, *val]
    labels     = _labels(records)
    if labels and not start:
        raise ConfigError(f"{config.data} has labels: classes are learned by npgpt finetune")
    if labels and not all(isinstance(record, Labelled) for record in records):
        raise DataError("data and val_data must both have labels, or neither")
    tokenizer = _tokenizer(config, start, list(texts_of(records)), list(texts_of(train)))
    template  = start.chat_template if start else None
    if template is None and any(isinstance(record, Dialogue) for record in records):
        template = transcript(tokenizer)
    own       = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    ends      = start.eos_token_ids if start else own
    named     = start.named_tokens if start else {"eos_token": tokenizer.decode(ends)} if ends else {}
    render    = chat_template(template, **named) if template else None
    _save_tokenizer(path, tokenizer, start, template, labels, config.seed)
    note(f"{config.data}: {len(records):,} records; tokenizer: {_name(config)}, "
         f"{tokenizer.vocab_size:,} tokens")
    if labels:
        counts = Counter(record.label for record in records if isinstance(record, Labelled)).most_common()
        note("labels: " + _first([f"{label!r} {count:,}" for label, count in counts]))
    rows = []
    for name, what, side in (("train", "to train on", train), ("val", "to validate", val)):
        examples, left_out = encode_records(side, tokenizer, config.block_size, ends, render, labels)
        lacking = [repr(label) for n, label in enumerate(labels) if n not in examples.labels]
        note(f"{len(examples):,} examples {what}, of {examples.tokens.size:,} tokens"
             + f", {examples.masked_ratio:.0%} of them given and not learned" * (not labels)
             + _told(left_out) + f"; none has the label {_first(lacking)}" * bool(lacking))
        if not len(examples):
            raise DataError(f"no example is left {what}{_told(left_out)}")
        save_examples(path / "data" / f"{name}.safetensors", examples)
        rows.append(len(pack(examples.inputs, config.block_size if config.packing and not labels else 0)))
    return rows[0]


def _end(tokenizer: Tokenizer, start: Loaded | None) -> int | None:
    """What ends a text: <|endoftext|>, or what does so for a model whose tokenizer has none."""
    ends = (tokenizer.eos_token_id, *(start.eos_token_ids if start else ()))
    return next((id for id in ends if id is not None), None)


def _told(left_out: Counter[str]) -> str:
    return "".join(f"; left out: {count:,} {reason}" for reason, count in left_out.most_common())


def _first(labels: Sequence[str]) -> str:
    more = len(labels) - LABELS_TOLD
    return ", ".join(labels[:LABELS_TOLD]) + f", and {more:,} more" * (more > 0)


def _labels(records: Sequence[Record]) -> list[str]:
    """The classes: numbers in their order, names in theirs."""
    labels = {record.label for record in records if isinstance(record, Labelled)}
    numbers = all(label.isdecimal() for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))


def _documents(source: str) -> list[str]:
    if not source.endswith(FILES):
        return read_documents(source)
    return [text for text in texts_of(read_records(Path(source))) if text]


def _tokenizer(config: Config, start: Loaded | None, documents: list[str], train: list[str]) -> Tokenizer:
    if start:
        return start.tokenizer
    assert isinstance(config, TrainConfig)
    if config.tokenizer == "character":
        return CharacterTokenizer.train(documents)          # of all the text: a character must not be unknown
    if config.tokenizer == "bpe":
        return BPETokenizer.train(train, config.vocab_size)
    return load_setting(config.tokenizer)[1]


def _name(config: Config) -> str:
    return config.tokenizer if isinstance(config, TrainConfig) else "the model's"


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.vocab_size == other.vocab_size and one.special_tokens == other.special_tokens and \
        all(one.token_bytes(id) == other.token_bytes(id) for id in range(one.vocab_size))


def _save_tokenizer(path: Path, tokenizer: Tokenizer, start: Loaded | None, template: str | None = None,
                    labels: Sequence[str] = (), seed: int = 0) -> None:
    """Into tokenizer/, or into base/ with the model that is fine-tuned."""
    def beside(folder: Path) -> None:
        assert start
        write_tokenizer(folder, tokenizer, named, template or start.chat_template, start.carried)

    if not start:
        write_tokenizer(path / "tokenizer", tokenizer, {}, template)
        return
    model  = SequenceClassifier.from_gpt(start.model, labels, seed) if labels else start.model
    arrays = {name: parameter.data for name, parameter in model.parameters.items()}
    named  = dict(start.named_tokens)
    pad    = tokenizer.special_tokens.get(named.get("pad_token", ""), next(iter(start.eos_token_ids), None))
    if labels and pad is not None and pad in tokenizer:
        named["pad_token"] = tokenizer.decode([pad])
    write_model(path / BASE, asdict(model.config), arrays, eos_token_ids=start.eos_token_ids,
                bos_token_id=start.bos_token_id, beside=beside,
                labels=Labels(tuple(labels), pad) if labels else None, carried=start.carried)


def _save_tokens(path: Path, config: Config, tokenizer: Tokenizer, train: Iterable[np.ndarray],
                 val: Iterable[np.ndarray]) -> list[int]:
    """Raises DataError where one side has less than a window."""
    counts = [write_shard(path / "data" / f"{name}.bin", chunks, tokenizer.vocab_size)
              for name, chunks in (("train", train), ("val", val))]
    for what, count in zip(("training", "validation"), counts, strict=True):
        if not count and is_prepared(Path(config.data)):
            raise DataError(f"{config.data} was prepared without {what} tokens: prepare it with a "
                            "val_fraction between 0 and 1")
        if count <= config.block_size:
            raise DataError(f"the {what} text has {count:,} tokens, but one window of block_size "
                            f"{config.block_size} needs {config.block_size + 1}: give more text, "
                            "a smaller block_size or another val_fraction")
    return counts


def _chunks(shards: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for shard in shards:
        for start in range(0, len(shard), CHUNK):
            check_uncut(shard)
            yield shard[start:start + CHUNK]


def _encoded(documents: list[str], tokenizer: Tokenizer, end: int | None) -> Iterator[np.ndarray]:
    """Each document's ids, after what begins a text and before what ends one, where there are such."""
    after = () if end is None else (end,)
    for document in documents:
        yield np.array([*tokenizer.prefix, *tokenizer.encode_ordinary(document), *after], np.int64)
