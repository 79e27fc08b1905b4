"""Metrics are read as they were meant, whatever befell the run; pictures show them, always the same."""

import json
import sys

import numpy as np
import pytest

from npgpt.errors import ConfigError, DataError
from npgpt.inspection import plots
from npgpt.inspection.metrics import read_metrics, run_names, smooth
from npgpt.inspection.plots import PlottedRun, plot_runs

NAN = float("nan")


def train_line(step, loss=3.0, **more):
    return json.dumps({"step": step, "tokens": 64 * step, "seconds": 0.5 * step, "train_loss": loss,
                       "learning_rate": 1e-3, "grad_norm": 1.5, "tokens_per_second": 1200} | more) + "\n"


def val_line(step, loss):
    return json.dumps({"step": step, "tokens": 64 * step, "seconds": 0.5 * step, "val_loss": loss}) + "\n"


@pytest.fixture
def record(tmp_path):
    def write(*lines, name="run"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))
        return tmp_path / name
    return write


@pytest.fixture
def draw(tmp_path):
    """The bytes of a picture; an SVG names each text it shows in a comment."""
    pytest.importorskip("matplotlib")

    def bytes_of(*folders, out="picture.svg", x="step", band=None):
        runs = [PlottedRun(name, read_metrics(folder))
                for name, folder in zip(run_names(list(folders)), folders, strict=True)]
        plot_runs(runs, tmp_path / out, x, band)
        return (tmp_path / out).read_bytes()
    return bytes_of


def test_of_a_step_that_comes_twice_the_later_line_counts(record):
    run = record(val_line(0, 4.0), train_line(4), train_line(8, 9.0), val_line(8, 2.5),
                 train_line(12, 9.0), train_line(6, 2.5), train_line(8, 2.0), train_line(12, 1.0))
    curves = read_metrics(run)
    assert curves["train_loss"].step.tolist() == [4, 6, 8, 12]
    assert curves["train_loss"].value.tolist() == [3, 2.5, 2, 1]
    assert curves["train_loss"].tokens.tolist() == [256, 384, 512, 768]
    assert curves["train_loss"].seconds.tolist() == [2, 3, 4, 6]
    assert curves["val_loss"].step.tolist() == [0, 8] and curves["val_loss"].value.tolist() == [4, 2.5]


@pytest.mark.parametrize("cut", ['{"step": 8, "tra', '{"step": 8}\n', "8\n",
                                 '{"step": null, "train_loss": 1}\n'])
def test_lines_that_say_nothing_are_left_out(record, cut):
    assert read_metrics(record(train_line(4), cut))["train_loss"].step.tolist() == [4]


@pytest.mark.parametrize("wrong", [NAN, float("inf"), None, "high", 10**400])
def test_what_is_no_finite_number_is_nan_and_never_the_best(record, wrong):
    curve = read_metrics(record(val_line(0, wrong), val_line(4, 2.0), val_line(8, 2.0)))["val_loss"]
    assert np.isnan(curve.value[0]) and curve.best() == 1
    assert read_metrics(record(val_line(0, wrong)))["val_loss"].best() is None


def test_smoothing_keeps_lines_and_ends_at_the_start_and_passes_over_nan():
    line = np.arange(200.0)
    np.testing.assert_allclose(smooth(line)[:190], line[:190], rtol=1e-12)
    assert smooth(np.arange(3.0))[0] == 0
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise).std() < 0.3
    np.testing.assert_array_equal(smooth(np.array([1.0, 5, NAN, 7, 7])), [1, 3, NAN, 7, 7])


def test_names_tell_runs_apart(tmp_path):
    assert run_names([tmp_path / "a/x", tmp_path / "b/x", tmp_path / "y"]) == ["a/x", "b/x", "y"]


def test_a_picture_shows_names_units_and_the_best_value(record, draw):
    one = record(train_line(5), val_line(5, 3.25), train_line(10), val_line(10, 2.125), val_line(15, 2.5))
    two = record(train_line(5), val_line(5, 2.75), name="_b$a$")
    svg = draw(one, two).decode()
    assert "Oblique" not in svg, "a name is read as a formula"
    for text in ("run: best validation loss 2.1250 at step 10",
                 "_b$a$: best validation loss 2.7500 at step 5",
                 "loss (nats per token)", "learning rate", "gradient norm before clipping",
                 "tokens per second", "2.125", "step", "training, smoothed", "validation"):
        assert f"<!-- {text} -->" in svg, text
    assert "#0072b2" in svg and "#d55e00" in svg and "not a finite number" not in svg


@pytest.fixture
def labels(monkeypatch):
    """The labels of best values of the pictures that are drawn, after they have been moved."""
    seen, part = [], plots._part
    monkeypatch.setattr(plots, "_part", lambda labels: (part(labels), seen.extend(labels)))
    return seen


