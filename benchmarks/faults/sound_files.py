"""A sound checkpoint of every format that is read, or refused by name: small ones, for the campaign to break."""

import bz2
import gzip
import io
import json
import lzma
import math
import pickle
import tarfile
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

Files = dict[
    str, bytes
]  # by their path; the first is analysed, or the folder, where there are several without "adapter"
Make = Callable[[], Files]

FP8, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu


def state() -> dict[str, Tensor]:
    return {"a.weight": torch.randn(6, 5), "b.weight_ih_l0": torch.randn(8, 3), "c": torch.randn(4).half()}


def bytes_of(value: object, **options: Any) -> bytes:
    """As `torch.save` writes it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own legacy writer
        torch.save(value, file, **options)
    return file.getvalue()


def torch_saved(value: object, name: str = "m.pt", **options: Any) -> Make:
    return lambda: {name: bytes_of(value, **options)}


def only(contents: bytes | str, name: str) -> Make:
    return lambda: {name: contents if isinstance(contents, bytes) else contents.encode()}


# ---- safetensors ----


def mixed() -> Files:
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.int64, FP8, E5M2)
    tensors = {f"l{place}.weight": torch.rand(4, 3).to(kind) for place, kind in enumerate(kinds)}
    return {"m.safetensors": save(tensors | {"e": torch.ones(3).to(E8M0), "z": torch.ones(2, 2).cfloat()})}


def tied() -> Files:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_model(model, str(path))
        return {path.name: path.read_bytes()}


def sharded(pack: Callable[[Any], bytes], suffix: str, index: str) -> Make:
    def made() -> Files:
        files = {f"shard-{place}.{suffix}": pack({name: its}) for place, (name, its) in enumerate(state().items())}
        shards = dict(zip(state(), files, strict=True))
        return {index: json.dumps({"metadata": {}, "weight_map": shards}).encode(), **files}

    return made


# ---- torch.save ----


def trained() -> object:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.LSTM(4, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model[0](torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "args": {"lr": 0.1}}


def lightning() -> object:
    callbacks = {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x.ckpt", "kth_best": {}}}
    loops = {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}}
    its = {"epoch": 1, "global_step": 9, "pytorch-lightning_version": "2.4.0", "state_dict": OrderedDict(state())}
    return its | {"callbacks": callbacks, "loops": loops, "hyper_parameters": {"width": 4}, "lr_schedulers": []}


def rewritten(change: Callable[[str, bytes], list[tuple[str, bytes]]], value: object = None) -> Make:
    """An archive of `torch.save`, each of its parts replaced by those that `change` gives."""

    def made() -> Files:
        file = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as target:
            warnings.simplefilter("ignore")  # a name twice
            with zipfile.ZipFile(io.BytesIO(bytes_of(state() if value is None else value))) as source:
                for part in source.infolist():
                    for name, contents in change(part.filename, source.read(part)):
                        target.writestr(name, contents)
        return {"m.pt": file.getvalue()}

    return made


def _twice(name: str, contents: bytes) -> list[tuple[str, bytes]]:
    return [(name, contents)] * (2 if name.endswith("data.pkl") else 1)


def _twice_folded(name: str, contents: bytes) -> list[tuple[str, bytes]]:
    return [(name, contents), *([(name.replace("data.pkl", "DATA.PKL"), contents)] if name.endswith(".pkl") else [])]


def _big(name: str, contents: bytes) -> list[tuple[str, bytes]]:
    return [(name, b"big" if name.endswith("byteorder") else contents)]


def quantised_by_torch() -> object:
    scales = torch.tensor([0.1, 0.2, 0.3, 0.4])
    along = torch.quantize_per_channel(torch.randn(4, 3), scales, torch.zeros(4, dtype=torch.long), 0, torch.qint8)
    return {"a.weight": torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 3, torch.quint8), "b.weight": along}


def odd_layouts() -> object:
    dense = torch.eye(4)
    views = {"t": torch.randn(4, 6).T, "part": torch.randn(9, 9)[2:5, 1:4], "wide": torch.ones(1).expand(4, 3)}
    others = {"array": np.ones((3, 2)), "number": np.float64(3.0), "size": torch.Size([3])}
    others |= {"meta": torch.ones(3, 2, device="meta"), "coo": dense.to_sparse(), "csr": dense.to_sparse_csr()}
    return {"complex": dense.cfloat(), **views, **others}


def tar() -> Files:
    """As torch saved before 0.1.10: four files in a tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as target:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            contents = pickle.dumps({"little_endian": True}, 2)
            part = tarfile.TarInfo(name)
            part.size = len(contents)
            target.addfile(part, io.BytesIO(contents))
    return {"m.pt": file.getvalue()}


