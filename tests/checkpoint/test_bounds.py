"""Small files that would take hours or gigabytes, if what they say were followed: each is one line or a table, soon."""

import io
import json
import subprocess
import sys
import zipfile

import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

CONFINED = """
import resource, sys, equipoise as eq, torch, onnx
from pathlib import Path
torch.set_num_threads(1)
eq.analyze({"warm": torch.randn(4, 4)})
used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 60, int(used) + 60))  # of hours
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + (1 << 30),) * 2)
for name in sys.argv[1:]:
    path = Path(name)
    adapter = path.parent / "adapter"
    try:
        found = eq.analyze(path, heavy_tail=False, adapter=adapter if adapter.exists() else None)
        print(f"{len(found)} rows: {found['reason'].dropna().unique()[:1].tolist()}", flush=True)
    except eq.errors.InputError as error:
        print(error, flush=True)
"""

NESTED = b"K\x01" + b"2\x86" * 60  # a tuple of twice a tuple of twice …: 2^60 ones, in 122 bytes
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"  # four numbers
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89}tR"
OF_CLASS = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_parameter\n" + NESTED + TENSOR + b"\x85NtR"


def under(program):
    """A pickle with a tensor, and this under another name."""
    return b"\x80\x02}(X\x01\x00\x00\x00w" + TENSOR + b"X\x01\x00\x00\x00v" + program + b"u."


def archived(pickled):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("m/data.pkl", pickled)
        target.writestr("m/data/0", b"\0" * 16)
    return {"m.pt": file.getvalue()}


def rebuilt(function, *arguments):
    return archived(under(f"ctorch._utils\n{function}\n(".encode() + b"".join(arguments) + b"tR"))


def legacy_keys():
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    return {"m.pt": magic + b"\x80\x02M\xe9\x03.\x80\x02}." + under(b"N") + b"\x80\x02](" + NESTED + b"e."}


def copies(count=6000):
    """A list in the memo, made a shape again and again."""
    several = b"](" + b"K\x01" * count + b"eq\x01"
    return archived(under(several) [:-2] + (b"X\x01\x00\x00\x00uctorch\nSize\nh\x01\x85R") * count + b"u.")  # fmt: skip


def references(count=6000):
    """A dict without tensors, under any number of names."""
    name = b"X\x04\x00\x00\x00"
    inside = b"}q\x01(" + b"".join(name + f"{n:04}".encode() + b"}" for n in range(count)) + b"u"
    more = b"".join(name + f"{n:04}".encode() + b"h\x01" for n in range(count))
    return archived(under(inside)[:-2] + more + b"u.")


def spellings(count=20_000):
    """One shard under any number of paths."""
    shards = {f"t{n}": "./" * (n % 1000) + "/" * (n // 1000) + "a.safetensors" for n in range(count)}
    shards = {name: path.lstrip("/") for name, path in shards.items()}
    files = {"a.safetensors": save({f"l{n}": torch.ones(1) for n in range(1000)})}
    return {"model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(), **files}


def model(tensors, nodes=()):
    graph = helper.make_graph(list(nodes) or [helper.make_node("Relu", ["x"], ["y"])], "g", [], [], tensors)
    return helper.make_model(graph).SerializeToString()


def outer_product(size=60_000):
    codes = TensorProto(name="q", data_type=TensorProto.INT8, dims=[size, 1], raw_data=b"\1" * size)
    scale = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[size], raw_data=b"\0" * 4 * size)
    return {"m.onnx": model([codes, scale], [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1)])}


def overlapping(count=3000):
    tensors = []
    for n in range(count):
        tensors += [TensorProto(name=f"w{n}", data_type=1, dims=[512, 512], data_location=TensorProto.EXTERNAL)]
        tensors[-1].external_data.add(key="location", value="w.bin")
    return {"m.onnx": model(tensors), "w.bin": b"\0" * (1 << 20)}


def blocks(**state):
    described = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 8]} | state
    blob = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    its = {"l.weight": torch.ones(32, 1).byte(), "l.weight.quant_state.bitsandbytes__nf4": blob}
    its |= {"l.weight.absmax": torch.ones(1), "l.weight.quant_map": torch.ones(16)}
    if "nested_blocksize" in state:
        its |= {"l.weight.absmax": torch.zeros(1).byte(), "l.weight.nested_absmax": torch.ones(1)}
        its |= {"l.weight.nested_quant_map": torch.ones(256)}
    return {"m.safetensors": save(its)}


def lists():
    return {"m.safetensors": save({"w": torch.eye(2)}), "config.json": b'{"a": [' + b"[]," * 10**7 + b"[]]}"}


def patterns():
    module, length = "a" * 40, 4
    factors = {f"base_model.model.{module}.lora_A.weight": torch.ones(2, 3)}
    factors |= {f"base_model.model.{module}.lora_B.weight": torch.ones(length, 2)}
    return {
        "m.safetensors": save({f"{module}.weight": torch.ones(length, 3)}),
        "adapter/adapter_model.safetensors": save(factors),
        "adapter/adapter_config.json": json.dumps({"r": 2, "lora_alpha": 2, "rank_pattern": {"(a+)+b": 2}}).encode(),
    }


CASES = {
    "sizes": (rebuilt("_rebuild_tensor_v2", STORAGE, b"K\x00", NESTED, b"K\x01\x85", b"\x89}"), "the shape (tuple"),
    "layout": (rebuilt("_rebuild_sparse_tensor", NESTED, b")"), "its layout is unknown"),
    "class": (archived(b"\x80\x02}X\x01\x00\x00\x00w" + OF_CLASS + b"s."), "an object of another class"),
    "dtype": (rebuilt("_rebuild_device_tensor_from_cpu_tensor", TENSOR, NESTED), "what is no dtype"),
    "keys": (legacy_keys(), "the numbers (tuple"),
    "copies": (copies(), "parts"),
    "references": (references(), "1 rows"),
    "spellings": (spellings(), "21000 rows"),
    "outer product": (outer_product(), "2 rows"),
    "overlapping": (overlapping(), "overlap"),
    "blocks": (blocks(blocksize=2**40), "1 rows: []"),
    "no blocks": (blocks(blocksize=0), "1 rows: ['bitsandbytes codes in blocks of 0']"),
    "nested blocks": (blocks(nested_blocksize=2**40), "1 rows: []"),
    "lists": (lists(), "lists and objects"),
    "patterns": (patterns(), "quickly compared"),
}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The last words on each case, of a process with a gigabyte more, and a minute."""
    paths = []
    for title, (files, _) in CASES.items():
        folder = tmp_path_factory.mktemp(title.replace(" ", "-"))
        for name, contents in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(contents)
        paths.append(folder / next(iter(files)))
    run = [sys.executable, "-c", CONFINED, *map(str, paths)]
    lines = subprocess.run(run, capture_output=True, text=True).stdout.splitlines()
    return dict(zip(CASES, lines, strict=False))


@pytest.mark.parametrize("title", CASES)
def test_what_is_said_is_soon_said(title, said):
    assert CASES[title][1] in said.get(title, "nothing")
