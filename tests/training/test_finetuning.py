"""Fine-tuning: what learns and what stays, that it goes on bit for bit, and that nothing of the data is lost
without a word."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import tiny

from npgpt import GPT, BPETokenizer, GPTConfig
from npgpt.cli.main import main
from npgpt.data.examples import Examples, open_examples, prompts_and_answers, save_examples
from npgpt.errors import ConfigError, DataError
from npgpt.generation.chat import TRANSCRIPT, Conversation, chat_template
from npgpt.tensor import Key
from npgpt.training.checkpoint import list_checkpoints, load_checkpoint
from npgpt.training.communication import run_on_threads
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.loading import load_classifier, load_model
from npgpt.training.loop import overfits, sample_text
from npgpt.training.runs import create_run, new_model, new_run_path, open_run
from npgpt.training.trainer import Trainer

SETTINGS = {"block_size": 24, "batch_size": 2, "gradient_accumulation_steps": 2, "max_iters": 12,
            "learning_rate": 1e-2, "warmup_iters": 2, "eval_interval": 6, "log_interval": 3,
            "sample_tokens": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run with a tokenizer of bytes and an end of text, trained for two steps."""
    folder = tmp_path_factory.mktemp("base")
    run = tiny.new_run(folder, tokenizer="bpe", vocab_size=257, block_size=24, max_iters=2, eval_interval=2,
                       sample_tokens=0, attention_dropout=0.3)
    tiny.train_quietly(run)
    return run.path


