"""The reference curves are those of the presets as they are, and no seed is abnormal beside the others; a run
is judged by Student's t; a text is known again whatever the seed."""

import dataclasses
import functools
import json
import math
import re

import numpy as np
import pytest
import tiny

from npgpt.inspection.metrics import read_metrics
from npgpt.inspection.reference import (
    QUANTITIES,
    Reference,
    Text,
    read_reference,
    reference_names,
    sample_curves,
    settings_that_matter,
    text_of,
    write_reference,
)
from npgpt.inspection.verification import (
    CurveError,
    allowed,
    band,
    judge,
    normal_range,
    retrace,
    same_text,
    sentence,
    settings_that_differ,
    t_quantile,
)
from npgpt.training.config import TrainConfig, read_settings

NAN = float("nan")


def synthetic(n=6, spread=0.01, seed=0) -> Reference:
    """Curves that fall from 4 to 2, with independent normal noise."""
    rng, steps = np.random.default_rng(seed), np.arange(0, 501, 50)
    curves = {name: 2 + 2 * np.exp(-steps / 100) + spread * rng.normal(size=(n, len(steps)))
              for name in QUANTITIES}
    for name in ("train_loss", "grad_norm"):
        curves[name][:, 0] = NAN
    beginning = {"train_loss": np.full((n, 2), 4.0), "grad_norm": np.full((n, 2), 1.0)}
    return Reference("quick", "0", {}, Text("python-docs", 100, "a"), True, tuple(range(n)), 10, 200, steps,
                     curves, np.array([10, 20]), beginning)


@pytest.mark.parametrize("name", reference_names())
def test_a_stored_reference_is_of_its_preset_as_it_is(name):
    reference = read_reference(name)
    settings  = settings_that_matter(read_settings(name, None), reference.settings["vocab_size"])
    assert settings_that_differ(settings, reference.settings) == []
    assert reference.preset == name and len(reference.seeds) >= 5 and reference.seeds[0] == 1337
    assert 400 <= reference.steps[-1] <= reference.settings["lr_decay_iters"]
    for quantity, curves in reference.curves.items():
        assert curves.shape == (len(reference.seeds), len(reference.steps))
        assert not np.isnan(curves[:, quantity != "val_loss":]).any()
        assert curves[:, -1].std(ddof=1) < (0.1 if reference.one_split or quantity != "val_loss" else 0.5)
    assert abs(reference.curves["val_loss"][:, 0] - math.log(reference.settings["vocab_size"])).max() < 0.1


def test_there_are_the_references_that_the_readme_names():
    assert reference_names() == ["quick", "shakespeare-char-cpu"]


@pytest.mark.parametrize("name", reference_names())
def test_no_seed_is_abnormal_beside_the_others(name):
    whole = read_reference(name)
    for left_out in range(len(whole.seeds)):
        others = np.arange(len(whole.seeds)) != left_out
        reference = whole._replace(seeds=tuple(np.array(whole.seeds)[others].tolist()),
                                   curves={key: curve[others] for key, curve in whole.curves.items()})
        rows = judge({key: curve[left_out] for key, curve in whole.curves.items()}, reference)
        normal, said = sentence(rows, reference)
        assert normal and len(rows) == 3 * len(whole.steps) - 2, f"seed {whole.seeds[left_out]}: {said}"


def test_what_is_written_is_read(tmp_path, monkeypatch):
    reference = synthetic()
    (tmp_path / "quick.reference.json").write_text(write_reference(reference))
    monkeypatch.setattr("npgpt.inspection.reference.resources.files", lambda package: tmp_path)
    assert reference_names() == ["quick"]
    again = read_reference("quick")
    assert again._replace(curves={}, beginning={}, steps=0, beginning_steps=0) == reference._replace(
        curves={}, beginning={}, steps=0, beginning_steps=0)
    for part in ("curves", "beginning"):
        for name, array in getattr(reference, part).items():
            np.testing.assert_allclose(getattr(again, part)[name], array, atol=5.1e-6)
    assert again.steps.tolist() == reference.steps.tolist()


