"""Mutated and hostile checkpoints over all readers: tracebacks, long waits, memory and code run, counted in one table.

    python benchmarks/faults/checkpoints.py --count 10000

Each format (`sound_files.py`) is analysed as it is, and then so many cases: one file of a sound checkpoint has bytes
flipped, cut off, repeated or swapped with another file's start, or is changed inside, the header of safetensors and the
parts of an archive, with lengths and checksums that fit again. Others are pickles that would leave a mark. A worker
analyses each under a limit of memory (the file and 1 GB above what the worker has) and of time on the processor (10 s);
a worker that dies is counted and replaced.
"""

import argparse
import io
import multiprocessing as mp
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

from sound_files import SOUND, Files

SECONDS = 10  # on the processor
STUCK = 600  # seconds by the clock, however little of the processor there was
ROOM = 1 << 30  # bytes above what the worker has, and the file
TOTALS_EVERY = 500  # cases


class Mark:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


# ---- mutations ----


def flips(data: bytes, draw: random.Random, _: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 3, 20))):
        changed[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(changed)


def header(data: bytes, draw: random.Random, _: bytes) -> bytes:
    place = draw.randrange(min(len(data), 200))
    return data[:place] + draw.choice((b"\xff" * 8, b"\0" * 8, draw.randbytes(8))) + data[place + 8 :]


def cut(data: bytes, draw: random.Random, _: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def repeated(data: bytes, draw: random.Random, _: bytes) -> bytes:
    low = draw.randrange(len(data))
    return data[:low] + data[low : low + draw.randrange(1, 200)] * draw.choice((2, 51)) + data[low:]


def swapped(data: bytes, _: random.Random, other: bytes) -> bytes:
    return other[:64] + data[64:]


def inside(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """Changed where lengths and checksums are made to fit again: a header, a part of an archive, the order of parts."""
    if data[:4] == b"PK\x03\x04":
        return _inside_archive(data, draw, other)
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        text = draw.choice((flips, repeated, cut))(data[8 : 8 + length], draw, other)
        return len(text).to_bytes(8, "little") + text + data[8 + length :]
    return draw.choice((flips, repeated, header))(data, draw, other)


def _inside_archive(data: bytes, draw: random.Random, other: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = [(part.filename, source.read(part)) for part in source.infolist()]
    which = max(draw.randrange(-2, len(parts)), 0)  # the first is the pickle
    name, contents = parts[which]
    kind = draw.choice(("contents", "contents", "contents", "renamed", "lost", "twice"))
    if kind == "contents" and contents:
        parts[which] = name, draw.choice((flips, flips, cut, repeated))(contents, draw, other)
    elif kind == "renamed":
        parts[which] = draw.choice((name.upper(), name + "/", "../" + name, name.replace("/", "\\"))), contents
    elif kind == "lost":
        del parts[which]
    else:
        parts.append((name, contents))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as target:
        warnings.simplefilter("ignore")  # a name twice
        for name, contents in parts:
            target.writestr(name, contents)
    return file.getvalue()


def code(draw: random.Random, mark: Path) -> Files:
    """Code in a pickle of torch.save, or in a plain one."""
    pickled = pickle.dumps({"w": Mark(mark)}, draw.choice((0, 2, 4)))
    if draw.random() < 0.5:
        return {"code.pkl": pickled}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("m/data.pkl", pickled)
    return {"code.pt": file.getvalue()}


MUTATIONS = {its.__name__: its for its in (flips, header, cut, repeated, swapped, inside)}
KINDS = (*MUTATIONS, "code")


def case(number: int, sound: dict[str, Files], draw: random.Random, mark: Path) -> tuple[str, str, Files]:
    """The kind of change, the format, and its files: each format as it is first, then with one file changed."""
    if number < len(sound):
        title = sorted(sound)[number]
        return "as it is", title, sound[title]
    kind = KINDS[number % len(KINDS)]
    title, files = changed(kind, sound, draw, mark)
    return kind, title, files


def changed(kind: str, sound: dict[str, Files], draw: random.Random, mark: Path) -> tuple[str, Files]:
    """The format, and its files with one of them changed."""
    if kind == "code":
        return kind, code(draw, mark)
    title = draw.choice(sorted(sound))
    files = dict(sound[title])
    name = draw.choice([name for name, contents in files.items() if contents])
    other = next(iter(sound[draw.choice(sorted(sound))].values()))
    files[name] = MUTATIONS[kind](files[name], draw, other)
    return title, files


def written(folder: Path, files: Files) -> Path:
    """The files in an empty folder; what is to be analysed, which is the folder where its own files are several."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    several = len(files) > 1 and not (folder / "adapter").exists()
    return folder if several else folder / next(iter(files))


# ---- the worker ----


def work(pipe):
    import onnx as _onnx  # noqa: F401  so that its import is not counted as a case's memory
    import psutil
    import torch

    import equipoise as eq

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    eq.analyze({"w": torch.randn(4, 4)})
    pipe.send("ready")
    while True:
        path, size = pipe.recv()
        adapter = path.parent / "adapter"
        limit = psutil.Process().memory_info().vms + size + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            eq.analyze(path, heavy_tail=False, adapter=adapter if adapter.is_dir() else None)
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
        self.pipe.recv()

    def seconds(self) -> float:
        """What it has had of the processor."""
        import psutil

        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def outcome(self, path, size):
        """How it went with one checkpoint."""
        try:
            before, begun = self.seconds(), time.monotonic()
            self.pipe.send((path, size))
            while not self.pipe.poll(1.0):
                if self.seconds() - before > SECONDS or time.monotonic() - begun > STUCK:
                    break
            if self.pipe.poll():
                said = self.pipe.recv()
                if self.seconds() - before <= SECONDS:
                    return said
            said = f"above {SECONDS} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            said = "worker died"
        self.process.kill()
        self.process.join()
        self.start()
        return said


def totals(table: Counter) -> dict[str, int]:
    total = Counter()
    for (_, said), count in table.items():
        total[said] += count
    return dict(total)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    draw, table, formats, started = random.Random(options.seed), Counter(), Counter(), time.perf_counter()
    sound = {title: make() for title, make in SOUND.items()}
    bad, code_run = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder, worker = Path(name), Worker()
        mark = folder / "mark"
        for number in range(len(sound) + options.count):
            if time.perf_counter() - started > options.seconds:
                break
            kind, title, files = case(number, sound, draw, mark)
            path = written(folder / "case", files)
            said = worker.outcome(path, sum(map(len, files.values())))
            table[kind, said] += 1
            formats[title, said] += 1
            if said not in ("analysed", "refused in one line"):
                bad.append((number, kind, title, said))
                print("case", *bad[-1], file=sys.stderr, flush=True)
            code_run += mark.exists()
            mark.unlink(missing_ok=True)
            if (number + 1) % TOTALS_EVERY == 0:  # a campaign that is stopped leaves these
                print(f"so far {number + 1}: {totals(table)}; code run {code_run}", file=sys.stderr, flush=True)
        worker.process.kill()
    for counted in (formats, table):
        for (kind, said), count in sorted(counted.items()):
            print(f"{kind:32} {said:40} {count:6}")
    seconds = time.perf_counter() - started
    print(f"all {sum(table.values())}: {totals(table)}; code run {code_run}; {len(sound)} formats; {seconds:.0f} s")
    return 1 if bad or code_run else 0


if __name__ == "__main__":
    raise SystemExit(main())
