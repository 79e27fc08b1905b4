"""npgpt evaluate as a user types it: the numbers on the screen and in the files, and what is refused."""

import hashlib
import io
import json
import math
import shutil
from pathlib import Path

import evaluating
import numpy as np
import pytest
from evaluating import evaluate, nats, refused
from rich.console import Console

import npgpt
from npgpt import GPT, BPETokenizer, GPTConfig
from npgpt.cli.tasks.report import numbers_table
from npgpt.layers import Block
from npgpt.tokenizers import load_tokenizer
from npgpt.tokenizers.byte_pair_tables import default_vocabulary
from npgpt.training.loading import load_model
from npgpt.training.runs import open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return evaluating.make_folder(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    evaluating.enter(folder, monkeypatch)


def test_a_run_is_measured_on_its_own_validation_tokens(capsys):
    result = evaluate("run", "--stride", 1, "--surprisal", "[red].jsonl")
    said   = capsys.readouterr().out
    model, tokenizer, *_ = load_model(Path("run"), "best", "cpu", print)
    val   = open_run(Path("run")).val.astype(int).tolist()
    alone = [nats(model, val, max(0, n - 8), n) for n in range(1, len(val))]
    loss  = sum(alone) / len(alone)
    assert result["numbers"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["numbers"]["perplexity"] == math.exp(result["numbers"]["loss"])
    assert result["numbers"]["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-5)      # ASCII
    assert result["protocol"] == {
        "context": 8, "stride": 1, "documents": 1, "tokens": len(val) - 1, "bytes": len(val) - 1,
        "first_token_follows": None, "bootstrap_units": "stretches of 8 tokens",
        "bootstrap_number": -(-(len(val) - 1) // 8), "confidence": 0.95}
    assert (result["task"], result["npgpt"]) == ("language-modelling", npgpt.__version__)
    assert result["model"]["path"] == "run"
    assert result["data"] == {"source": "run/data/val.bin", "kind": "run",
                              "sha256": hashlib.sha256(Path("run/data/val.bin").read_bytes()).hexdigest()}
    assert result["settings"]["stride"] == 1 and result["settings"]["seed"] == 0
    low, high = result["intervals"]["loss"]
    assert low < loss < high

    for shown in (*(f" {number:,.4f} " for number in result["numbers"].values()),
                  f"{low:.4f} to {high:.4f}", "context 8, stride 1", "at least 7 before it",
                  "is not scored", f"{len(val) - 1} tokens scored", "result: result.json\n",
                  "surprisals: [red].jsonl\n"):
        assert shown in said, shown
    rows = [json.loads(line) for line in Path("[red].jsonl").read_text().splitlines()]
    assert [row["token"] for row in rows] == val[1:]
    assert [row["position"] for row in rows] == [*range(1, len(val))]
    assert "".join(row["text"] for row in rows) == tokenizer.decode(val[1:])
    np.testing.assert_allclose([row["bits"] for row in rows], np.array(alone) / math.log(2), rtol=1e-4)


def test_texts_follow_the_end_of_text_where_there_is_one(capsys):
    result = evaluate("run-bpe", "--data", "texts", "--surprisal", "surprisal.jsonl", "--stride", 8)
    said   = capsys.readouterr().out
    model, tokenizer, *_ = load_model(Path("run-bpe"), "best", "cpu", print)
    rows   = [json.loads(line) for line in Path("surprisal.jsonl").read_text().splitlines()]
    texts  = [file.read_text() for file in (Path("texts/a.txt"), Path("texts/b.txt"))]
    ids    = [tokenizer.encode_ordinary(text) for text in texts]
    assert [[row["token"] for row in rows if row["document"] == n] for n in (0, 1)] == ids
    first  = nats(model, [tokenizer.eos_token_id, *ids[1]], 0, 1)
    bits   = next(row["bits"] for row in rows if row["document"] == 1)
    assert bits * math.log(2) == pytest.approx(first, rel=1e-5)
    assert result["protocol"]["bytes"] == sum(len(text.encode()) for text in texts)
    assert result["protocol"]["tokens"] == sum(map(len, ids))
    assert result["numbers"]["bits_per_byte"] == pytest.approx(
        sum(row["bits"] for row in rows) / result["protocol"]["bytes"])
    assert "the first of a document follows <|endoftext|>" in said and "2 documents" in said
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    assert result["data"]["sha256"] == hashlib.sha256(digests).hexdigest()


def test_a_run_and_its_export_are_one_model():
    text = "texts/a.txt"
    run, exported = evaluate("run-bpe", "--data", text), evaluate("model", "--data", text)
    assert run["numbers"] == exported["numbers"]
    assert run["model"]["sha256"] == exported["model"]["sha256"] != evaluate("run")["model"]["sha256"]
    assert run["data"]["sha256"] == hashlib.sha256(Path(text).read_bytes()).hexdigest()


def test_limit_context_batch_size_and_seed(capsys):
    whole = evaluate("run")
    short = evaluate("run", "--limit", 21, "--context", 4, "--batch-size", 1,
                     "--surprisal", "surprisal.jsonl")
    assert short["protocol"] | {"bytes": 0} == whole["protocol"] | {
        "tokens": 21, "bytes": 0, "context": 4, "stride": 2, "bootstrap_units": "stretches of 4 tokens",
        "bootstrap_number": 6}
    assert len(Path("surprisal.jsonl").read_text().splitlines()) == 21
    again, other = evaluate("run"), evaluate("run", "--seed", 1, "--resamples", 5)
    assert "5 resamples, seed 1" in capsys.readouterr().out
    assert again == whole
    assert other["numbers"] == whole["numbers"] and other["intervals"] != whole["intervals"]
    assert evaluate("run", "--seed", 2**64 - 1)["numbers"] == whole["numbers"]
    assert evaluate("run", "--context", 1)["protocol"]["stride"] == 1          # of which there is no half
    threes = evaluate("run", "--batch-size", 3)
    assert threes["numbers"]["loss"] == pytest.approx(whole["numbers"]["loss"], rel=1e-6)


def test_a_long_context_is_read_only_where_it_is_asked_for():
    GPT(GPTConfig(vocab_size=270, block_size=2050, n_layer=1, n_head=1, n_embd=2)).save_pretrained("long")
    load_tokenizer("model").save("long")
    assert evaluate("long", "--data", "texts/a.txt")["protocol"]["context"] == 2048
    assert evaluate("long", "--data", "texts/a.txt", "--context", 2050)["protocol"]["context"] == 2050


def test_a_text_follows_the_end_of_a_text_and_not_what_ends_an_answer():
    shutil.copytree("model", "answers")
    Path("answers/generation_config.json").write_text('{"eos_token_id": 65}')
    assert load_model(Path("answers"), "best", "cpu", print).eos_token_ids == (65,)
    protocol = evaluate("answers", "--data", "texts/a.txt")["protocol"]
    assert protocol["first_token_follows"] == load_tokenizer("model").eos_token_id


@pytest.mark.parametrize(("name", "id"), [("<|endoftext|>", 0), ("<|end|>", 256)])
def test_what_ends_a_text_may_have_any_name_and_number(capsys, name, id):
    """As in SmolLM 0, and as in Qwen another than <|endoftext|>, which the model alone knows."""
    bytes_ = {n + (id == 0): byte for n, byte in default_vocabulary(()).items()}
    GPT(GPTConfig(vocab_size=257, block_size=8, n_layer=1, n_head=1, n_embd=2)).save_pretrained(f"ends-{id}")
    BPETokenizer((), {name: id}, vocabulary=bytes_).save(f"ends-{id}")
    Path(f"ends-{id}/generation_config.json").write_text(json.dumps({"eos_token_id": id}))
    assert evaluate(f"ends-{id}", "--data", "texts/a.txt")["protocol"]["first_token_follows"] == id
    data = evaluating.write_records({"prompt": "to", "completion": "be"})
    assert evaluate(f"ends-{id}", "--data", data)["protocol"]["end"] == id
    said = capsys.readouterr().out
    assert f"the first of a document follows {name}\n" in said and f"and the {name} that ends them" in said


def test_a_number_of_0_and_none_at_all_are_told_apart():
    console = Console(file=io.StringIO(), width=80)
    numbers, intervals = {"acc": 0.0, "bits": None, "perplexity": 1e4}, {"acc": (0, 0), "bits": None,
                                                                         "perplexity": (1e3, 1e5)}
    console.print(numbers_table(dict.fromkeys(numbers, ""), numbers, intervals))
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["acc", "0.0000", "0.0000", "to", "0.0000"] in rows and ["bits", "–", "–"] in rows
    assert ["perplexity", "10,000.0000", "1,000.0000", "to", "100,000.0000"] in rows


def test_bootstrap_and_batch_size(monkeypatch):
    evaluating.check_bootstrap_and_batch_size(monkeypatch, Block, "run")
    evaluating.write_records(*({"query": "to be", "choices": ["or not", "that", "is"], "gold": n % 3}
                               for n in range(12)))
    evaluating.check_bootstrap_and_batch_size(monkeypatch, Block, "run", "--task", "multiple-choice",
                                              "--data", "records.jsonl")


def test_a_single_unit_has_no_interval(capsys):
    result = evaluate("run", "--limit", 5)
    assert result["intervals"] == {"loss": None, "perplexity": None, "bits_per_byte": None}
    assert "no intervals" in capsys.readouterr().out
    evaluate("run", "--limit", 19 * 8)
    assert "over 19 stretches" in (said := capsys.readouterr().out) and "too narrow" in said
    evaluate("run", "--limit", 19 * 8 + 1, "--context", 8)
    assert "over 20 stretches of 8 tokens, 1,000 resamples, seed 0\n" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "sentence", "arguments"), [
    (1, "model is not a run's folder, so it has no validation tokens.*--data", ["model"]),
    (1, "stride must be 1 to the context of 8 tokens, not 9", ["run", "--stride", "9"]),
    (1, "stride must be at least 1", ["run", "--stride", "0"]),
    (1, "context must be at least 1", ["run", "--context", "0"]),
    (1, "context must be at most the model's block_size of 8, not 9", ["run", "--context", "9"]),
    (1, "limit must be at least 1", ["run", "--limit", "0"]),
    (1, "batch_size must be at least 1", ["run", "--batch-size", "0"]),
    (1, "resamples must be at least 1", ["run", "--resamples", "0"]),
    (1, "seed must be", ["run", "--seed", "-1"]),
    (1, "seed must be", ["run", "--seed", str(2**64)]),
    (1, "there is no file, folder or built-in corpus called 'nowhere'", ["run", "--data", "nowhere"]),
    (1, "the character 'é'.*none of the", ["run", "--data", "texts"]),
    (1, "no folder nowhere", ["run", "--out", "nowhere/result.json"]),
    (1, "no regular file", ["run", "--surprisal", "texts"]),
    (1, "give two files", ["run", "--surprisal", "x", "--out", "./x"]),
    (1, "out and data are both", ["run", "--out", "texts/a.txt", "--data", "texts/../texts/a.txt"]),
    (1, "has no checkpoint 'first'", ["run", "--checkpoint", "first"]),
    (2, "task", ["run", "--task", "cooking"]),
    (2, "did you mean --stride", ["run", "--strid", "2"])])
def test_what_is_refused(capsys, status, sentence, arguments):
    refused(capsys, status, sentence, *arguments)
    assert not Path("result.json").exists()


def test_multiple_choice(capsys):
    lines = [{"ctx": "to be", "endings": ["or not", "question"], "label": 0},
             {"query": "that is", "choices": ["the", "to be", "é€"], "gold": 1}]
    Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = evaluate("run-bpe", "--task", "multiple-choice", "--data", "questions.jsonl")
    said   = capsys.readouterr().out
    model, tokenizer, *_ = load_model(Path("run-bpe"), "best", "cpu", print)
    hits, truncated = [], 0
    for line in lines:
        context, endings, answer = (line.get(a, line.get(b)) for a, b in (
            ("ctx", "query"), ("endings", "choices"), ("label", "gold")))
        scores = []
        for ending in endings:
            ids = tokenizer.encode_ordinary(f"{context} {ending}")
            cut = len(tokenizer.encode_ordinary(context))
            truncated += len(ids) > 9
            ids, own = ids[-9:], len(ids) - cut
            scores.append(-sum(nats(model, ids, 0, n) for n in range(len(ids) - own, len(ids))))
        hits.append(scores.index(max(scores)) == answer)
    assert result["numbers"]["acc"] == sum(hits) / 2
    assert result["task"] == "multiple-choice" and result["intervals"].keys() == result["numbers"].keys()
    assert result["protocol"]["questions"] == 2 and result["protocol"]["endings"] == 5
    assert result["protocol"]["truncated"] == truncated > 0
    assert result["data"] == {"source": "questions.jsonl", "kind": "questions",
                              "sha256": hashlib.sha256(Path("questions.jsonl").read_bytes()).hexdigest()}
    for shown in ("acc norm", "per character", "per byte", "2 questions, 5 endings", "lm-evaluation-harness",
                  f"{result['numbers']['acc']:.4f}", "bootstrap over 2 questions"):
        assert shown in said, shown


def test_options_of_multiple_choice():
    texts   = [("to be", ("or", "question")), ("that is", ("the", "be"))]
    data    = evaluating.write_records(*({"query": text, "choices": endings, "gold": 0}
                                         for text, endings in texts))
    command = ["run-bpe", "--task", "multiple-choice", "--data", data]
    whole   = evaluate(*command)["protocol"]
    few     = evaluate(*command, "--limit", 1, "--delimiter", "")["protocol"]
    narrow  = evaluate(*command, "--context", 5)["protocol"]
    encode  = load_model(Path("run-bpe"), "best", "cpu", print).tokenizer.encode_ordinary
    sizes   = [len(encode("to be" + ending)) for ending in texts[0][1]]
    assert few == whole | {
        "questions": 1, "endings": 2, "delimiter": "", "bootstrap_number": 1,
        "tokens": sum(sizes) - 2 * len(encode("to be")), "truncated": sum(size > 9 for size in sizes)}
    assert narrow == whole | {"context": 5, "truncated": sum(
        len(encode(f"{text} {ending}")) > 6 for text, endings in texts for ending in endings)} != whole


def test_an_ending_without_a_context_follows_the_end_of_text():
    model, tokenizer, *_ = load_model(Path("run-bpe"), "best", "cpu", print)
    ids     = [[tokenizer.eos_token_id, *tokenizer.encode_ordinary(ending)] for ending in ("be", "or")]
    scores  = [sum(nats(model, own, 0, n) for n in range(1, len(own))) for own in ids]
    data    = evaluating.write_records({"query": "", "choices": ["be", "or"], "gold": int(np.argmin(scores))})
    command = ["run-bpe", "--task", "multiple-choice", "--data", data, "--delimiter", ""]
    assert evaluate(*command)["numbers"]["acc"] == 1


@pytest.mark.parametrize(("sentence", "arguments"), [
    ("say by --data in which file", []), ("stride is of language-modelling", ["--stride", "4"]),
    ("surprisal is of language-modelling", ["--surprisal", "x"]),
    ("texts/a.txt:1 is no JSON", ["--data", "texts/a.txt"]),
    ("cannot read nowhere", ["--data", "nowhere"])])
def test_what_multiple_choice_refuses(capsys, sentence, arguments):
    refused(capsys, 1, sentence, "run", "--task", "multiple-choice", *arguments)
