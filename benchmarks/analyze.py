"""`equipoise.analyze` beside WeightWatcher: time, agreement, memory, and what each does with unusual tensors.

    python benchmarks/analyze.py [--weightwatcher DIR] [--billions 5]
        [--only speed|products|small|fast|memory|huge|tensors]

WeightWatcher is not a dependency; `pip install --no-deps --target DIR weightwatcher`, then name DIR. The model has the
shape of GPT-2's blocks, 85 million parameters, with spectra like those of trained weights: noise and a decaying part.
The large checkpoint has 5 billion parameters in shards: every tenth holds numbers, the others are holes in the file
system, so that it takes a gigabyte; each tensor is read, and what is zero throughout is found to be.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

SHAPES = {"attn.c_attn": (2304, 768), "attn.c_proj": (768, 768), "mlp.c_fc": (3072, 768), "mlp.c_proj": (768, 3072)}


def weight(rows, columns, generator):
    """Noise at initialisation's scale, and sixty directions that decay from eight times its edge."""
    rank = min(60, rows, columns)
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    sizes = 8 * (rows**0.5 + columns**0.5) / (rows * columns) ** 0.5 * torch.arange(1, rank + 1) ** -0.8
    return 0.02 * (torch.randn(rows, columns, generator=generator) + left * sizes @ right)


def gpt2_shaped(blocks):
    generator = torch.Generator().manual_seed(7)
    return {
        f"h.{block}.{name}.weight": weight(*shape, generator)
        for block in range(blocks)
        for name, shape in SHAPES.items()
    }


def as_modules(state):
    """The same matrices as linear layers: WeightWatcher reads modules."""
    layers = nn.ModuleDict()
    for name, its in state.items():
        layer = nn.Linear(its.shape[1], its.shape[0], bias=False)
        layer.weight = nn.Parameter(its)
        layers[name.removesuffix(".weight").replace(".", "_")] = layer
    return layers


def timed(function):
    begun = time.perf_counter()
    found = function()
    return found, time.perf_counter() - begun


def peers(model):
    import weightwatcher

    return weightwatcher.WeightWatcher(model=model).analyze()


