"""Generated files for every reader: a table, or one visible line; nothing else, and no code run.

    python benchmarks/faults/fuzz.py --seconds 3600          # `make fuzz`
    python benchmarks/faults/fuzz.py --only onnx --seconds 60

Where `checkpoints.py` breaks sound files at random, here the files are well-formed so far that their contents are read:
headers, pickles, graphs and configurations of the right form that say odd things. hypothesis makes and shrinks them.
"""

import argparse
import io
import json
import os
import pickle
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import equipoise as eq
from equipoise.errors import EquipoiseError

MARK = Path(tempfile.gettempdir()) / f"equipoise-fuzz-{os.getpid()}"  # code that is run leaves it
Files = dict[str, bytes]  # by name; the first is analysed
SECONDS = 10.0  # for one file, on the processor, in the campaign

# ---- values of any kind ----

names = st.one_of(
    st.sampled_from(["w", "a.weight", "a.bias", "h.0.attn.c_attn.weight", "l.weight_ih_l0", "q.qweight", "q.scales"]),
    st.sampled_from(
        ["a.weight_g", "a.parametrizations.weight.original0", "a.weight_orig", "a.weight_mask", "e.gate_up_proj"]
    ),
    st.text(max_size=8),
    st.sampled_from(["", "\x1b[2J", "\ud800", "‮a", "a" * 1025, "..", "a/b", "module.w", "_orig_mod.w", "{}", "[red]"]),
)
integers = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**40, 2**63 - 1, 2**64, -(2**63)]))
scalars = st.one_of(st.none(), st.booleans(), integers, st.floats(), names)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
shapes = st.lists(st.one_of(st.integers(0, 5), integers), max_size=4)
bodies = st.binary(max_size=160)


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---- safetensors ----

entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "I64", "F8_E4M3", "C64", "X"])
        | scalars,
        "shape": shapes | scalars,
        "data_offsets": st.tuples(integers, integers).map(list) | st.just([0, 16]) | scalars,
    },
)


@st.composite
def sound_header(draw: Any) -> tuple[dict[str, Any], bytes]:
    """Entries that fit their bytes; their names and shapes are odd."""
    header, body = {}, b""
    for name in draw(st.lists(names, max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        kind, size = draw(
            st.sampled_from([("F32", 4), ("F16", 2), ("I8", 1), ("U8", 1), ("I32", 4), ("BOOL", 1), ("F64", 8)])
        )
        needed = int(np.prod(shape)) * size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + needed]}
        body += draw(st.binary(min_size=needed, max_size=needed))
    return header, body


@st.composite
def safetensors(draw: Any) -> Files:
    header, body = (
        draw(sound_header()) if draw(st.booleans()) else (draw(st.dictionaries(names, entries)), draw(bodies))
    )
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(names, names | scalars, max_size=2))
    text = text_of(header)
    length = draw(st.just(len(text)) | integers.map(lambda number: number % 2**64))
    return {"m.safetensors": struct.pack("<Q", length) + text + body}


# ---- pickles ----

STORAGES = (
    "torch FloatStorage",
    "torch HalfStorage",
    "torch LongStorage",
    "torch QInt8Storage",
    "torch.storage UntypedStorage",
)
CALLS = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._utils _rebuild_wrapper_subclass",
    "torch._utils _rebuild_device_tensor_from_numpy",
    "torch._tensor _rebuild_from_type_v2",
    "torch.nn.parameter Parameter",
    "numpy.core.multiarray _reconstruct",
    "numpy dtype",
    "collections OrderedDict",
    "collections Counter",
    "builtins set",
    "builtins bytearray",
    "_codecs encode",
    "torch Size",
    "torch device",
)
NAMED = ("torch float32", "torch qint8", "torch per_tensor_affine", "numpy ndarray", "torch.nn.parameter Parameter")
HOSTILE = (
    "os system",
    "posix system",
    "builtins eval",
    "builtins exec",
    "builtins getattr",
    "__builtin__ eval",
    "subprocess Popen",
    "runpy _run_code",
    "torch.hub load",
    "numpy.testing._private.utils runstring",
    "operator attrgetter",
    "pip main",
    "webbrowser open",
)


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _pushed(value: Any) -> bytes:
    """A plain value without its frame."""
    return _text(value) if isinstance(value, str) else pickle.dumps(value, 2)[2:-1]


