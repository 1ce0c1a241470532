"""Seconds of CPU of a start: imports, `equipoise --version`, and the first use of a verb; the best of five."""

import resource
import subprocess
import sys

STARTS = {
    "python": "pass",
    "import equipoise": "import equipoise",
    "equipoise --version": "import sys; sys.argv = ['equipoise', '--version']; from equipoise.cli import main; main()",
    "import torch": "import torch",
    "equipoise.watch": "import equipoise; equipoise.watch",
    "all verbs": "import equipoise; [getattr(equipoise, name) for name in equipoise.__all__]",
}


def seconds(code: str) -> float:
    """User and system time of a Python that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    for name, code in STARTS.items():
        print(f"{name:22} {min(seconds(code) for _ in range(5)):6.2f} s")
