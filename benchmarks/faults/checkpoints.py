"""Mutated and hostile checkpoints over all readers: tracebacks, long waits, memory and code run, counted in one table.

    python benchmarks/faults/checkpoints.py --count 10000

Each case is a sound file of some format with bytes flipped, cut off, repeated or swapped with another file's start, or
a pickle that would leave a mark. A worker analyses it under a limit of memory (the file and 1 GB above what the worker
has) and of time (10 s); a worker that dies is counted and replaced.
"""

import argparse
import multiprocessing as mp
import pickle
import random
import resource
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

SECONDS = 10
ROOM = 1 << 30  # bytes above what the worker has, and the file


class Mark:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def seeds(folder):
    """A sound file of each format, by its name."""
    import onnx
    import torch
    from onnx import helper
    from safetensors.torch import save_file

    warnings.simplefilter("ignore")
    state = {"a.weight": torch.randn(6, 5), "b.weight_ih_l0": torch.randn(8, 3), "c": torch.randn(4).half()}
    save_file(state, folder / "m.safetensors")
    torch.save({"epoch": 1, "state_dict": state}, folder / "m.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    tensors = [helper.make_tensor(k, 1, v.shape, v.float().flatten().tolist()) for k, v in state.items()]
    node = helper.make_node("Gemm", ["x", "a.weight"], ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [], tensors)), folder / "m.onnx")
    save_file({"base_model.model.a.lora_A.weight": torch.randn(2, 5)}, folder / "adapter_model.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mutated(kind, contents, rng, mark):
    """One case: its name and its bytes."""
    name = rng.choice(sorted(contents))
    data = bytearray(contents[name])
    if kind == "flips":
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "header":
        place = rng.randrange(min(len(data), 200))
        data[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, rng.randbytes(8)))
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "repeated":
        low = rng.randrange(len(data))
        data[low:low] = data[low : low + rng.randrange(1, 200)] * rng.choice((1, 50))
    elif kind == "swapped":
        data[:64] = contents[rng.choice(sorted(contents))][:64]
    else:  # code, in a pickle of torch.save or a plain one
        code = pickle.dumps({"w": Mark(mark)}, rng.choice((0, 2, 4)))
        if rng.random() < 0.5:
            return "code.pkl", bytes(code)
        path = Path(mark).with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("m/data.pkl", code)
        return "code.pt", path.read_bytes()
    return name, bytes(data)


KINDS = ("flips", "header", "cut", "repeated", "swapped", "code")


def work(pipe):
    import onnx as _onnx  # noqa: F401  so that its import is not counted as a case's memory
    import psutil
    import torch

    import equipoise as eq

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    eq.analyze({"w": torch.randn(4, 4)})
    while True:
        path, size = pipe.recv()
        limit = psutil.Process().memory_info().vms + size + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            eq.analyze(path, heavy_tail=False)
            pipe.send("analysed")
        except eq.errors.EquipoiseError as error:
            pipe.send("refused in one line" if str(error).isprintable() else "more than one visible line")
        except MemoryError:
            pipe.send("above file + 1 GB")
        except BaseException as error:
            pipe.send(f"traceback: {type(error).__name__}")


class Worker:
    def __init__(self):
        self.start()

    def start(self):
        self.pipe, other = mp.Pipe()
        self.process = mp.get_context("fork").Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def outcome(self, path):
        """How it went with one file."""
        try:
            self.pipe.send((str(path), path.stat().st_size))
            if self.pipe.poll(SECONDS if self.warm else 120):
                self.warm = True
                return self.pipe.recv()
            said = f"above {SECONDS} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            said = "worker died"
        self.process.kill()
        self.process.join()
        self.start()
        self.warm = False
        return said

    warm = False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    rng, table, started = random.Random(options.seed), Counter(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder, worker, code_run = Path(name), Worker(), 0
        (folder / "seeds").mkdir()
        contents = seeds(folder / "seeds")
        bad = []
        for number in range(options.count):
            if time.perf_counter() - started > options.seconds:
                break
            kind, mark = KINDS[number % len(KINDS)], folder / "mark"
            title, data = mutated(kind, contents, rng, mark)
            case = folder / title
            case.write_bytes(data)
            said = worker.outcome(case)
            table[kind, said] += 1
            if said not in ("analysed", "refused in one line"):
                bad.append((number, kind, title, said))
            code_run += mark.exists()
            mark.unlink(missing_ok=True)
            case.unlink()
        worker.process.kill()
    for (kind, said), count in sorted(table.items()):
        print(f"{kind:10} {said:40} {count:6}")
    total = Counter()
    for (_, said), count in table.items():
        total[said] += count
    print(f"all {sum(total.values())}: {dict(total)}; code run {code_run}; {time.perf_counter() - started:.0f} s")
    for its in bad[:20]:
        print("case", *its)
    return 1 if bad or code_run else 0


if __name__ == "__main__":
    raise SystemExit(main())