@pytest.mark.parametrize("p, freedom, value", [         # from tables of the t-distribution
    (0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.95, 3, 2.3534), (0.995, 4, 4.6041), (0.9975, 5, 4.7733),
    (0.9975, 7, 4.0293), (0.9995, 9, 4.7809), (0.95, 30, 1.6973)])
def test_quantiles_of_t(p, freedom, value):
    assert t_quantile(p, freedom) == pytest.approx(value, abs=6e-5)


def test_a_new_seed_falls_outside_as_often_as_the_level_says(monkeypatch):
    """One step, normal seeds: 20 % of new ones lie outside an interval of 80 %, with the mean's own error."""
    monkeypatch.setattr("npgpt.inspection.verification.LEVEL", 0.2)
    rng, outside = np.random.default_rng(0), 0
    for _ in range(4000):
        reference = synthetic(5)._replace(steps=np.array([50]),
                                          curves={name: rng.normal(size=(5, 1)) for name in QUANTITIES})
        sampled = {name: rng.normal(size=1) for name in QUANTITIES}
        outside += sum(row.verdict != "normal" for row in judge(sampled, reference))
    assert outside / 12000 == pytest.approx(0.2, abs=0.015)


def test_the_spread_is_that_of_the_neighbouring_steps_but_of_step_0():
    reference = synthetic()
    values = reference.curves["val_loss"]
    spread = band(reference, "val_loss")[1]
    assert spread[0] == pytest.approx(values[:, 0].std(ddof=1))
    assert spread[2] == pytest.approx(values[:, 1:7].var(0, ddof=1).mean() ** 0.5)
    assert np.isnan(band(reference, "train_loss")[1][0])


def sampled_like(reference, seed=1, **changes):
    """A run as the reference's seeds are; `changes` are added to a quantity's values."""
    rng, means = np.random.default_rng(seed), {name: band(reference, name)[0] for name in QUANTITIES}
    return {name: means[name] + 0.01 * rng.normal(size=len(reference.steps)) + changes.get(name, 0)
            for name in QUANTITIES}


LATE = np.arange(11) >= 4                               # from step 200


@pytest.mark.parametrize("changes, said", [
    ({}, "^Normal up to step 500: all numbers .31. are in"),
    ({"val_loss": 0.3 * LATE}, r"^Too high since step 200: the validation loss at step 500 is 2\.3\d"),
    ({"val_loss": 0.3 * LATE}, r"where 6 seeds have 2\.0\d\d ± 0\.01\d, [23]\d\.\d standard deviations aw"),
    ({"val_loss": -0.3 * LATE}, "^Too low since step 200: .*leak"),
    ({"val_loss": 0.3 * (np.arange(11) == 4)}, "^Too high at step 200: the validation loss at step 200"),
    ({"val_loss": 0.3 * np.isin(np.arange(11), [3, 4])}, "^Too high from step 150 to 200: "),
    ({"val_loss": 0.3 * np.isin(np.arange(11), [1, 8, 9, 10])}, "^Too high since step 400: "),
    ({"val_loss": 0.3, "train_loss": 0.3}, "^Too high since step 0: the val.*not normal either: training l"),
    ({"train_loss": 0.3}, "^Too high since step 50: the training loss"),
    ({"grad_norm": math.log(2)}, "^Too high since step 50: the gradient norm at step 500 is 2 times the "),
    ({"grad_norm": -0.65}, r"^Too low since step 50: the gradient norm .* is 0\.5\d* times .*factor"),
])
def test_the_verdict_in_words(changes, said):
    reference = synthetic()
    normal, words = sentence(judge(sampled_like(reference, **changes), reference), reference)
    assert re.search(said, words), words
    assert normal == (not changes)