def scripted() -> Files:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), file)
    return {"m.pt": file.getvalue()}


def archive(names: list[str], name: str) -> Make:
    def made() -> Files:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as target:
            for each in names:
                target.writestr(each, b"[]")
        return {name: file.getvalue()}

    return made


def distributed() -> Files:
    """A checkpoint of torch.distributed.checkpoint, of one process."""
    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": state()}, checkpoint_id=folder, no_dist=True)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def shards_of_zero() -> Files:
    its = {"optimizer_state_dict": {"zero_stage": 2, "single_partition_of_fp32_groups": [torch.randn(30)]}}
    ranks = {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": bytes_of(its) for rank in range(2)}
    return {**ranks, "mp_rank_00_model_states.pt": bytes_of({"module": state()}), "zero_to_fp32.py": b"print()\n"}


# ---- quantised weights, as other libraries save them ----


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32)


def with_config(tensors: Mapping[str, Tensor], **config: Any) -> Make:
    return lambda: {"model.safetensors": save(dict(tensors)), "config.json": json.dumps(config).encode()}


def quantised(tensors: Mapping[str, Tensor], **how: Any) -> Make:
    return with_config(tensors, model_type="llama", quantization_config=how)


def gptq() -> Files:
    its = {"l.qweight": words(8, 32), "l.qzeros": words(4, 4), "l.scales": torch.rand(4, 32).half()}
    return quantised(its | {"l.g_idx": torch.arange(64).int() // 16}, quant_method="gptq", bits=4, group_size=16)()


def awq() -> Files:
    its = {"l.qweight": words(16, 3), "l.qzeros": words(2, 3), "l.scales": torch.rand(2, 24).half()}
    return quantised(its, quant_method="awq", version="gemm", bits=4)()


def compressed() -> Files:
    its = {"l.weight_packed": words(6, 5), "l.weight_scale": torch.rand(6, 5).bfloat16()}
    groups = {"group_0": {"weights": {"num_bits": 4}}}
    its |= {"l.weight_shape": torch.tensor([6, 40])}
    return quantised(its, quant_method="compressed-tensors", config_groups=groups)()


def bitsandbytes() -> Files:
    described = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [7, 90]}
    blob = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    its = {"l.weight": torch.randint(256, (315, 1)).byte(), "l.weight.quant_state.bitsandbytes__nf4": blob}
    its |= {"l.weight.absmax": torch.rand(math.ceil(630 / 64)), "l.weight.quant_map": torch.randn(16)}
    return quantised(its | {"m.weight": torch.ones(3, 2).char(), "m.SCB": torch.rand(3)}, quant_method="bitsandbytes")()


def fp8() -> Files:
    its = {"l.weight": torch.randn(8, 8).to(FP8), "l.weight_scale_inv": torch.rand(2, 2)}
    its |= {"m.weight": torch.randn(4, 3).to(FP8), "m.weight_scale": torch.rand(4, 1), "m.input_scale": torch.ones(1)}
    return quantised(its, quant_method="fp8", weight_block_size=[4, 4])()


def four_bits() -> Files:
    its = {"experts.up_blocks": torch.randint(256, (3, 8, 2, 16)).byte()}
    its |= {"experts.up_scales": torch.randint(120, 131, (3, 8, 2)).byte()}
    its |= {"l.weight": torch.randint(256, (8, 32)).byte(), "l.weight_scale": (torch.rand(8, 4) * 50).to(FP8)}
    return quantised(its | {"l.weight_scale_2": torch.tensor([0.01])}, quant_method="mxfp4")()


def quanto() -> Files:
    its = {"l.weight._data": torch.ones(6, 4).char(), "l.weight._scale": torch.rand(6, 1)}
    return with_config(its | {"l.input_scale": torch.tensor(1.0)})()


def reparametrised() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm
        layers = [
            parametrizations.weight_norm(nn.Linear(4, 3)),
            torch.nn.utils.weight_norm(nn.Conv1d(4, 3, 2)),
            parametrizations.spectral_norm(nn.Linear(4, 3)),
            torch.nn.utils.spectral_norm(nn.Linear(4, 3)),
            prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5),
            nn.MultiheadAttention(4, 2),
            nn.GRU(4, 3, bidirectional=True),
            nn.Bilinear(3, 2, 4),
        ]
    return nn.Sequential(*layers).state_dict()