def jsonl(folder, rows, name="data.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def pairs(count, seed=0):
    rng = random.Random(seed)
    return [{"prompt": f"{rng.randrange(1000)}:", "completion": "x" * rng.randrange(1, 9)}
            for _ in range(count)]


def finetuning(folder, base, rows, name="run", note=lambda text: None, **settings):
    """A fine-tuning in folder/name, created and not yet trained."""
    config = FinetuneConfig(**SETTINGS | {"model": str(base), "data": jsonl(folder, rows)} | settings)
    return create_run(folder / name, config, note, load_model(base, "best", "cpu", print))


def test_one_that_was_killed_while_it_was_made_is_begun_anew(tmp_path, base):
    run = finetuning(tmp_path, base, pairs(20))
    (run.path / "config.toml").unlink()                                       # the last that is written
    (run.path / ".base.7.partial").mkdir()
    assert new_run_path(FinetuneConfig(out_dir=str(run.path)), "x") == run.path
    texts = [{"text": "to be or not to be " * 9}] * 20
    assert not isinstance(finetuning(tmp_path, base, texts).train, Examples)
    assert sorted(path.name for path in run.path.iterdir()) == ["base", "config.toml", "data", "lock"]


def values(model):
    return {name: parameter.data.copy() for name, parameter in model.parameters.items()}


def latest(run):
    return load_checkpoint(list_checkpoints(run.path)[0])


@pytest.mark.parametrize("how", [{}, {"lora_rank": 2}, {"trainable": "h.1.*"}, {"packing": False}])
def test_a_fine_tuning_that_was_stopped_goes_on_bit_for_bit(tmp_path, base, how):
    """And depends on nothing outside its folder."""
    start = tmp_path / "start"
    shutil.copytree(base, start)
    whole = finetuning(tmp_path, start, pairs(30), "whole", **how)
    parts = finetuning(tmp_path, start, pairs(30), "parts", **how)
    shutil.rmtree(start)
    assert tiny.train_quietly(whole)
    steps = iter([False] * 7 + [True])
    assert not tiny.train_quietly(parts, stop=lambda: next(steps))
    assert tiny.train_quietly(open_run(parts.path), resume=True)
    for kind in ("model", "optimizer"):
        one, other = latest(whole).tensors[kind], latest(parts).tensors[kind]
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("how", [{}, {"lora_rank": 2}, {"trainable": "h.1.*,ln_f.*"}])
@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_the_number_of_ranks_changes_nothing_but_rounding(tmp_path, base, how, kind):
    rows = pairs(30) if kind == "pairs" else [{"text": row["prompt"] * 2, "label": len(row["completion"]) % 3}
                                              for row in pairs(30)]
    run  = finetuning(tmp_path, base, rows, dtype="float64", **how)

    def trained(workers):
        model = new_model(run.path, run.config, 257)

        def work(ranks):
            own = model if ranks.rank == 0 else model.replica()
            trainer = Trainer(run.config, own, run.train, run.val, ranks)
            return [trainer.update(step).loss for step in range(5)], trainer.evaluate()

        return run_on_threads(workers, work), values(model)

    (losses, val), after = trained(1)
    (others, other_val), other_after = trained(3)
    np.testing.assert_allclose([*losses, val], [*others, other_val], rtol=1e-12)
    assert losses[0] != losses[-1]
    for name in after:
        np.testing.assert_allclose(after[name], other_after[name], rtol=0, atol=1e-12)


def test_a_step_and_an_evaluation_of_packed_rows_are_those_of_each_example_alone(tmp_path, base):
    run     = finetuning(tmp_path, base, pairs(60), dropout=0.0, dtype="float64", val_fraction=0.4)
    model   = new_model(run.path, run.config, 257)
    trainer = Trainer(run.config, model, run.train, run.val)

    def alone(batch):
        """The summed loss of the examples, one after the other, whose gradients add up; how many count."""
        total, count = 0.0, 0
        for tokens, targets, numbers in zip(*batch, strict=True):
            assert numbers.max() > 1
            for number in range(1, numbers.max() + 1):
                own = numbers == number
                loss, saved = model.loss(tokens[None, own], targets[None, own], None, 1)
                model.backward(saved)
                total, count = total + loss, count + (targets[own] != -100).sum()
        return total, count

    batch = trainer.batches.at(0)
    loss  = trainer.loss_and_gradients(0, batch)
    grad  = model.flat.grad.copy()
    model.zero_grad()
    total, count = alone(batch)
    np.testing.assert_allclose(loss, total / count, rtol=1e-12)
    np.testing.assert_allclose(grad, model.flat.grad / count, rtol=0, atol=1e-12)
    totals, counts = zip(*map(alone, trainer._batches(run.val).evaluation(2, 200)), strict=True)
    np.testing.assert_allclose(trainer.evaluate(), sum(totals) / sum(counts), rtol=1e-12)


def test_all_learns_where_nothing_else_is_said(tmp_path, base):
    run    = finetuning(tmp_path, base, pairs(30))
    before = values(new := new_model(run.path, run.config, 257))
    assert new.config.dropout == SETTINGS["dropout"] != 0.2       # which the base was trained with
    assert new.config.attention_dropout == 0                      # and not the base's 0.3
    other  = finetuning(tmp_path, base, pairs(30), "other", attention_dropout=0.4)
    assert new_model(other.path, other.config, 257).config.attention_dropout == 0.4
    assert all(np.array_equal(before[name], parameter.data) for name, parameter in
               load_model(base, "best", "cpu", print).model.parameters.items())
    tiny.train_quietly(run)
    after = values(load_model(run.path, "latest", "cpu", print).model)
    assert all(not np.array_equal(before[name], after[name]) for name in before)


def test_only_what_is_named_learns_and_only_that_is_in_a_checkpoint(tmp_path, base):
    run    = finetuning(tmp_path, base, pairs(30), trainable="h.1.*, ln_f.*")
    before = values(new_model(run.path, run.config, 257))
    tiny.train_quietly(run)
    after = values(load_model(run.path, "latest", "cpu", print).model)
    learned = {name for name in before if not np.array_equal(before[name], after[name])}
    assert learned == {name for name in before if name.startswith(("h.1.", "ln_f."))} \
        == latest(run).tensors["model"].keys()


def test_adapters_learn_alone_and_are_merged_where_the_model_is_used(tmp_path, base):
    run = finetuning(tmp_path, base, pairs(30), lora_rank=2, lora_alpha=6.0,
                     lora_targets="attn.c_attn, mlp.c_proj", dropout=0.0)
    tiny.train_quietly(run)
    learned = latest(run).tensors["model"]
    assert learned.keys() == {f"h.{n}.{where}.lora_{ab}" for n in (0, 1) for ab in "AB"
                              for where in ("attn.c_attn", "mlp.c_proj")}
    before, after = (values(load_model(path, "latest", "cpu", print).model) for path in (base, run.path))
    for name in before:
        stem  = name.removesuffix(".weight")
        there = name.endswith(".weight") and f"{stem}.lora_A" in learned
        added = 3 * learned[f"{stem}.lora_A"] @ learned[f"{stem}.lora_B"] if there else 0
        np.testing.assert_allclose(after[name], before[name] + added, rtol=0, atol=1e-6)
        assert np.any(added) == there
    seeds = (new_model(run.path, dataclasses.replace(run.config, seed=seed), 257) for seed in (1, 1, 2))
    first, again, other = (model.parameters["h.0.attn.c_attn.lora_A"].data for model in seeds)
    assert (first == again).all() and (first != other).all()


def test_a_classifier_learns_to_tell_classes(tmp_path, base):
    rng  = random.Random(0)
    rows = [{"text": "".join(rng.choice("ab") for _ in range(rng.randrange(2, 9))) + end, "label": label}
            for _ in range(40) for end, label in (("x", "ex"), ("y", "why"))]
    run  = finetuning(tmp_path, base, rows, max_iters=60, eval_interval=30, dropout=0.0, lora_rank=4)
    tiny.train_quietly(run)
    model, tokenizer = load_classifier(run.path, "best", "cpu", print)
    assert model.labels == ("ex", "why") and tokenizer.vocab_size == 257
    assert any(name.startswith("score.") for name in latest(run).tensors["model"])
    for text, label in (("abax", 0), ("by", 1), ("bbbbbbbx", 0)):
        logits, _ = model.forward(np.array([tokenizer.encode(text)]))
        assert logits[0].argmax() == label
    assert sample_text(run, model) is None
    with pytest.raises(ConfigError, match="is a classifier, which writes nothing"):
        load_model(run.path, "best", "cpu", print)
    with pytest.raises(ConfigError, match="is no classifier: npgpt finetune"):
        load_classifier(base, "best", "cpu", print)


def test_the_head_of_a_classifier_learns_beside_what_is_named(tmp_path, base):
    rows  = [{"text": str(n), "label": "ab"[n % 2]} for n in range(8)]
    run   = finetuning(tmp_path, base, rows, trainable="h.1.mlp.*,", dtype="float64",
                       gradient_checkpointing=True)
    model = new_model(run.path, run.config, 257)
    assert {name for name in model.parameters if name.startswith("score.")} < model.flat.parameters.keys()
    assert {name.split(".mlp.")[0] for name in model.flat.parameters} == {"h.1", "score.weight"}
    assert model.flat.data.dtype == np.float64 and model.config.gradient_checkpointing
    assert model.pad_token_id == 256


def test_labels_that_are_numbers_are_in_their_order(tmp_path, base):
    run = finetuning(tmp_path, base, [{"text": str(n), "label": n} for n in range(12)])
    model = new_model(run.path, run.config, 257)
    assert model.labels == tuple(map(str, range(12)))
    assert all(model.labels[label] == chr(token) for token, label in [(48, 0), (57, 9)])


def test_labels_that_are_one_number_are_in_an_order_too(tmp_path, base):
    """Not in that of a set, which is another in each process."""
    rows  = [{"text": str(n), "label": "0" * (n + 1)} for n in range(12)]
    model = new_model((run := finetuning(tmp_path, base, rows)).path, run.config, 257)
    assert model.labels == tuple("0" * n for n in range(1, 13))


def test_a_classifiers_head_is_drawn_by_the_seed(tmp_path, base):
    rows  = [{"text": str(n), "label": "ab"[n % 2]} for n in range(12)]
    heads = [new_model(run.path, run.config, 257).parameters["score.weight"].data for run in (
        finetuning(tmp_path, base, rows, f"run{n}", seed=seed) for n, seed in enumerate((5, 5, 6)))]
    assert np.array_equal(heads[0], heads[1]) and not np.array_equal(heads[0], heads[2])


@pytest.mark.parametrize(("kinds", "told"), [
    (2, "labels: 'a' 2, '\\x1b' 1"),
    (10, "labels: 'a' 10, '\\x1b' 9, 'c' 8, 'd' 7, 'e' 6, 'f' 5, 'g' 4, 'h' 3, 'i' 2, 'j' 1"),
    (12, "labels: 'a' 12, '\\x1b' 11, 'c' 10, 'd' 9, 'e' 8, 'f' 7, 'g' 6, 'h' 5, 'i' 4, 'j' 3, and 2 more")])
def test_how_many_records_have_a_label_is_told_the_most_first(tmp_path, base, kinds, told):
    said = []
    rows = [{"text": f"{n} {m}", "label": "a\x1bcdefghijkl"[n]} for n in range(kinds)
            for m in range(kinds - n)]
    finetuning(tmp_path, base, rows[::-1], note=said.append)
    assert told in said
    finetuning(tmp_path, base, pairs(20), "pairs", note=(none := []).append)
    assert not any("labels" in line for line in none)


def test_an_empty_text_gives_no_second_end(tmp_path, base):
    texts = jsonl(tmp_path, [{"text": text} for text in ("to be " * 99, "", "or not " * 99)])
    run   = create_run(tmp_path / "run", FinetuneConfig(**SETTINGS | {
        "model": str(base), "data": texts, "val_data": texts}), print, load_model(base, "best", "cpu", print))
    end = run.tokenizer.eos_token_id
    for tokens in (run.train, run.val):
        assert (tokens == end).any() and not ((tokens[1:] == end) & (tokens[:-1] == end)).any()


@pytest.mark.parametrize(("held", "told"), [
    ([("1", "a"), ("2", "b")], "; none has the label 'c'"),
    ([("1", "a"), ("2", "c"), ("x" * 400, "b")],
     "; left out: 1 longer than the context; none has the label 'b'"),
    ([("1", "a"), ("2", "b"), ("3", "c")], "of 3 tokens")])
def test_a_label_that_one_side_lacks_is_told(tmp_path, base, held, told):
    """As it may of a draw, which does not look at labels; what is left out does not count."""
    rows = [{"text": str(n), "label": "abc"[n % 3]} for n in range(9)]
    val  = tmp_path / "val.jsonl"
    val.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in held))
    finetuning(tmp_path, base, rows, val_data=str(val), note=(said := []).append)
    assert said[-1].endswith(told) and said[-2].endswith("of 9 tokens")