def _call(name: str, *arguments: bytes) -> bytes:
    return _global(name) + b"(" + b"".join(arguments) + b"tR"


def _persistent(kind: str, key: str, size: int) -> bytes:
    return b"(" + _text("storage") + _global(kind) + _text(key) + _text("cpu") + _pushed(size) + b"tQ"


storages = st.builds(_persistent, st.sampled_from(STORAGES), st.sampled_from(["0", "1", "x", "../0"]), integers)
tuples = shapes.map(tuple).map(_pushed)
tensors = st.builds(
    lambda storage, offset, shape, strides: _call(CALLS[0], storage, _pushed(offset), shape, strides, b"\x89", b"}"),
    storages,
    integers,
    tuples,
    tuples,
)


def _extend(inner: Any) -> Any:
    """Programs that push one value more complicated than `inner`."""
    several = st.lists(inner, max_size=4)
    return st.one_of(
        several.map(lambda parts: b"(" + b"".join(parts) + b"t"),
        several.map(lambda parts: b"](" + b"".join(parts) + b"e"),
        st.lists(st.tuples(names.map(_text) | inner, inner).map(b"".join), max_size=4).map(
            lambda parts: b"}(" + b"".join(parts) + b"u"
        ),
        st.builds(lambda name, parts: _call(name, *parts), st.sampled_from(CALLS), several),
        st.builds(
            lambda name, parts: _global(name) + b"(" + b"".join(parts) + b"t\x81", st.sampled_from(CALLS), several
        ),
        st.builds(lambda one, state: one + state + b"b", inner, inner),
        inner.map(lambda one: one + b"q\x01"),
        inner.map(lambda one: one + b"2t" if one.startswith(b"(") else one + b"2\x86"),
        inner.map(lambda one: one + b"Q"),
        inner.map(lambda one: one + b"0h\x01"),
    )


leaves = st.one_of(scalars.map(_pushed), storages, tensors, st.sampled_from([*NAMED, *STORAGES, *CALLS]).map(_global))
programs = st.recursive(leaves, _extend, max_leaves=8)
states = st.lists(st.tuples(names.map(_text), tensors | programs).map(b"".join), max_size=4).map(
    lambda parts: b"\x80\x02}(" + b"".join(parts) + b"u."
)
hostile = st.builds(
    lambda name, wrap, mark: b"\x80\x02" + wrap(_call(name, _text(mark))) + b".",
    st.sampled_from(HOSTILE),
    st.sampled_from([lambda one: one, lambda one: b"}" + _text("w") + one + b"s", lambda one: one + b"0}"]),
    st.sampled_from([f"touch {MARK}", f"open({str(MARK)!r}, 'w')"]),
)


