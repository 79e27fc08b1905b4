"""npgpt evaluate on pairs and conversations: what the model writes, and the loss on the answers alone."""

import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import evaluating
import numpy as np
import pytest
import tiny
from evaluating import evaluate, lines_of, nats, refused, write_records

from npgpt import GPT
from npgpt.layers import Block
from npgpt.tokenizers import load_tokenizer
from npgpt.training.loading import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return evaluating.make_folder(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    evaluating.enter(folder, monkeypatch)


PAIRS = [{"prompt": "to", "completion": " be"}, {"prompt": "is", "completions": [" that", "é."]},
         {"prompt": "zzzz", "completion": " or"}]              # as many tokens as there is room for
LONG  = {"prompt": "to be or not to be", "completion": " that is"}

def test_generation(capsys):
    data   = write_records(*PAIRS, LONG,
                           {"prompt": "to", "completion": " "})
    result = evaluate("run-bpe", "--task", "generation", "--data", data, "--max-new-tokens", 4,
                      "--predictions", "predictions.jsonl", "--batch-size", 2)
    said   = " ".join(capsys.readouterr().out.split())
    model, tokenizer, ends, *_ = load_model(Path("run-bpe"), "best", "cpu", print)
    rows   = lines_of("predictions.jsonl")
    assert [row["record"] for row in rows] == [1, 2, 3]
    for n, row in enumerate(rows):
        prompt = tokenizer.encode_ordinary(PAIRS[n]["prompt"])
        new    = model.generate([prompt], max_new_tokens=4, eos_token_id=list(ends))[0, len(prompt):].tolist()
        assert row["prompt"] == PAIRS[n]["prompt"] and row["ended"] == (ends[0] in new)
        assert row["written"] == tokenizer.decode(id for id in new if id not in ends)
        assert row["references"] == PAIRS[n].get("completions", [PAIRS[n].get("completion")])
    assert result["task"] == "generation"
    assert result["numbers"]["squad_f1"] == pytest.approx(np.mean([row["squad_f1"] for row in rows]))
    assert result["protocol"] | {"signatures": 0, "missing_packages": 0} == {
        "records": 5, "prompts": 3, "too_long": 1, "without_answer": 1,
        "unfinished": sum(not row["ended"] for row in rows), "max_new_tokens": 4, "num_beams": 1,
        "eos_token_ids": list(ends), "stop_strings": [], "signatures": 0, "missing_packages": 0,
        "several_references": 1, "bootstrap_units": "prompts", "bootstrap_number": 3, "confidence": 0.95}
    assert result["data"] == {"source": data, "kind": "records",
                              "sha256": hashlib.sha256(Path(data).read_bytes()).hexdigest()}
    for shown in ("exact match", "squad em", "squad f1", "3 prompts; of each the likeliest token",
                  "left out: 1 too long for the model, 1 without an answer",
                  "1 prompt with several references: by each number the best of them counts",
                  "predictions: predictions.jsonl", "result: result.json"):
        assert shown in said, shown
    if result["protocol"]["missing_packages"]:
        assert "pip install 'npgpt[eval]'" in said
    else:
        assert "bleu: nrefs:" in said and "use_stemmer:False" in said


def test_generation_by_beams_up_to_a_string(capsys):
    data = write_records({"prompt": "to", "completion": "x"}, {"prompt": "be", "completion": "y"})
    own  = ["run-bpe", "--task", "generation", "--data", data, "--predictions", "predictions.jsonl"]
    evaluate(*own, "--num-beams", 2)
    model, tokenizer, ends, *_ = load_model(Path("run-bpe"), "best", "cpu", print)
    rows = lines_of("predictions.jsonl")
    for row in rows:
        prompt = tokenizer.encode_ordinary(row["prompt"])
        new    = model.generate([prompt], max_new_tokens=4, num_beams=2, eos_token_id=list(ends))
        assert row["written"] == tokenizer.decode(
            id for id in new[0, len(prompt):].tolist() if id not in ends)
    assert "the best of 2 beams" in capsys.readouterr().out
    stop   = rows[0]["written"][1:3].replace("\n", "\\n")
    result = evaluate(*own, "--num-beams", 2, "--stop-strings", stop, "--limit", 1, "--use-stemmer")
    assert lines_of("predictions.jsonl")[0]["written"] == rows[0]["written"].partition(
        stop.replace("\\n", "\n"))[0]
    if not result["protocol"]["missing_packages"]:
        assert "use_stemmer:True" in " ".join(result["protocol"]["signatures"].values())
    assert result["protocol"]["stop_strings"] == [stop.replace("\\n", "\n")]
    assert result["protocol"]["prompts"] == result["protocol"]["records"] == 1
    assert result["settings"]["max_new_tokens"] is None and result["protocol"]["max_new_tokens"] == 4


def saved(model, name):
    model.save_pretrained(name)
    load_tokenizer("model").save(name)
    return name


def test_beams_find_what_is_likelier():
    fresh = saved(GPT(GPT.from_pretrained("model").config, seed=1), "fresh")
    data  = write_records(*({"prompt": letter, "completion": "x"} for letter in "aeiounstq"))
    written = []
    for beams in 1, 8:
        evaluate(fresh, "--task", "generation", "--data", data, "--predictions", "predictions.jsonl",
                 "--num-beams", beams)
        written.append([row["written"] for row in lines_of("predictions.jsonl")])
    assert written[0] != written[1]


def test_the_models_end_ends_a_text_and_stands_before_an_empty_prompt():
    model = GPT.from_pretrained("model")
    end   = load_tokenizer("model").eos_token_id
    new   = model.generate([[end]], max_new_tokens=4, do_sample=False)[0, 1:]
    data  = write_records({"prompt": "", "completion": "x"})
    own   = ["--task", "generation", "--data", data, "--predictions", "predictions.jsonl"]
    assert evaluate("model", *own)["protocol"]["unfinished"] == 1
    assert lines_of("predictions.jsonl")[0]["written"] == load_tokenizer("model").decode(new)
    model.wte.weight.data[end] *= 100
    model.ln_f.weight.data[:]   = 0                            # whatever it reads, its end is the likeliest
    model.ln_f.bias.data[:]     = model.wte.weight.data[end]
    assert evaluate(saved(model, "ending"), *own)["protocol"]["unfinished"] == 0
    assert [(row["written"], row["ended"]) for row in lines_of("predictions.jsonl")] == [("", True)]


def test_bootstrap_and_batch_size(monkeypatch):
    pairs = [{"prompt": letter, "completion": "x"} for letter in "abcdefghijkl"]
    own   = ["run-bpe", "--data", "records.jsonl"]
    write_records(*pairs)
    evaluating.check_bootstrap_and_batch_size(monkeypatch, Block, *own)
    evaluate(*own, "--task", "generation", "--predictions", "predictions.jsonl")
    for pair, row in zip(pairs[::2], lines_of("predictions.jsonl")[::2], strict=True):
        pair["completion"] = row["written"]                                    # every other one is right
    write_records(*pairs)
    evaluating.check_bootstrap_and_batch_size(monkeypatch, Block, *own, "--task", "generation")


def test_generation_of_a_transcript_ends_with_its_turn(capsys):
    pytest.importorskip("jinja2")
    data   = write_records({"messages": [{"role": "user", "content": "a"},
                                         {"role": "assistant", "content": "b"}]})
    tiny.train_quietly(tiny.new_run(Path(), "long", tokenizer="bpe", vocab_size=270, block_size=32,
                                    max_iters=1, val_fraction=0.3))
    result = evaluate("long", "--task", "generation", "--data", data, "--max-new-tokens", 2,
                      "--predictions", "predictions.jsonl")
    assert "\nUser:" in result["protocol"]["stop_strings"]
    assert lines_of("predictions.jsonl")[0]["prompt"] == "User: a\nAssistant:"
    assert "'\\nUser:'" in capsys.readouterr().out


def test_generation_without_the_packages(capsys, monkeypatch):
    for name in ("sacrebleu", "sacrebleu.metrics", "rouge_score", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, name, None)
    result = evaluate("run-bpe", "--task", "generation", "--data", write_records(PAIRS[0]))
    assert result["numbers"].keys() == {"exact_match", "squad_em", "squad_f1"}
    assert "no BLEU or chrF or ROUGE without sacrebleu and rouge-score: pip install 'npgpt[eval]'" in \
        capsys.readouterr().out


@pytest.mark.parametrize(("sentence", "arguments"), [
    ("say by --data in which JSONL file the prompts", []),
    ("stride is of language-modelling: leave it out with --task generation", ["--stride", "4"]),
    ("context is of language-modelling and multiple-choice", ["--context", "4"]),
    ("delimiter is of multiple-choice", ["--delimiter", "x"]),
    ("max_new_tokens must be at least 1", ["--max-new-tokens", "0"]),
    ("num_beams must be at least 1", ["--num-beams", "0"]),
    ("max_new_tokens must be below the model's block_size of 8", ["--max-new-tokens", "8", "--data", "GOOD"]),
    ("records.jsonl has no prompt .* room for 7 new tokens .* of 8",
     ["--max-new-tokens", "7", "--data", "GOOD"]),
    ("stop_strings must not be empty", ["--stop-strings", "", "--data", "GOOD"]),
    ("out and predictions are both x", ["--out", "x", "--predictions", "./x", "--data", "GOOD"]),
    ("predictions and data are both rec", ["--predictions", "./records.jsonl", "--data", "GOOD"]),
    ("no folder nowhere", ["--predictions", "nowhere/x", "--data", "GOOD"]),
    ("record 1 of texts.jsonl has no answer", ["--data", "texts.jsonl"]),
    ("texts/a.txt, line 1 is not JSON", ["--data", "texts/a.txt"]),
    ("cannot read nowhere", ["--data", "nowhere"])])
def test_what_generation_refuses(capsys, sentence, arguments):
    good = write_records({"prompt": "to be", "completion": "x"})
    Path("texts.jsonl").write_text('{"text": "to be"}\n')
    arguments = [good if word == "GOOD" else word for word in arguments]
    refused(capsys, 1, sentence, "run", "--task", "generation", *arguments)
    assert not Path("x").exists()


def test_options_of_generation_are_refused_elsewhere(capsys):
    for option, value in (("max-new-tokens", 4), ("num-beams", 2), ("stop-strings", "x")):
        refused(capsys, 1, f"{option.replace('-', '_')} is of generation: leave it out with --task lang",
                "run", f"--{option}", value)
    refused(capsys, 1, "use_stemmer is of generation", "run", "--use-stemmer")
    refused(capsys, 1, "delimiter is of multiple-choice", "run", "--delimiter", "x")
    refused(capsys, 1, "predictions is of generation and classification", "run", "--predictions", "x")


def test_answers_alone_are_scored(capsys):
    data   = write_records(*PAIRS[:2], LONG, {"prompt": "x", "completion": ""})
    result = evaluate("run-bpe", "--data", data, "--surprisal", "surprisal.jsonl")
    said   = capsys.readouterr().out
    model, tokenizer, ends, *_ = load_model(Path("run-bpe"), "best", "cpu", print)
    alone, masked, size, too_long = [], 0, 0, 0
    for record in (*PAIRS[:2], LONG):
        answer = record.get("completion") or record["completions"][0]
        prompt = tokenizer.encode_ordinary(record["prompt"])
        tokens = [*prompt, *tokenizer.encode_ordinary(answer), ends[0]]
        if len(tokens) > 9:
            too_long += 1
            continue
        alone  += [nats(model, tokens, 0, n) for n in range(len(prompt), len(tokens))]
        masked += len(prompt)
        size   += len(answer.encode())
    assert result["numbers"]["loss"] == pytest.approx(np.mean(alone), rel=1e-5)
    assert result["numbers"]["bits_per_byte"] == pytest.approx(sum(alone) / math.log(2) / size, rel=1e-5)
    assert result["protocol"] == {
        "context": 8, "scored": "answers", "records": 3 - too_long, "tokens": len(alone), "bytes": size,
        "masked_ratio": pytest.approx(masked / (masked + len(alone))), "end": ends[0],
        "left_out": {"longer than the context": too_long, "without an answer": 1},
        "bootstrap_units": "records", "bootstrap_number": 3 - too_long, "confidence": 0.95}
    assert too_long == 1 and result["data"]["kind"] == "records"
    for shown in ("only answers are scored, and the <|endoftext|> that ends them: 2 records",
                  f"masked ratio {masked / (masked + len(alone)):.4f}",
                  "left out: 1 record longer than the context", "left out: 1 record without an answer",
                  "bootstrap over 2 records", f" {result['numbers']['loss']:.4f} "):
        assert shown in said, shown
    bits = [row["bits"] for row in lines_of("surprisal.jsonl")]
    assert bits == pytest.approx(np.array(alone) / math.log(2), rel=1e-4)
    assert evaluate("run-bpe", "--data", data, "--limit", 1)["protocol"]["records"] == 1
    Path("list.json").write_text("[" + ",".join(Path(data).read_text().splitlines()) + "]")
    assert evaluate("run-bpe", "--data", "list.json")["numbers"] == result["numbers"]
    narrow = evaluate("run-bpe", "--data", data, "--context", 4)["protocol"]
    assert (narrow["context"], narrow["left_out"]["longer than the context"]) == (4, 2)
    refused(capsys, 1, "stride is of texts", "run-bpe", "--data", data, "--stride", "2")
    refused(capsys, 1, "has no token that ends a text", "run", "--data", data)
    refused(capsys, 1, "no answer to score", "run-bpe", "--data", write_records(LONG))


def test_of_a_conversation_the_answer_alone_is_scored():
    pytest.importorskip("jinja2")
    tiny.train_quietly(tiny.new_run(Path(), "talker", tokenizer="bpe", vocab_size=270, block_size=32,
                                    max_iters=1, val_fraction=0.3))
    data = write_records({"messages": [{"role": "user", "content": "what is it?"},
                                       {"role": "assistant", "content": "b"}]})
    told = evaluate("talker", "--data", data)["protocol"]
    assert (told["scored"], told["records"]) == ("answers", 1) and told["bytes"] < len("what is it?")


def test_a_conversation_is_written_and_ended_as_the_model_has_it(capsys):
    pytest.importorskip("jinja2")
    shutil.copytree("model", "talks")
    b, = load_tokenizer("model").encode("b")
    Path("talks/generation_config.json").write_text(json.dumps({"eos_token_id": b}))
    Path("talks/chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role[0] }}>{{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a>{% endif %}")
    talk = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yb"}]}
    told = evaluate("talks", "--data", write_records(talk))["protocol"]
    assert (told["tokens"], told["masked_ratio"], told["end"]) == (2, 6 / 8, b)        # u>x<|endoftext|>a>yb
    assert "and the b that ends them" in capsys.readouterr().out


def test_texts_beside_prompts_are_answers():
    told = evaluate("run-bpe", "--data", write_records(PAIRS[0], {"text": "that"}))["protocol"]
    assert (told["scored"], told["records"]) == ("answers", 2)


def test_records_that_are_texts_are_documents():
    texts  = [Path("texts/a.txt").read_text(), Path("texts/b.txt").read_text()]
    data   = write_records(*({"text": text} for text in texts))
    result = evaluate("run-bpe", "--data", data)
    folder = evaluate("run-bpe", "--data", "texts")
    assert (result["numbers"], result["protocol"]) == (folder["numbers"], folder["protocol"])
    labelled = evaluate("run-bpe", "--data", write_records(*({"text": text, "label": 1} for text in texts)))
    assert labelled["numbers"] == folder["numbers"]
