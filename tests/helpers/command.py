"""The command line, called in this process."""

import pytest

from equipoise.cli import main


def call(capsys, *arguments):
    """Exit code, standard output and standard error of `equipoise ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err