def experts() -> Files:
    its = {"h.0.attn.c_attn.weight": torch.randn(4, 12), "mlp.experts.gate_up_proj": torch.randn(3, 4, 5)}
    its |= {"mlp.experts.gate_up_proj_bias": torch.randn(3, 5), "_orig_mod.x.weight": torch.randn(3, 2)}
    return with_config(its, model_type="gpt2", num_local_experts=3, n_head=2)()


# ---- ONNX ----


def onnx_model(outside: bool, codes: bool = False) -> Make:
    def made() -> Files:
        from onnx import TensorProto, helper

        tensors = [helper.make_tensor(name, 1, its.shape, its.float().flatten()) for name, its in state().items()]
        nodes = [helper.make_node("Gemm", ["x", "a.weight"], ["y"], transB=1)]
        if codes:
            tensors += [helper.make_tensor("q", TensorProto.INT8, (4, 3), [1] * 12)]
            tensors += [helper.make_tensor("s", 1, (4,), [0.1] * 4)]
            tensors += [helper.make_tensor("z", TensorProto.INT8, (4,), [0] * 4)]
            nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0)]
        numbers = b""
        for tensor in tensors if outside else ():
            raw = np.array(tensor.float_data, np.float32).tobytes()
            tensor.ClearField("float_data")
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": "w.bin", "offset": len(numbers), "length": len(raw)}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            numbers += raw
        graph = helper.make_graph(nodes, "g", [], [], tensors)
        found = {"model.onnx": helper.make_model(graph).SerializeToString()}
        return found | ({"w.bin": numbers} if outside else {})

    return made


# ---- adapters, and what is only named ----


def adapter(pack: Callable[[Any], bytes], name: str) -> Make:
    def made() -> Files:
        base = {"model.a.weight": torch.ones(4, 3), "model.b.weight": torch.ones(2, 3, 2, 2)}
        factors = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(4, 2)}
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["a"], "rank_pattern": {"a": 2}}
        return {
            "m.safetensors": save(base),
            f"adapter/{name}": pack({f"base_model.model.model.{key}": its for key, its in factors.items()}),
            "adapter/adapter_config.json": json.dumps(config).encode(),
        }

    return made


def numpy_archive() -> Files:
    file = io.BytesIO()
    np.savez(file, a=np.ones((3, 2)), b=np.arange(4))
    return {"m.npz": file.getvalue()}


def numpy_array() -> Files:
    file = io.BytesIO()
    np.save(file, np.ones((3, 2)))
    return {"m.npy": file.getvalue()}


def hdf5() -> Files:
    try:
        import h5py
    except ImportError:
        return {"m.h5": b"\x89HDF\r\n\x1a\n" + bytes(200)}
    file = io.BytesIO()
    with h5py.File(file, "w") as target:
        target["layer/kernel"] = np.ones((3, 2))
    return {"m.h5": file.getvalue()}


def in_folder(**files: bytes) -> Make:
    """Files of another program, which the folder is known by; two underscores are a dot."""
    return lambda: {name.replace("__", "."): contents for name, contents in files.items()}