def speed(arguments):
    import equipoise as eq

    state = gpt2_shaped(arguments.blocks)
    parameters = sum(its.numel() for its in state.values())
    print(f"{arguments.blocks} blocks, {parameters / 1e6:.0f} M parameters, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(state, path)
        eq.analyze({"warm": torch.randn(20, 10)})
        ours, seconds = min((timed(lambda: eq.analyze(path, split=False)) for _ in range(3)), key=lambda its: its[1])
        print(f"  equipoise analyze        {seconds:6.2f} s   all measures, heavy tails and nulls")
        _, bare = min(
            (timed(lambda: eq.analyze(path, split=False, heavy_tail=False)) for _ in range(3)), key=lambda i: i[1]
        )
        print(f"    without heavy tails    {bare:6.2f} s")
        _, svd = timed(lambda: [torch.linalg.svdvals(its) for its in state.values()])
        print(f"  torch.linalg.svdvals     {svd:6.2f} s   ×{svd / seconds:.2f}")
        if arguments.weightwatcher:
            theirs, peer = min((timed(lambda: peers(as_modules(state))) for _ in range(2)), key=lambda its: its[1])
            print(f"  WeightWatcher analyze()  {peer:6.2f} s   ×{peer / seconds:.2f}")
            agreement(ours, theirs)


def products(arguments):
    """Gram matrix and eigenvalues in place, by addresses of BLAS and LAPACK, beside torch and numpy; CPU seconds."""
    from equipoise.checkpoint.spectra.blas import add_gram, eigenvalues_in_place

    def in_place(chunks, side):
        gram = torch.zeros(side, side, dtype=torch.float64)
        for chunk in chunks:
            add_gram(chunk, gram)
        return eigenvalues_in_place(gram)

    def by_torch(chunks, side):
        gram = torch.zeros(side, side, dtype=torch.float64)
        for chunk in chunks:
            gram.addmm_(chunk.T, chunk)
        return torch.linalg.eigvalsh(gram)

    def by_numpy(chunks, side):
        return np.linalg.eigvalsh(sum(chunk.numpy().T @ chunk.numpy() for chunk in chunks))

    for rows, side in ((768, 768), (3072, 768), (12564, 768)):
        chunks = torch.randn(rows, side).double().split(170)
        for ways in (in_place, by_torch, by_numpy):
            seconds = min(cpu_seconds(lambda ways=ways: ways(chunks, side)) for _ in range(3))  # noqa: B023
            print(f"{rows} × {side}, {ways.__name__:9} {seconds:.3f} s")


def small(arguments):
    """Thousands of 1 × 1 tensors in a file: CPU milliseconds for each."""
    import equipoise as eq

    for count in (1_000, 10_000, 100_000):
        state = {f"layer{place}.weight": torch.full((1, 1), place + 1.0) for place in range(count)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            save_file(state, path)
            eq.analyze({"warm": torch.randn(3, 3)})
            print(f"{count:7,} tensors: {1e3 * cpu_seconds(lambda: eq.analyze(path)) / count:.2f} ms each")  # noqa: B023


def cpu_seconds(job):
    begun = time.process_time()
    job()
    return time.process_time() - begun


def agreement(ours, theirs):
    mine = {row["name"].removesuffix(".weight").replace(".", "_"): row for row in ours.to_dict("records")}
    both = [(mine[row["longname"]], row) for row in theirs.to_dict("records")]
    worst = max(abs(a["stable_rank"] / b["stable_rank"] - 1) for a, b in both)
    print(f"  stable ranks of {len(both)} matrices agree to {worst:.1e}, relative")
    exponents = max(abs(a["heavy_tail_exponent"] / b["alpha"] - 1) for a, b in both)
    print(f"  tail exponents to {exponents:.1e}")


def fast(arguments):
    import equipoise as eq

    for size in (768, 1536, 3072, 4096):
        state = {"w": weight(size, size, torch.Generator().manual_seed(1))}
        exact, slow = timed(lambda state=state: eq.analyze(state, heavy_tail=False))
        quick, seconds = timed(lambda state=state: eq.analyze(state, method="fast"))
        row, its = quick.loc[0], exact.loc[0]
        bars = ", ".join(
            f"{name} {row[name]:.4g} in [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}], exact {its[name]:.4g}"
            for name in ("stable_rank", "effective_rank", "participation_ratio")
        )
        print(f"{size} × {size}: exact {slow:.2f} s, fast {seconds:.2f} s ({row['method']}): {bars}")


WATCHED = """
import sys, threading, time, psutil, torch, equipoise as eq
process, going, peak = psutil.Process(), True, 0
def look():
    global peak
    while going:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.001)
eq.analyze({{"warm": torch.randn(800, 768)}})
base = process.memory_info().rss
thread = threading.Thread(target=look)
thread.start()
begun = time.perf_counter()
table = eq.analyze({path!r}, {options})
seconds = time.perf_counter() - begun
going = False
thread.join()
print(len(table), int(table["reason"].isna().sum()), peak - base, seconds)
"""


def watched(path, options=""):
    """Rows, rows measured, bytes at the peak above those after the imports, seconds; in a process of its own."""
    code = WATCHED.format(path=str(path), options=options)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), int(said[1]), int(said[2]), float(said[3])


def memory(arguments):
    with tempfile.TemporaryDirectory() as folder:
        for name, extra in (("blocks alone", {}), ("with GPT-2's embedding", {"wte.weight": torch.randn(50257, 768)})):
            state = gpt2_shaped(arguments.blocks) | extra
            path = Path(folder) / "model.safetensors"
            save_file(state, path)
            largest = max(its.nbytes for its in state.values())
            rows, _, peak, seconds = watched(path, "split=False")
            print(
                f"{name}: {rows} rows in {seconds:.1f} s; largest tensor {largest / 1e6:.1f} MB, file "
                f"{path.stat().st_size / 1e6:.0f} MB, peak {peak / 1e6:.1f} MB = {peak / largest:.2f} × the largest"
            )


def sparse_shard(path, tensors):
    """A safetensors file whose numbers are a hole: zeros that take no room on the disk."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def huge(arguments):
    """Blocks of a 5-billion-parameter model, bfloat16; width 2048 so that an exact run ends within minutes."""
    width, shards, total = 2048, {}, 0
    seeded = torch.Generator().manual_seed(1)
    made = {
        rows: weight(rows, columns, seeded).bfloat16() for rows, columns in ((4 * width, width), (width, 4 * width))
    }
    with tempfile.TemporaryDirectory() as folder:
        place = 0
        while total < arguments.billions * 1e9:
            shapes = {f"layers.{place}.{name}.weight": [4 * width, width] for name in ("up", "gate")}
            shapes |= {f"layers.{place}.down.weight": [width, 4 * width]}
            file = f"model-{place:05d}.safetensors"
            if place % 10 == 0:
                save_file({name: made[shape[0]].clone() for name, shape in shapes.items()}, Path(folder) / file)
            else:
                sparse_shard(Path(folder) / file, shapes)
            shards |= dict.fromkeys(shapes, file)
            total += sum(rows * columns for rows, columns in shapes.values())
            place += 1
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        used = sum(path.stat().st_blocks * 512 for path in Path(folder).iterdir())
        said = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(
            f"{total / 1e9:.2f} billion parameters in {place} shards, {said / 1e9:.1f} GB ({used / 1e6:.0f} MB on disk)"
        )
        options = 'heavy_tail=False, method="fast"'
        rows, measured, peak, seconds = watched(folder, options)
        largest = 2 * 4 * width * width
        print(
            f"{options}: {rows} rows, {measured} measured, {seconds:.0f} s; peak {peak / 1e6:.0f} MB above the imports "
            f"= {peak / largest:.1f} × the largest tensor as stored, {peak / largest / 2:.1f} × as float32"
        )


def awkward():
    """One model for each kind of tensor."""
    tied = nn.ModuleDict({"embed": nn.Embedding(200, 64), "head": nn.Linear(64, 200, bias=False)})
    tied["head"].weight = tied["embed"].weight
    raw = nn.ParameterDict({"matrix": nn.Parameter(torch.randn(80, 60))})
    spoilt = nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 60))
    with torch.no_grad():
        spoilt[0].weight[0, 0] = torch.nan
    return {
        "LSTM": nn.LSTM(60, 80),
        "in_proj_weight": nn.MultiheadAttention(64, 4),
        "raw parameter": raw,
        "Conv1d": nn.Sequential(nn.Conv1d(60, 80, 3)),
        "Linear(64, 1)": nn.Sequential(nn.Linear(64, 1)),
        "tied embedding": tied,
        "one NaN in two": spoilt,
        "bfloat16": nn.Sequential(nn.Linear(64, 80)).bfloat16(),
    }


def tensors(arguments):
    import equipoise as eq

    print(f"{'':16} {'equipoise':>22}   {'WeightWatcher' if arguments.weightwatcher else ''}")
    for name, model in awkward().items():
        table = eq.analyze(model)
        ours = f"{int(table['reason'].isna().sum())} measured of {len(table)} rows"
        print(f"{name:16} {ours:>22}   {theirs_of(model) if arguments.weightwatcher else ''}", flush=True)


def theirs_of(model):
    try:
        found = peers(model)
    except BaseException as error:  # it ends the program on some models
        return f"{type(error).__name__}: {str(error).splitlines()[0][:70] if str(error) else ''}"
    return f"{len(found)} rows" if found is not None else "nothing"


PARTS = {
    "speed": speed,
    "products": products,
    "small": small,
    "fast": fast,
    "memory": memory,
    "huge": huge,
    "tensors": tensors,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weightwatcher", help="the folder it is installed in")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--billions", type=float, default=5.0)
    arguments = parser.parse_args()
    if arguments.weightwatcher:
        sys.path.append(arguments.weightwatcher)
        import logging

        logging.disable(logging.CRITICAL)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            print(f"\n== {name}")
            part(arguments)


if __name__ == "__main__":
    main()