@pytest.mark.parametrize("same", [True, False])
def test_the_range_that_is_drawn_is_that_by_which_is_judged(same):
    reference = synthetic()
    mean, _   = band(reference, "val_loss", same)
    for beyond, edge in zip(("low", "high"), normal_range(reference, "val_loss", same), strict=True):
        for share, verdict in ((0.999, "normal"), (1.001, beyond)):
            values = sampled_like(reference) | {"val_loss": mean + share * (edge - mean)}
            rows   = [row for row in judge(values, reference, same) if row.quantity == "val_loss"]
            assert len(rows) == 11 and {row.verdict for row in rows} == {verdict}


@pytest.mark.parametrize("quantity, off", [("val_loss", 0.6), ("train_loss", 0.2), ("grad_norm", 0.2)])
def test_a_text_that_is_worded_otherwise_is_judged_less_sharply_and_is_judged(quantity, off):
    reference = synthetic()
    for share, same, verdict in ((0.5, True, "high"), (0.5, False, "normal"), (1, False, "high")):
        rows = judge(sampled_like(reference, **{quantity: share * off}), reference, same)
        assert {row.verdict for row in rows if row.quantity == quantity} == {verdict}


def test_only_evaluations_are_judged_and_only_what_the_run_has():
    reference = synthetic()
    sampled = sampled_like(reference)
    sampled["val_loss"][[1, 2, 3]] = NAN
    sampled["train_loss"][4] = NAN
    rows = judge(sampled, reference)
    assert [row.step for row in rows if row.quantity == "val_loss"] == [0, *range(200, 501, 50)]
    assert [row.step for row in rows if row.quantity == "train_loss"] == list(range(250, 501, 50))
    sampled["val_loss"][:] = NAN
    with pytest.raises(CurveError, match=r"no evaluation at a step .*\(every 50 up to 500\)"):
        judge(sampled, reference)


