"""Files and folders that are no checkpoints for this library: what they are, by their first bytes, and the way out."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from equipoise.errors import InputError


class Foreign(NamedTuple):
    """Something known, and how to get a checkpoint from it."""

    what: str
    remedy: str

    def refusal(self, path: Path) -> InputError:
        """As the one line that refuses it."""
        return InputError(
            expected="a checkpoint: safetensors, torch.save or ONNX",
            found=f"{path.name}, which is {self.what}",
            remedy=self.remedy,
        )


_SAVE = "torch.save(its state_dict, path)"
_TRUSTED = f"if you trust it, load it with torch.load(path, weights_only=False), then {_SAVE}"
_UNPACK = Foreign("a compressed archive", "unpack it and pass the checkpoint in it")
_HDF5 = Foreign(
    "an HDF5 file (Keras .h5, say)",
    "load it with keras or h5py and pass the arrays: eq.analyze({name: torch.from_numpy(array)})",
)
_NUMPY = Foreign(
    "an array of numpy (.npz, .npy)",
    "pass its arrays: eq.analyze({k: torch.from_numpy(v) for k, v in np.load(path).items()})",
)
_TENSORFLOW = Foreign(
    "a checkpoint of TensorFlow",
    "pass its arrays: eq.analyze({name: torch.from_numpy(tf.train.load_variable(path, name))})",
)
_FLAX = Foreign(
    "a checkpoint of flax or orbax (JAX)",
    "restore it there and pass the arrays by name: eq.analyze({name: torch.from_numpy(np.array(array))})",
)
_TORCHSCRIPT = Foreign("TorchScript", "torch.save(torch.jit.load(path).state_dict(), 'weights.pt') and pass that")
_DISTRIBUTED = Foreign(
    "a distributed checkpoint of torch (.metadata and *.distcp)",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt, and pass weights.pt",
)
_ZERO = Foreign(
    "the shards of DeepSpeed ZeRO", "run its zero_to_fp32.py: python zero_to_fp32.py FOLDER OUT, and pass OUT"
)

_STARTS: tuple[tuple[bytes, Foreign], ...] = (
    (
        b"version https://git-lfs.github.com/spec",
        Foreign("a pointer of Git LFS, not the file itself", "run git lfs pull in its repository"),
    ),
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"\x93NUMPY", _NUMPY),
    (b"GGUF", Foreign("a GGUF file of llama.cpp", "pass the checkpoint that it was converted from")),
    (b"\x1f\x8b", _UNPACK),
    (b"BZh", _UNPACK),
    (b"\xfd7zXZ\0", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", _UNPACK),
    (b"Rar!", _UNPACK),
    (b"\x28\xb5\x2f\xfd", _UNPACK),
    (b"%PDF", Foreign("a PDF", "pass another file")),
    (b"\x89PNG", Foreign("an image", "pass another file")),
    (b"MATLAB 5.0 MAT-file", Foreign("a MATLAB file", "pass its arrays: scipy.io.loadmat(path)")),
)
_HTML = Foreign("a page of HTML: the download gave an error or a login page", "fetch the file itself")
_XML = Foreign("XML: the download gave an error, or it is the description of another file", "fetch the file itself")
_JSON = Foreign(
    "JSON: an index, a configuration, or what a server said instead of the file", "pass the file with the weights"
)
_PICKLE = Foreign("a pickle that torch.save did not write (joblib, scikit-learn, a plain pickle)", _TRUSTED)
_TAR = Foreign("a tar archive: NeMo, or torch before 0.1.10", f"unpack it, or {_TRUSTED}")


def foreign_file(path: Path) -> Foreign | None:
    """The kind of a foreign file by its content, where that is known."""
    with path.open("rb") as file:
        start = file.read(512)
    for magic, foreign in _STARTS:
        if start.startswith(magic):
            return foreign
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return _HTML
    if text.startswith(b"<"):
        return _XML
    if start[4:8] == b"TFL3":
        return Foreign("a TensorFlow Lite model", "convert it to ONNX with tf2onnx, and pass that")
    if start[257:262] == b"ustar":
        return _TAR
    if re.match(rb"\x80[\x02-\x05]", start):
        return _PICKLE
    if path.suffix == ".msgpack":
        return _FLAX
    if re.search(r"\.(data-\d+-of-\d+|index)$", path.name) or path.name == "saved_model.pb":
        return _TENSORFLOW
    if re.match(rb"[\[{]", text) and not _binary(start):
        return _JSON
    if not start:
        return Foreign("empty", "fetch or save it again")
    return None if _binary(start) else Foreign("a text file", "pass the file with the weights")


def _binary(start: bytes) -> bool:
    return any(byte < 9 or 13 < byte < 32 or byte > 126 for byte in start)


_IN_ARCHIVES: tuple[tuple[Callable[[set[str], set[str]], bool], Foreign], ...] = (
    (lambda last, _: "constants.pkl" in last or "model.ts" in last, _TORCHSCRIPT),
    (
        lambda last, paths: "serialized_exported_program.json" in last or any("models/model.json" in p for p in paths),
        Foreign("a program of torch.export (.pt2)", "torch.save(torch.export.load(path).state_dict, 'weights.pt')"),
    ),
    (
        lambda last, paths: "extern_modules" in last or any("/.data/extern" in path for path in paths),
        Foreign("a package of torch.package", f"load it with its PackageImporter, then {_SAVE}"),
    ),
    (lambda last, _: "model.weights.h5" in last, _HDF5._replace(what="a Keras model (.keras)")),
    (lambda last, _: bool(last) and any(name.endswith(".npy") for name in last), _NUMPY),
    (
        lambda last, _: "data.pkl" not in last,
        Foreign("an archive of something else", "unpack it, or pass another file"),
    ),
)


def foreign_archive(names: Sequence[str]) -> Foreign | None:
    """The kind of a zip archive that `torch.save` did not write."""
    paths = {name.casefold() for name in names}
    last = {name.rpartition("/")[2] for name in paths}
    return next((foreign for fits, foreign in _IN_ARCHIVES if fits(last, paths)), None)


def foreign_folder(folder: Path, names: Sequence[str]) -> Foreign | None:
    """The kind of a folder that holds no single checkpoint file."""
    there = set(names)
    if ".metadata" in there or any(name.endswith(".distcp") for name in there):
        return _DISTRIBUTED
    if "zero_to_fp32.py" in there or any(re.match(r"(bf16_)?zero_pp_rank_", name) for name in there):
        return _ZERO
    if any(re.match(r"mp_rank_\d+", name) for name in there):
        return Foreign(
            "a checkpoint of Megatron or DeepSpeed in shards (mp_rank_*)", "merge it with the tools of its library"
        )
    if {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "_sharding"} & there or any(
        name.startswith("ocdbt.process_") for name in there
    ):
        return _FLAX
    if "saved_model.pb" in there or any(re.search(r"\.data-\d+-of-\d+$", name) for name in there):
        return _TENSORFLOW
    if "flax_model.msgpack" in there:
        return _FLAX
    if "tf_model.h5" in there or any(name.endswith((".h5", ".keras")) for name in there):
        return _HDF5
    if any(name.endswith((".gguf", ".tflite", ".npz", ".npy", ".mlpackage")) for name in there):
        its = min(name for name in there if name.endswith((".gguf", ".tflite", ".npz", ".npy", ".mlpackage")))
        return foreign_file(folder / its) if (folder / its).is_file() else None
    return None