def test_conversations_teach_a_template_that_chat_then_uses(tmp_path, base):
    pytest.importorskip("jinja2")
    rows = [{"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "yes"}]}
            for n in range(12)]
    run  = finetuning(tmp_path, base, rows)
    assert len(run.train) + len(run.val) == 12
    prompt, answer = next(prompts_and_answers(run.val))
    assert run.tokenizer.decode(answer) == " yes<|endoftext|>"
    tiny.train_quietly(run)
    model, tokenizer, ends, template, named, _ = load_model(run.path, "latest", "cpu", print)
    assert ends == (256,) and template == TRANSCRIPT and named["eos_token"] == "<|endoftext|>"
    number = run.tokenizer.decode(prompt).split()[1]
    talk   = Conversation(model, tokenizer, 24, template, max_new_tokens=2, eos_token_id=ends)
    assert talk._prompt([{"role": "user", "content": number}])[0] == prompt
    assert talk._render([*rows[0]["messages"], {"role": "user", "content": "7"}]) == \
        "User: 0\nAssistant: yes<|endoftext|>\nUser: 7\nAssistant:"
    written = chat_template(template, eos_token="<|endoftext|>")(rows[0]["messages"], False)
    assert written == "User: 0\nAssistant: yes<|endoftext|>\n"


def test_of_a_long_context_a_part_is_taken_and_answers_may_end_otherwise_than_texts(tmp_path):
    model = tmp_path / "model"
    GPT(GPTConfig(vocab_size=257, block_size=1030, n_layer=1, n_head=1, n_embd=2)).save_pretrained(model)
    BPETokenizer(()).save(model)
    (model / "generation_config.json").write_text('{"eos_token_id": 65, "temperature": 0.5}')
    answers = finetuning(tmp_path, model, pairs(20), "answers", block_size=0)
    texts   = finetuning(tmp_path, model, [{"text": "a text"}] * 9, "texts", block_size=8)
    assert (answers.config.block_size, answers.train.tokens[-1], texts.train[-1]) == (1024, 65, 256)
    base = texts.path / "base"                             # takes along what the model's files say further
    assert json.loads((base / "generation_config.json").read_text())["temperature"] == 0.5
    assert json.loads((base / "config.json").read_text())["bos_token_id"] == 256           # GPT-2's


@pytest.mark.parametrize("name", ["talks.json", "talks.ndjson"])
def test_conversations_may_be_sharegpts_in_one_list(tmp_path, base, name):
    pytest.importorskip("jinja2")
    def talks(field, who, said, names):
        return [{field: [{who: name, said: text} for name, text in zip(names, f"{n}y", strict=True)]}
                for n in range(8)]
    ours = finetuning(tmp_path, base, talks("messages", "role", "content", ("user", "assistant")),
                      block_size=24)
    path = tmp_path / name
    path.write_text(json.dumps(talks("conversations", "from", "value", ("human", "gpt"))))
    theirs = finetuning(tmp_path, base, [], "theirs", data=str(path), block_size=24)
    for one, other in ((ours.train, theirs.train), (ours.val, theirs.val)):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.counted, other.counted)


