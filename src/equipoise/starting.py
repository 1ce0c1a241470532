"""An interruption while the command line is starting: it ends in silence, as other programs do.

While the packages of the command line are imported, Ctrl-C would print a traceback out of the midst of some import.
Until the command has begun, SIGINT ends its process at once (exit 130 to a shell); nothing has been written by then.
Programs that import equipoise are left alone.
"""

import os
import signal
import sys

NAME = "equipoise"


def is_command(arguments: list[str], original: list[str]) -> bool:
    """Whether this process is the command `equipoise` or `python -m equipoise`.

    Args:
        arguments: `sys.argv`.
        original: `sys.orig_argv`, the arguments of the interpreter.

    Returns:
        Whether it is.

    >>> is_command(["/usr/bin/equipoise", "flow"], ["python", "/usr/bin/equipoise", "flow"])
    True
    >>> is_command(["-m"], ["python", "-m", "equipoise"]), is_command(["-m"], ["python", "-m", "mine", "equipoise"])
    (True, False)
    """
    folder, script = os.path.split(arguments[0] if arguments else "")
    if script == "-m" or (os.path.basename(folder), script) == (NAME, "__main__.py"):  # until the module is found, then
        return "-m" in original and original[original.index("-m") + 1 :][:1] == [NAME]
    return script.removesuffix(".exe") == NAME


def end_when_interrupted() -> None:
    """Let SIGINT end the process while the command starts, unless it is ignored or handled by somebody else."""
    if is_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_when_interrupted() -> None:
    """From here on SIGINT raises `KeyboardInterrupt` again."""
    if is_command(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