@st.composite
def sound_state(draw: Any) -> tuple[bytes, dict[str, tuple[int, bytes]]]:
    """A pickle of tensors that fit their storages, in odd wrappings, and the storages with their lengths."""
    parts, stored = [], {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        kind, size = draw(
            st.sampled_from([("torch FloatStorage", 4), ("torch HalfStorage", 2), ("torch QInt8Storage", 1)])
        )
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        strides = [int(np.prod(shape[n + 1 :])) for n in range(len(shape))] if draw(st.booleans()) else [1] * len(shape)
        count, key = int(np.prod(shape)) + sum(shape), str(len(stored))
        stored[key] = count, draw(st.binary(min_size=count * size, max_size=count * size))
        given = [_persistent(kind, key, count), _pushed(0), _pushed(tuple(shape)), _pushed(tuple(strides))]
        if kind == "torch QInt8Storage":
            scheme = (
                b"(" + _global("torch per_tensor_affine") + _pushed(draw(st.floats())) + _pushed(draw(integers)) + b"t"
            )
            made = _call("torch._utils _rebuild_qtensor", *given, scheme, b"\x89", b"}")
        else:
            made = _call(CALLS[0], *given, b"\x89", b"}")
        if draw(st.booleans()):
            made = _call("torch._utils _rebuild_parameter", made, b"\x88", b"}")
        parts.append(_text(name) + made)
    parts += draw(st.lists(st.tuples(names.map(_text), programs).map(b"".join), max_size=1))
    return b"\x80\x02}(" + b"".join(parts) + b"u.", stored


@st.composite
def archives(draw: Any) -> Files:
    """A zip as `torch.save` writes it, around any pickle."""
    buffer = io.BytesIO()
    odd = draw(st.integers(0, 2)) == 0
    program, stored = (draw(states | hostile), {"0": (0, draw(bodies))}) if odd else draw(sound_state())
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")  # the same name twice
        folder = draw(st.sampled_from(["m", "archive", "", ".."])) if odd else "m"
        file.writestr(f"{folder}/data.pkl", program)
        for key, (_, contents) in stored.items():
            file.writestr(f"{folder}/data/{key}", contents, zipfile.ZIP_DEFLATED if odd else zipfile.ZIP_STORED)
        more = ["DATA.PKL", "byteorder", "version", "data.pkl", "code/a.py"] if odd else ["byteorder"]
        for name in draw(st.lists(st.sampled_from(more), max_size=2, unique=True)):
            file.writestr(f"{folder}/{name}", draw(st.sampled_from([b"little", b"big", b"3\n", b"", b"\x80\x02}."])))
    return {"m.pt": buffer.getvalue()}


@st.composite
def legacies(draw: Any) -> Files:
    """One pickle after another, and the storages, as torch wrote them before 1.6."""
    program, stored = draw(sound_state()) if draw(st.booleans()) else (draw(states | hostile), {})
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    body = b"".join(struct.pack("<q", count) + contents for count, contents in stored.values())
    keys = pickle.dumps(list(stored) if stored else draw(st.lists(names)), 2)
    return {"m.pt": head + program + keys + body}


# ---- ONNX ----


@st.composite
def onnx_models(draw: Any) -> Files:
    import onnx

    model = onnx.ModelProto()
    graph = model.graph
    known = st.sampled_from(["a", "b", "a.weight", "x"]) | names.filter(lambda name: name.isprintable())
    for _ in range(draw(st.integers(0, 4))):
        tensor = graph.initializer.add()
        tensor.name = draw(known)
        tensor.dims.extend(draw(st.lists(st.integers(-2, 6) | st.sampled_from([2**31, 2**62]), max_size=4)))
        tensor.data_type = draw(st.integers(0, 24))
        if draw(st.booleans()):
            tensor.raw_data = draw(bodies)
        tensor.float_data.extend(draw(st.lists(st.floats(width=32), max_size=3)))
        tensor.int32_data.extend(draw(st.lists(st.integers(-5, 300), max_size=3)))
        if draw(st.booleans()):
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key in draw(st.lists(st.sampled_from(["location", "offset", "length", "odd"]), max_size=3)):
                pair = tensor.external_data.add()
                pair.key, pair.value = (
                    key,
                    draw(st.sampled_from(["w.bin", "../../etc/passwd", "-1", "8", "x", "9" * 30])),
                )
    operations = [
        "Gemm",
        "Conv",
        "MatMul",
        "LSTM",
        "GRU",
        "RNN",
        "Gather",
        "DequantizeLinear",
        "Constant",
        "Identity",
        "If",
    ]
    for _ in range(draw(st.integers(0, 4))):
        node = graph.node.add()
        node.op_type = draw(st.sampled_from(operations))
        node.input.extend(draw(st.lists(known, max_size=5)))
        node.output.extend(draw(st.lists(known, max_size=2)))
        for name in draw(
            st.lists(st.sampled_from(["transA", "transB", "group", "value", "axis", "hidden_size"]), max_size=3)
        ):
            attribute = node.attribute.add()
            attribute.name, attribute.type = name, draw(st.integers(0, 8))
            attribute.i, attribute.s = draw(st.integers(-3, 5)), draw(st.binary(max_size=3))
    return {"m.onnx": model.SerializeToString(), "w.bin": draw(bodies)}


# ---- what is beside a checkpoint ----

BASE = save(
    {"model.a.weight": torch.ones(4, 3), "model.b.weight": torch.ones(2, 3, 2, 2), "model.a.bias": torch.ones(4)}
)
OPTIONS = (
    "r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "bias", "lora_bias",
    "peft_type", "init_lora_weights", "modules_to_save", "target_modules", "use_dora", "layers_to_transform", "use_new",
)  # fmt: skip


_A = "base_model.model.model.a"


@st.composite
def adapters(draw: Any) -> Files:
    sizes = st.lists(st.integers(0, 4), max_size=4)
    modules = st.sampled_from(["a", "b", "a.base_layer", "c", "(a+)+$"]) | names
    found = {}
    for _ in range(draw(st.integers(0, 4))):
        end = draw(
            st.sampled_from(
                ["lora_A.weight", "lora_B.weight", "lora_A.x.weight", "lora_embedding_A", "lora_B.bias", "weight"]
            )
        )
        name = f"base_model.model.model.{draw(modules)}.{end}"
        if "\ud800" not in name:
            found[name] = torch.ones(draw(sizes))
    if draw(st.booleans()):
        found = {name: value for name, value in found.items() if ".lora_" not in name}
        found |= {f"{_A}.lora_A.weight": torch.ones(2, 3), f"{_A}.lora_B.weight": torch.ones(4, 2)}
    config = draw(st.dictionaries(st.sampled_from(OPTIONS), anything | st.dictionaries(modules, scalars), max_size=5))
    return {
        "m.safetensors": BASE,
        "adapter/adapter_model.safetensors": save(found),
        "adapter/adapter_config.json": text_of({"r": 2, "lora_alpha": 4} | config),
    }


KEYS = (
    "model_type", "architectures", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim",
    "num_experts", "quantization_config", "tie_word_embeddings", "n_head",
)  # fmt: skip
METHODS = ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4", "odd")
quantisations = st.fixed_dictionaries(
    {"quant_method": st.sampled_from(METHODS) | scalars},
    optional=dict.fromkeys(("bits", "group_size", "config_groups", "weight_block_size", "format", "sym"), anything),
)
PARTS = (
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight",
    "weight_scale",
    "weight_scale_inv",
    "weight_packed",
    "absmax",
)


@st.composite
def configs(draw: Any) -> Files:
    """A configuration beside weights that may be quantised."""
    config = draw(st.dictionaries(st.sampled_from(KEYS), anything, max_size=4))
    if draw(st.booleans()):
        config["quantization_config"] = draw(quantisations)
    kinds = st.sampled_from([torch.float32, torch.int32, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float16])
    sizes = st.lists(st.integers(0, 8), max_size=3)
    found = {
        f"l.{part}": torch.zeros(draw(sizes)).to(draw(kinds))
        for part in draw(st.sets(st.sampled_from(PARTS), min_size=1))
    }
    return {"m.safetensors": save(found), "config.json": draw(st.just(text_of(config)) | bodies)}


@st.composite
def indices(draw: Any) -> Files:
    good = st.sampled_from(["a.safetensors", "a.safetensors", "b.safetensors"])
    odd = st.sampled_from(["../a.safetensors", "/etc/passwd", "a\0", "", "x" * 300]) | scalars
    maps = st.dictionaries(names, good, min_size=1, max_size=4), st.dictionaries(names, good | odd), scalars
    index = {"weight_map": draw(st.sampled_from(maps).flatmap(lambda chosen: chosen))}
    end = draw(st.sampled_from(["model.safetensors.index.json", "pytorch_model.bin.index.json"]))
    shards = {"a.safetensors": BASE, "b.safetensors": draw(bodies | st.just(BASE))}
    return {end: draw(st.just(text_of(index)) | bodies), **shards}


# ---- files that are only named, and state dicts ----

STARTS = (
    b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"GGUF", b"\x1f\x8b", b"BZh", b"%PDF", b"<html",
    b"<?xml", b"{", b"[1", b"\x80\x02", b"\x80\x04", b"\0" * 257 + b"ustar", b"\0\0\0\0TFL3", b"\xff\xfe",
    b"version https://git-lfs.github.com/spec", b"\xef\xbb\xbf{", pickle.dumps(0x1950A86A20F9469CFC6C, 2),
)  # fmt: skip
ENDS = (
    ".pt",
    ".npz",
    ".npy",
    ".h5",
    ".onnx",
    ".msgpack",
    ".index",
    ".json",
    ".gguf",
    ".distcp",
    ".pb",
    ".tar",
    "",
    ".data-0-of-1",
)


@st.composite
def strangers(draw: Any) -> Files:
    contents = draw(st.sampled_from(STARTS)) + draw(bodies)
    if draw(st.booleans()):
        buffer = io.BytesIO()
        np.savez(buffer, **{f"a{n}": np.ones(draw(st.integers(0, 3))) for n in range(draw(st.integers(0, 2)))})
        contents = buffer.getvalue()
    return {f"m{draw(st.sampled_from(ENDS))}": contents}


held = st.one_of(
    scalars,
    st.lists(st.integers(0, 4), max_size=4).map(torch.ones),
    st.sampled_from([torch.float16, torch.int8, torch.bool, torch.complex64, torch.float64]).map(
        lambda k: torch.ones(3, 2).to(k)
    ),
    st.sampled_from(["nan", "inf", "meta", "sparse", "expanded", "array", "grad"]).map(
        lambda kind: {
            "nan": lambda: torch.full((3, 2), torch.nan),
            "inf": lambda: torch.full((3, 2), torch.inf),
            "meta": lambda: torch.ones(3, 2, device="meta"),
            "sparse": lambda: torch.eye(3).to_sparse(),
            "expanded": lambda: torch.ones(1).expand(3, 2),
            "array": lambda: np.ones((3, 2)),
            "grad": lambda: torch.ones(3, 2, requires_grad=True) * 2,
        }[kind]()
    ),
)
mappings = st.dictionaries(
    st.one_of(names, integers, st.tuples(names)), held | st.dictionaries(names, held, max_size=3), max_size=4
)

# ---- the campaign ----

FILES: dict[str, Any] = {
    "safetensors": safetensors(),
    "torch_save": archives(),
    "torch_save, legacy": legacies(),
    "onnx": onnx_models(),
    "adapters": adapters(),
    "configs": configs(),
    "indices": indices(),
    "strangers": strangers(),
}


def read(folder: Path, files: Files) -> str:
    """Analyse the first of the files; `analysed`, or the one line that refuses it."""
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(contents)
    source, adapter = folder / next(iter(files)), folder / "adapter"
    return told(lambda: eq.analyze(source, heavy_tail=False, adapter=adapter if adapter.exists() else None))


def told(analyse: Callable[[], Any]) -> str:
    """`analysed`, or the one line; anything else is raised."""
    said = "analysed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analyse()
    except EquipoiseError as error:
        said = str(error)
    assert said.isprintable(), f"not one visible line: {said!r}"
    return said


def check_files(files: Files) -> None:
    with tempfile.TemporaryDirectory() as name:
        read(Path(name), files)
    assert not MARK.exists(), "code was run"


def check_mapping(state: dict[Any, Any]) -> None:
    told(lambda: eq.analyze(state, heavy_tail=False))


def check_pickle(contents: bytes) -> None:
    """What picklescan finds dangerous is refused, and nothing is run."""
    from picklescan.scanner import scan_pickle_bytes

    from equipoise.checkpoint.readers.unpickler import Damaged, Refused, unpickled

    found = scan_pickle_bytes(io.BytesIO(contents), "m.pkl")
    try:
        unpickled(io.BytesIO(contents))
    except (Refused, Damaged):
        pass
    except (EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
        assert not found.issues_count or found.scan_err, "dangerous, and refused only by chance"
    else:
        assert not found.issues_count, [str(each) for each in found.globals]
    assert not MARK.exists(), "code was run"


TARGETS: dict[str, tuple[Any, Callable[[Any], None]]] = {name: (files, check_files) for name, files in FILES.items()}
TARGETS |= {
    "state dicts": (mappings, check_mapping),
    "pickles": (states | hostile | programs.map(lambda program: b"\x80\x02" + program + b"."), check_pickle),
}


def fuzz(name: str, examples: int, seed: int | None = None, limit: float = float("inf")) -> int:
    """Check so many examples of a target, each within `limit` seconds; how many there were."""
    strategy, check = TARGETS[name]
    count = 0

    def one(example: Any) -> None:
        nonlocal count
        count += 1
        begun = time.process_time()
        check(example)
        assert time.process_time() - begun < limit, f"above {limit} s"

    settled = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    test = settled(given(strategy)(one))
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    test()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", default="", help="targets with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chosen, begun, seed = [name for name in TARGETS if asked.only in name], time.perf_counter(), asked.seed
    counts, failed = dict.fromkeys(chosen, 0), dict.fromkeys(chosen, 0)
    while time.perf_counter() - begun < asked.seconds:
        for name in chosen:
            try:
                counts[name] += fuzz(name, 100, seed, SECONDS)
            except Exception:
                failed[name] += 1
                print(f"{name}, seed {seed}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        seed += 1
    print("| reader | examples | rounds that failed |\n|---|---|---|")
    for name in chosen:
        print(f"| {name} | {counts[name]} | {failed[name]} |")
    return int(any(failed.values()))


if __name__ == "__main__":
    raise SystemExit(main())