SOUND: dict[str, Make] = {
    "safetensors, all dtypes": mixed,
    "safetensors, tied": tied,
    "safetensors, shards": sharded(save, "safetensors", "model.safetensors.index.json"),
    "torch.save": torch_saved(state()),
    "torch.save, training": lambda: {"m.ckpt": bytes_of(trained())},
    "torch.save, protocol 4": torch_saved(state(), pickle_protocol=4),
    "torch.save, legacy": torch_saved(OrderedDict(state()), _use_new_zipfile_serialization=False),
    "torch.save, legacy, module.": torch_saved(
        {f"module.{k}": nn.Parameter(v) for k, v in state().items()}, _use_new_zipfile_serialization=False
    ),
    "torch.save, shards": sharded(bytes_of, "bin", "pytorch_model.bin.index.json"),
    "torch.save, big-endian": rewritten(_big),
    "torch.save, pickle twice": rewritten(_twice),
    "torch.save, pickle twice, folded": rewritten(_twice_folded),
    "torch.save, quantised": lambda: {"m.pt": bytes_of(quantised_by_torch())},
    "torch.save, quantised, legacy": lambda: {
        "m.pt": bytes_of(quantised_by_torch(), _use_new_zipfile_serialization=False)
    },
    "torch.save, odd layouts": lambda: {"m.pt": bytes_of(odd_layouts())},
    "torch.save, fp8": torch_saved({"w": torch.ones(4, 3).to(FP8), "u": torch.ones(3, 2, dtype=torch.uint16)}),
    "torch.save, reparametrised": lambda: {"m.pt": bytes_of(reparametrised())},
    "torch.save, a model": lambda: {"m.pt": bytes_of(nn.Linear(3, 2))},
    "Lightning": lambda: {"m.ckpt": bytes_of(lightning())},
    "tar": tar,
    "TorchScript": scripted,
    "torch.export": archive(["m/models/model.json", "m/version"], "m.pt2"),
    "torch.package": archive(["m/.data/extern_modules", "m/version"], "m.pt"),
    "Keras archive": archive(["config.json", "metadata.json", "model.weights.h5"], "m.keras"),
    "distributed": distributed,
    "ZeRO": shards_of_zero,
    "Megatron": lambda: {f"mp_rank_0{rank}": bytes_of(state()) for rank in range(2)},
    "GPTQ": gptq,
    "AWQ": awq,
    "compressed-tensors": compressed,
    "bitsandbytes": bitsandbytes,
    "fp8": fp8,
    "four bits": four_bits,
    "quanto": quanto,
    "experts": experts,
    "ONNX": onnx_model(outside=False),
    "ONNX, external": onnx_model(outside=True),
    "ONNX, quantised": onnx_model(outside=False, codes=True),
    "adapter": adapter(save, "adapter_model.safetensors"),
    "adapter, torch.save": adapter(bytes_of, "adapter_model.bin"),
    "pickle, protocol 0": only(pickle.dumps({"a": [1.5, None]}, 0), "m.pkl"),
    "pickle, protocol 5": only(pickle.dumps({"a": bytearray(9)}, 5), "m.pkl"),
    "npz": numpy_archive,
    "npy": numpy_array,
    "HDF5": hdf5,
    "GGUF": only(b"GGUF\x03\0\0\0" + bytes(64), "m.gguf"),
    "TensorFlow": in_folder(**{"m__index": bytes(40), "m__data-00000-of-00001": bytes(64), "checkpoint": b"model"}),
    "flax": in_folder(flax_model__msgpack=b"\x82\xa6params\x80", config__json=b"{}"),
    "orbax": in_folder(_METADATA=b"{}", manifest__ocdbt=bytes(30)),
    "TensorFlow Lite": only(b"\x1c\0\0\0TFL3" + bytes(40), "m.tflite"),
    "gzip": lambda: {"m.pt.gz": gzip.compress(bytes_of(state()))},
    "bz2": lambda: {"m.pt.bz2": bz2.compress(bytes_of(state()))},
    "xz": lambda: {"m.pt.xz": lzma.compress(bytes_of(state()))},
    "Git LFS": only("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "m.safetensors"),
    "HTML": only("<!DOCTYPE html><html><body>403</body></html>", "m.bin"),
    "JSON": only('{"error": "not found"}', "m.bin"),
}
