"""npgpt gradcheck: a row an example, and what is wrong by its name."""

import re

from commands import refused

from npgpt.cli.main import main
from npgpt.inspection import examples


def test_it_shows_a_row_an_example_and_fails_on_a_wrong_gradient(capsys, monkeypatch):
    refused(capsys, 1, "seed must be at least 0, not -1", "gradcheck", "--seed", "-1")
    assert main(["gradcheck", "norm", "Relu"]) == 0
    said = capsys.readouterr().out
    assert "LayerNorm" in said and "softmax" not in said and " 0 wrong" in said
    for line in (" kind +name +checked +worst error +1e-06 allowed", r" op +relu +x +\d\.\de-\d\d +right",
                 r" layer +PostNormBlock +\d\d parameters and"):
        assert re.search(line, said), line
    refused(capsys, 1, "no op, layer or model is called like none: there are linear", "gradcheck", "none")
    honest = examples.OPS["relu"]

    def dishonest(*arguments):
        case = honest(*arguments)
        return case._replace(backward=lambda dy, saved: case.backward(dy, saved) * 1.0001)

    monkeypatch.setitem(examples.OPS, "relu", dishonest)
    refused(capsys, 1, "relu: the gradient of x is wrong", "gradcheck", "relu")