def test_what_is_left_out_is_told(tmp_path, base):
    said = []
    rows = [*pairs(20), {"prompt": "a", "completion": ""}, {"prompt": "b" * 30, "completion": "c"},
            {"prompt": "d" * 30, "completion": "e"}]
    val  = jsonl(tmp_path, pairs(3, 1), "val.jsonl")
    run  = finetuning(tmp_path, base, rows, note=said.append, val_data=val)
    assert len(run.train) == 20 and len(run.val) == 3
    assert any("20 examples to train on" in line and "left out: 2 longer than the context; left out: 1 "
               "without an answer" in line for line in said)
    with pytest.raises(DataError, match="no example is left to train on; left out: 1 longer than the conte"):
        finetuning(tmp_path, base, [{"prompt": "b" * 30, "completion": "c"}], "none", val_data=val)
    assert not (tmp_path / "none").exists()


def test_labels_are_on_both_sides_or_on_neither(tmp_path, base):
    labelled = [{"text": str(n), "label": "ab"[n % 2]} for n in range(6)]
    for rows, val in ((labelled, pairs(6)), (pairs(6), labelled)):
        with pytest.raises(DataError, match="data and val_data must both have labels, or neither"):
            finetuning(tmp_path, base, rows, val_data=jsonl(tmp_path, val, "val.jsonl"))
    assert not (tmp_path / "run").exists()