def test_curves_are_sampled_in_windows(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(5, 301, 5):
            norm = math.exp(-step) if step != 5 else 0.0                        # which has no logarithm
            file.write(json.dumps({"step": step, "train_loss": step, "grad_norm": norm}) + "\n")
        file.write(json.dumps({"step": 100, "val_loss": 3.5}) + "\n")
    sampled = sample_curves(read_metrics(tmp_path), [0, 100, 250, 310], 10, 200)
    np.testing.assert_allclose(sampled["train_loss"], [NAN, 55, 155, NAN])       # 10 … 100; 60 … 250
    np.testing.assert_allclose(sampled["grad_norm"], [NAN, -55, -155, NAN])
    np.testing.assert_allclose(sampled["val_loss"], [NAN, 3.5, NAN, NAN])


SAME = [{"workers": 2}, {"sample_tokens": 0}, {"log_interval": 7}, {"eval_interval": 5},
        {"gradient_checkpointing": True},
        {"batch_size": 1, "gradient_accumulation_steps": 6, "eval_iters": 9},
        {"n_inner": 32}, {"n_kv_head": 2}, {"head_dim": 4}, {"qkv_bias": True}, {"attn_proj_bias": True},
        {"min_lr": 1e-3}, {"lr_decay_iters": 20}, {"max_iters": 15, "lr_decay_iters": 20},
        {"dtype": "float64"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function: the validation losses and the settings that matter of a tiny run with some settings."""
    @functools.cache
    def train(**settings):
        run = tiny.new_run(tmp_path_factory.mktemp("runs"), **{"eval_interval": 5} | settings)
        tiny.train_quietly(run)
        losses = read_metrics(run.path)["val_loss"]
        return (dict(zip(losses.step.tolist(), losses.value.tolist(), strict=True)),
                settings_that_matter(run.config, run.tokenizer.vocab_size))
    return train


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_settings_that_count_as_the_same_train_the_same(trained, changes):
    losses, settings = trained()
    others, changed  = trained(**changes)
    assert settings_that_differ(changed, settings) == []
    assert {step: others[step] for step in others} == pytest.approx(
        {step: losses[step] for step in others}, rel=1e-5)


def test_every_other_setting_counts():
    """What is not ignored makes a difference that is named; a new setting does so too."""
    plain   = settings_that_matter(TrainConfig(), 1024)
    changes = {"n_layer": 3, "n_head": 2, "n_embd": 64, "block_size": 64, "dropout": 0.0, "bias": False,
               "learning_rate": 1e-3, "warmup_iters": 1, "weight_decay": 0.0, "beta1": 0.8, "beta2": 0.9,
               "grad_clip": 0.0, "l1": 0.1, "l2": 0.1, "tokenizer": "character", "val_fraction": 0.2,
               "norm": "rmsnorm", "tie_word_embeddings": False, "position": "rotary", "batch_size": 8,
               "gradient_accumulation_steps": 2, "eval_iters": 5, "max_iters": 900, "qkv_bias": False}
    for name, value in changes.items():
        config = dataclasses.replace(TrainConfig(), **{name: value})
        differ = settings_that_differ(settings_that_matter(config, 1024), plain)
        named  = {"batch_size": "batch_size × ", "gradient_accumulation_steps": "batch_size × grad",
                  "eval_iters": "batch_size × eval", "max_iters": "lr_decay_iters"}.get(name, name)
        assert any(sentence.startswith(named) for sentence in differ), name
    config = dataclasses.replace(TrainConfig(), n_embd=64)
    assert "n_embd is 64, not 192" in settings_that_differ(settings_that_matter(config, 1024), plain)
    fast   = settings_that_matter(dataclasses.replace(TrainConfig(), device="cuda", tf32=True), 1024)
    assert settings_that_differ(fast, plain) == ["dtype is tf32, not float32"]
    assert settings_that_differ(plain, plain | {"new": 1}) == ["new is not set, not 1"]


def test_a_text_is_known_again_whatever_the_seed(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"document {n} says é " * (n + 5), encoding="utf-8")
    texts = []
    for seed, name in ((1, "a"), (2, "b")):
        run = tiny.new_run(tmp_path, name, data=str(folder), tokenizer="bpe", vocab_size=260, seed=seed,
                           val_fraction=0.3)
        texts.append((text_of("docs", run.tokenizer, run.train, run.val), run.train.tolist()))
    assert texts[0][0] == texts[1][0] and texts[0][1] != texts[1][1]
    assert texts[0][0].characters == sum(len(file.read_text("utf-8")) for file in folder.iterdir())
    (folder / "3.txt").write_text("document 4 says é " * 8, encoding="utf-8")
    run = tiny.new_run(tmp_path, "c", data=str(folder), tokenizer="bpe", vocab_size=260, val_fraction=0.3)
    assert text_of("docs", run.tokenizer, run.train, run.val).sha256 != texts[0][0].sha256


def test_another_text_is_refused_but_for_another_wording_of_pythons_documentation():
    reference = synthetic()
    assert same_text(Text("elsewhere.txt", 100, "a"), reference)
    assert not same_text(Text("python-docs", 110, "b"), reference)
    with pytest.raises(CurveError, match="has 110 characters, not the 100 of python-docs"):
        same_text(Text("mine.txt", 110, "b"), reference)
    with pytest.raises(CurveError, match="is another, or split otherwise, than that of tiny.txt"):
        same_text(Text("tiny.txt", 100, "b"), reference._replace(text=Text("tiny.txt", 100, "a")))


def test_a_run_of_a_known_seed_retraces_the_references(tmp_path):
    reference = synthetic()

    def apart(*losses, seed=3):
        with (tmp_path / "metrics.jsonl").open("w") as file:
            for step, loss in zip((10, 20), losses, strict=False):
                file.write(json.dumps({"step": step, "train_loss": loss, "grad_norm": 1.0}) + "\n")
        return retrace(read_metrics(tmp_path), reference, seed)

    assert apart(4.0, 4.0) == {"train_loss": 0, "grad_norm": 0}
    assert apart(4.0, 4.4) == pytest.approx({"train_loss": 0.1, "grad_norm": 0})
    assert apart(4.0) is None and apart(4.0, 4.0, seed=77) is None and retrace({}, reference, 3) is None


def test_what_is_allowed_is_t_times_the_spread_of_a_new_seed():
    assert allowed(synthetic(6)) == pytest.approx(4.7733 * math.sqrt(7 / 6), abs=1e-3)
