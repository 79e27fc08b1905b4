"""What every command keeps to that ends badly: its exit status, and one line on standard error."""

import re

from npgpt.cli.main import main


def said_by(capsys, status, *arguments):
    """The line that a command says which ends with this status."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    said = capsys.readouterr().err
    assert said.startswith("npgpt: ") and said.count("\n") == 1 and "Traceback" not in said, said
    return said


def refused(capsys, status, sentence, *arguments):
    """That line matches."""
    said = said_by(capsys, status, *arguments)
    assert re.search(sentence, said), said