def test_epochs_and_ten_evaluations_are_the_default(tmp_path, base):
    run = finetuning(tmp_path, base, pairs(300), max_iters=0, eval_interval=0, epochs=2.0, packing=False,
                     val_fraction=0.2)
    updates = round(2 * len(run.train) / 4)
    few     = FinetuneConfig(batch_size=2, epochs=0.1).resolved(rows=3)
    assert (few.max_iters, few.eval_interval) == (1, 1)
    some = FinetuneConfig(batch_size=4, gradient_accumulation_steps=1, epochs=1.0)
    assert some.resolved(rows=7).max_iters == 2
    assert (run.config.max_iters, run.config.eval_interval) == (updates, updates // 10)
    assert run.config.block_size == 24
    labelled = [{"text": str(n), "label": "ab"[n % 2]} for n in range(40)]   # which never share a row
    run = finetuning(tmp_path, base, labelled, "labels", max_iters=0, epochs=2.0, val_fraction=0.2)
    assert run.config.max_iters == 2 * 32 // 4


def test_an_overfitting_model_is_told_stops_early_and_the_best_is_kept(tmp_path, base, capsys):
    """The answers to validate on are others than those that are learned."""
    rows = [{"prompt": "q", "completion": "xxxx"}] * 20
    val  = jsonl(tmp_path, [{"prompt": "q", "completion": "the question"}], "val.jsonl")
    run  = finetuning(tmp_path, base, rows, val_data=val, max_iters=100, eval_interval=2,
                      early_stopping_patience=3)
    assert tiny.train_quietly(run)
    said   = " ".join(capsys.readouterr().out.split())
    state  = latest(run).state
    best   = state["best_step"]
    lines  = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    assert f"stopped early: 3 evaluations in a row were no better than that at step {best}" in said
    assert f"overfitting: since step {best} the loss on the training data fell from" in said
    assert latest(run).step == best + 6 < 100
    assert state["best_val_loss"] == min(line["val_loss"] for line in lines if "val_loss" in line)
    assert list_checkpoints(run.path)[-1].name == f"step-{best:06d}"


@pytest.mark.parametrize("since, train_loss, at_best, told", [
    (2, 0.9, 1.0, True), (3, 0.9, 1.0, True), (1, 0.9, 1.0, False), (2, 1.1, 1.0, False),
    (2, None, 1.0, False), (2, 0.9, None, False)])
def test_overfitting_is_a_loss_that_falls_on_what_is_learned_and_rises_elsewhere_twice(since, train_loss,
                                                                                      at_best, told):
    assert overfits({"evaluations_since_best": since, "train_loss_at_best": at_best}, train_loss) == told


def test_a_model_that_still_gets_better_is_not_said_to_overfit(tmp_path, base, capsys):
    tiny.train_quietly(finetuning(tmp_path, base, pairs(30), early_stopping_patience=1, eval_interval=3))
    said = capsys.readouterr().out
    assert "overfitting" not in said and "stopped early" not in said


def test_texts_are_learned_as_in_pretraining(tmp_path, base):
    rows = [{"text": "to be or not to be that is the question " * 3}, {"text": "to be " * 30}]
    run  = finetuning(tmp_path, base, rows, max_iters=0, epochs=2.0)
    assert not isinstance(run.train, Examples) and len(run.train) > 200
    tiny.train_quietly(run)
    assert latest(run).step == round(2 * (len(run.train) // 24) / 4)          # windows, four an update


def test_a_prepared_folder_must_have_the_models_tokenizer(tmp_path, base):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("to be or not to be\n\n" * 30)
    (tmp_path / "texts" / "b.txt").write_text("that is the question\n\n" * 30)

    def prepared(name, tokenizer):
        assert main(["prepare", str(tmp_path / "texts"), "--tokenizer", str(tokenizer), "--out-dir",
                     str(tmp_path / name), "--val-fraction", "0.5"]) == 0
        return {"data": str(tmp_path / name)}

    run = finetuning(tmp_path, base, [], max_iters=0, epochs=1.0, **prepared("own", base / "tokenizer"))
    tiny.train_quietly(run)
    assert latest(run).step == round(len(run.train) // 24 / 4) > 2
    other = tiny.new_run(tmp_path, "other", tokenizer="bpe", vocab_size=258, block_size=24)
    with pytest.raises(DataError, match="was prepared with another tokenizer than the model's"):
        finetuning(tmp_path, base, [], "none", **prepared("others", other.path / "tokenizer"))


def test_examples_of_another_tokenizer_are_refused(tmp_path, base):
    run    = finetuning(tmp_path, base, pairs(20))
    path   = run.path / "data/val.safetensors"
    found  = open_examples(path)
    assert found.tokens.max() == 256
    tokens = np.where(found.tokens == 256, 257, found.tokens).astype(np.int32)
    save_examples(path, dataclasses.replace(found, tokens=tokens))
    with pytest.raises(DataError, match="val.safetensors has token 257, but the tokenizer beside it has 257"):
        open_run(run.path)


def test_the_sample_is_the_answer_to_the_first_example_to_validate_on(tmp_path, base):
    run   = finetuning(tmp_path, base, pairs(30))
    model = new_model(run.path, run.config, 257)
    prompt, text = sample_text(run, model, 5)
    first = run.val.tokens[:run.val.counted.argmax()]
    ids   = model.generate(first[None].astype(int), 5, eos_token_id=256)[0, len(first):]
    assert prompt == run.tokenizer.decode(first.tolist()) and text == run.tokenizer.decode(ids.tolist())


def test_attention_dropout_acts_without_other_dropout():
    changes = {"dropout": 0.0, "attention_dropout": 0.5, "dtype": "float64"}
    config = tiny.TrainConfig(**tiny.SETTINGS | changes)
    tokens = np.random.default_rng(0).integers(0, 11, 500)
    model  = GPT(config.model(11), 1, dtype="float64")
    batch  = (trainer := Trainer(config, model, tokens, tokens)).batches.at(0)
    part   = batch.rows(slice(0, 3))
    keyed, _ = model.loss(part.tokens, part.targets, Key(config.seed, step=0), batch.targets.size)
    plain, _ = model.loss(part.tokens, part.targets, None, batch.targets.size)
    rest     = batch.rows(slice(3, 6))
    other, _ = model.loss(rest.tokens, rest.targets, Key(config.seed, step=0, example=3), batch.targets.size)
    assert plain != keyed and trainer.loss_and_gradients(0, batch) == keyed + other


@pytest.mark.parametrize("settings, words", [
    ({"trainable": "h.7.*"}, "trainable: 'h.7.*' is the name of no parameter"),
    ({"lora_rank": 2, "lora_targets": "c_wrong"}, "LoRA cannot be put at 'c_wrong'"),
    ({"block_size": 25}, "block_size must be at most the model's 24, not 25"),
    ({"val_data": "text.txt"}, "data and val_data must be of one kind"),
])
def test_what_cannot_be_is_refused_and_nothing_is_left(tmp_path, base, settings, words):
    with pytest.raises(ConfigError, match=words):
        finetuning(tmp_path, base, pairs(30), **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("settings, words", [
    ({"epochs": 0.0}, "epochs must be above 0"), ({"lora_rank": -1}, "lora_rank must be at least 0"),
    ({"lora_rank": 2, "trainable": "h.*"}, "lora_rank and trainable both say"),
    ({"lora_alpha": 0.0}, "lora_alpha must be above 0"), ({"dropout": 1.0}, "dropout must be at least 0"),
    ({"attention_dropout": -0.1}, "attention_dropout must be at least 0 and below 1"),
    ({"val_fraction": 1.0}, "val_fraction must be above 0"),
    ({"val_fraction": 0.0}, "val_fraction must be above 0"),
    ({"max_iters": -1}, "max_iters must be at least 0"),
    ({"eval_interval": -1}, "eval_interval must be at least 0"),
    ({"block_size": -1}, "block_size must be at least 0"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"early_stopping_patience": -1}, "early_stopping_patience must be at least 0")])
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        FinetuneConfig(**settings)


def test_settings_come_back_from_the_file(tmp_path, base):
    run = finetuning(tmp_path, base, pairs(30), lora_rank=3)
    assert open_run(run.path).config == run.config
    assert dataclasses.replace(run.config, block_size=24, data="") == FinetuneConfig(
        **SETTINGS | {"model": str(base), "lora_rank": 3})