@pytest.mark.parametrize("runs, shown", [(2, 2), (7, 5), (20, 5)])
def test_labels_of_best_values_lie_apart_and_beside_their_marks(record, draw, labels, runs, shown):
    """Short runs beside a long one: their best values are all but at one place."""
    long = record(*(val_line(step, 3.0) for step in range(0, 5001, 500)), name="long")
    short = [record(val_line(0, 3.5), val_line(300 + 20 * n, 2.5 + 0.01 * n), name=f"short{n}")
             for n in range(runs - 1)]
    draw(long, *short)
    boxes = [label.get_window_extent() for label in labels if label.get_visible()]
    assert len(labels) == runs and len(boxes) >= shown
    for n, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:n])
    marks = [label.axes.transData.transform(label.xy) for label in labels]
    for label, mark in zip(labels, marks, strict=True):
        if label.get_visible():
            box = label.get_window_extent()
            middle = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
            assert np.hypot(*(middle - mark)) < 80 and not any(box.contains(*other) for other in marks)


def test_one_label_stands_above_its_mark(record, draw, labels):
    draw(record(val_line(0, 3.0), val_line(10, 2.0), val_line(20, 2.5)))
    assert [label.get_position() for label in labels] == [plots.LABEL_PLACES[0]]


def test_the_band_is_behind_the_curves_and_goes_as_far_as_they_do(record, draw):
    step = np.array([0, 10, 20, 1000])
    band = plots.Band("where it is normal", step, step * 0 + 2.0, step * 0 + 3.0)
    run  = record(val_line(0, 2.5), val_line(20, 2.5))
    svgs = [draw(run, band=band).decode(), draw(run).decode()]
    assert ["<!-- where it is normal -->" in svg for svg in svgs] == [True, False]
    assert "<!-- 1,000 -->" not in svgs[0]
    shade, curve = svgs[0].index(plots.SHADE.lower()), svgs[0].index("#d55e00")
    assert shade < curve


def test_the_same_input_gives_the_same_bytes_without_a_date(record, draw, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    def settings():                                  # reading "backend" would choose one and import pyplot
        return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}

    run = record(*(train_line(step, 4 - step / 9) for step in range(9)), val_line(8, 3.0))
    for out in ("picture.svg", "picture.png", "BIG.PNG"):
        first = draw(run, out=out)
        with matplotlib.rc_context({"axes.facecolor": "red", "svg.hashsalt": "other"}):
            before = settings()
            assert draw(run, out=out) == first
            assert settings() == before
        assert b"<dc:date>" not in first
    assert first.startswith(b"\x89PNG") and "matplotlib.pyplot" not in sys.modules

    svg, execute = draw(run), ConstrainedLayoutEngine.execute

    def shaken(engine, figure):                      # as the solver itself does, now and then
        execute(engine, figure)
        for ax in figure.axes:
            ax.set_position([side * (1 + 1e-9) for side in ax.get_position().bounds])

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", shaken)
    assert draw(run) == svg


@pytest.mark.parametrize("x, label", [("step", "step"), ("tokens", "tokens"), ("seconds", "time (minutes)")])
def test_the_axis_can_be_chosen(record, draw, x, label):
    svg = draw(record(*(train_line(step) for step in (0, 400, 800))), x=x).decode()
    assert f"<!-- {label} -->" in svg
    assert ("<!-- 50,000 -->" in svg) == (x == "tokens")


@pytest.mark.parametrize("lines, shown, absent", [
    ([train_line(4)], "training", "validation"),
    ([val_line(0, 4.0)], "validation", "learning rate"),
    ([train_line(4, NAN), train_line(8, NAN, grad_norm=NAN), val_line(8, NAN)], "not a finite number", "nan"),
    ([train_line(4), train_line(8, NAN), train_line(12)], "not a finite number", "validation"),
    ([train_line(4, 300.0), train_line(8, 2.0)], "10", "validation"),
    ([train_line(0, 0.0, learning_rate=0, grad_norm=0, tokens_per_second=0)], "loss (nats per token)", "nan"),
])
def test_poor_runs_are_drawn(record, draw, lines, shown, absent):
    svg = draw(record(*lines)).decode()
    assert f"<!-- {shown} -->" in svg and f"<!-- {absent} -->" not in svg
    assert draw(record(*lines), out="picture.png").startswith(b"\x89PNG")


def test_a_single_point_is_visible(record, draw):
    """Markers are the elements that an SVG reuses in the run's colour."""
    marks = [draw(record(*lines)).lower().count(b"fill: #0072b2") for lines in (
        [train_line(4)], [train_line(4), train_line(8)])]
    assert marks[0] > marks[1]


def test_what_cannot_be_drawn_is_one_sentence(record, tmp_path, monkeypatch):
    for lines in ((), ('{"step": 1, "tr',)):
        with pytest.raises(DataError, match="has no step recorded"):
            read_metrics(record(*lines))
    with pytest.raises(DataError, match="absent is not a run's folder"):
        read_metrics(tmp_path / "absent")
    (tmp_path / "config.toml").touch()
    with pytest.raises(DataError, match="has no metrics.jsonl yet"):
        read_metrics(tmp_path)
    runs = [PlottedRun("run", read_metrics(record(train_line(1))))]
    with pytest.raises(ConfigError, match="must end with .png or .svg"):
        plot_runs(runs, tmp_path / "picture.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"plots need matplotlib: install it by .* 'npgpt\[plot\]'"):
        plot_runs(runs, tmp_path / "picture.png")
