"""What a first result on one's own model takes from a clone: the seconds of each step, and the processor's among them.

    python benchmarks/first_result.py       # wheels from where pip finds them, with the pins of constraints.txt

Everything is made in a folder that is removed at the end. On a machine that others use too, read the processor's
seconds; downloads are in the other column.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NETWORK = """
import torch, equipoise as eq
model = torch.nn.Sequential(
    torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
x, y = torch.randn(128, 784), torch.randint(0, 10, (128,))
"""
CHECK = """
print(eq.invariances(model, x).check(model, (x, y), torch.nn.functional.cross_entropy))
torch.save(model.state_dict(), "own.pt")
"""
WATCH = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with eq.watch(model, optimizer, every=50):
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def steps(folder, extras):
    """Each step by its name, as the words of a command."""
    python, command = folder / ".venv/bin/python", folder / ".venv/bin/equipoise"
    repository = folder / "repository"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    yield "git clone", ["git", "clone", "--quiet", ROOT, repository]
    yield "an empty environment", [sys.executable, "-m", "venv", folder / ".venv"]
    yield "pip install", [*pip, "-c", repository / "constraints.txt", f"{repository}{extras}"]
    yield "a gradient checked", [python, "-c", NETWORK + CHECK]
    yield "the same again", [python, "-c", NETWORK + CHECK]
    yield "a training of 200 steps, watched", [python, "-c", NETWORK + WATCH]
    yield "the weights analysed", [command, "analyze", "own.pt"]
    yield "equipoise --version", [command, "--version"]


def timed(words, folder):
    """Seconds, and seconds of the processor, of a command."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EQUIPOISE_DATA")}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([str(word) for word in words], cwd=folder, env=clean, capture_output=True, text=True)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    if done.returncode:
        raise SystemExit(f"{words[:3]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return ended - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="", help="such as [report]")
    extras = parser.parse_args().extras
    print("| step | seconds | of the processor |\n|---|---:|---:|")
    total = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        for name, words in steps(Path(folder), extras):
            found = timed(words, folder)
            print(f"| {name} | {found[0]:.1f} | {found[1]:.1f} |", flush=True)
            if name != "the same again":  # which is no step of the way
                total = [a + b for a, b in zip(total, found, strict=True)]
            if name == "a gradient checked":
                print(
                    f"| **from the clone to the first result** | **{total[0]:.0f}** | **{total[1]:.0f}** |", flush=True
                )


if __name__ == "__main__":
    main()
