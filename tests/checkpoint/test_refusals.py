"""Files that lie, bite or break off: refused in one line, nothing run, nothing filled."""

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

import equipoise as eq
from equipoise.errors import InputError

# With 300 MB of address space above what is in use, whatever tries to fill the memory fails at once.
CONFINED = """
import resource, sys, psutil, equipoise as eq, onnx, powerlaw
eq.analyze  # imported before memory is short
limit = psutil.Process().memory_info().vms + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        print("analysed", len(eq.analyze(path)))
    except eq.errors.InputError as error:
        print("refused", error)
"""


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        eq.analyze(path)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def header(fields, body=b"", length=None):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(**changed):
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changed}}


SAFETENSORS = {
    "cut short": header(one(), b"\0" * 10),
    "cut in the header": header(one(), b"")[:20],
    "header longer than the file": header(one(), b"\0" * 16, length=10**6),
    "header of an exabyte": header(one(), b"\0" * 16, length=2**60),
    "shape larger than its numbers": header(one(shape=[10**6, 10**6]), b"\0" * 16),
    "shape that overflows": header(one(shape=[2**40, 2**40]), b"\0" * 16),
    "offsets beyond the end": header(one(data_offsets=[0, 10**12]), b"\0" * 16),
    "offsets backwards": header(one(data_offsets=[16, 0]), b"\0" * 16),
    "bytes nobody owns": header(one(), b"\0" * 64),
    "overlap": header(one() | {"v": one()["w"]}, b"\0" * 16),
    "unknown type": header(one(dtype="F99"), b"\0" * 16),
    "not JSON": struct.pack("<Q", 9) + b"{garbage}",
    "deep JSON": struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_lie(name, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(SAFETENSORS[name])
    refused(path, "m.safetensors")


class Bomb:
    def __init__(self, command, *arguments):
        self.call = command, arguments

    def __reduce__(self):
        return self.call


def archive(pickled, path, compression=zipfile.ZIP_STORED, numbers=b"\0" * 64):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/byteorder", "little")
        file.writestr("m/data/0", numbers)
        file.writestr("m/version", "3\n")
    return path


def storage(count):
    """The opcodes of a storage of `count` float32 numbers."""
    return (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + b"\x8a\x08"
        + struct.pack("<q", count)
        + b"tQ"
    )


def tensor(count, size, stride):
    """The opcodes of `_rebuild_tensor_v2`, as torch.save writes them."""

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    tail = b"K\x00" + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(count) + tail + b"R"


def called(function, argument):
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode() + argument + b"\x85R"


HUGE = b"\x8a\x08" + struct.pack("<q", 10**11)
LONG = tensor(1, (10**9, 2), (0, 0))


def pickles(mark):
    return {
        "os.system": pickle.dumps(Bomb(os.system, f"touch {mark}"), protocol=2),
        "eval": pickle.dumps({"w": Bomb(eval, f"open({str(mark)!r}, 'w')")}, protocol=2),
        "os.system in protocol 4": pickle.dumps(Bomb(os.system, f"touch {mark}"), protocol=4),
        "os.system in protocol 0": pickle.dumps(Bomb(os.system, f"touch {mark}"), protocol=0),
        "a bytearray that fills the memory": b"\x80\x02" + called("__builtin__.bytearray", HUGE) + b".",
        "a bytearray of one": b"\x80\x02" + called("builtins.bytearray", called("builtins.bytearray", HUGE)) + b".",
        "a dict of a long tensor": b"\x80\x02" + called("collections.OrderedDict", LONG) + b".",
        "a set of a long tensor": b"\x80\x02" + called("builtins.set", LONG) + b".",
        "the state of a long tensor": b"\x80\x02ccollections\nOrderedDict\n)R" + LONG + b"b.",
        "hex": b"\x80\x02" + called("_codecs.encode", b"X\x01\x00\x00\x00a") + b".",
        "a whole module": pickle.dumps(torch.nn.Linear(2, 2), protocol=2),
        "text": b"\x80\x02X\x03\x00\x00\x00abc.",
        "garbage": b"\x80\x02\xff\xff\xff",
        "cut short": b"\x80\x02}",
        "an empty stack": b"\x80\x02R.",
    }


def as_legacy(pickled):
    """Magic number, protocol and system, as torch wrote them before version 1.6, then the pickle."""
    return b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}." + pickled


@pytest.mark.parametrize("name", pickles(""))
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_do_more_than_hold_tensors(name, zipped, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "m.pt"
    pickled = pickles(mark)[name]
    if zipped:
        archive(pickled, path)
    else:
        path.write_bytes(as_legacy(pickled))
    message = refused(path, "checkpoint")
    assert not mark.exists()
    if name in ("os.system", "eval", "os.system in protocol 0"):
        assert "asks for posix.system" in message or "builtin" in message


def test_a_bomb_would_have_gone_off(tmp_path):
    """The same bytes, loaded without care: the tests above can fail."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(os.system, f"touch {mark}"), protocol=2))
    assert mark.exists()


def test_archives_that_are_not_what_torch_writes(tmp_path):
    torch.save({"w": torch.eye(40)}, tmp_path / "good.pt")
    data = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.pt", "cut.pt")
    good = zipfile.ZipFile(tmp_path / "good.pt").read("good/data.pkl")
    refused(archive(b"\0" * 10**7, tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED), "a compressed part")
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(archive(good, tmp_path / "two.pt"), "a") as file,
    ):
        file.writestr("m/data.pkl", good)
    refused(tmp_path / "two.pt", "two parts of the same name")
    with zipfile.ZipFile(tmp_path / "none.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    refused(tmp_path / "none.pt", "an archive of something else")
    with zipfile.ZipFile(archive(good, tmp_path / "script.pt"), "a") as file:
        file.writestr("m/constants.pkl", good)
    refused(tmp_path / "script.pt", "TorchScript")


def test_storages_that_lie_are_refused_or_named(tmp_path):
    def pickled(count, size, stride):
        return b"\x80\x02}X\x01\x00\x00\x00w" + tensor(count, size, stride) + b"s."

    sound = eq.analyze(archive(pickled(16, (4, 4), (4, 1)), tmp_path / "sound.pt"))
    assert sound["reason"].tolist() == [None]
    refused(archive(pickled(10**9, (10**9,), (1,)), tmp_path / "a.pt"))
    refused(archive(pickled(16, (10**5, 10**5), (10**5, 1)), tmp_path / "b.pt"))
    refused(archive(pickled(16, (2**40, 2**40), (2**40, 1)), tmp_path / "c.pt"))
    repeated = eq.analyze(archive(pickled(16, (10**6, 10**6), (0, 0)), tmp_path / "d.pt"))
    assert repeated["reason"].tolist() == ["its shape says more numbers than it stores"]


def test_onnx_that_lies(tmp_path):
    def saved(tensor, name="m.onnx"):
        model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
        (tmp_path / name).write_bytes(model.SerializeToString())
        return tmp_path / name

    def outside(location, offset=0, length=16):
        its = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            its.external_data.add(key=key, value=value)
        return its

    (tmp_path / "w.bin").write_bytes(b"\0" * 16)
    assert eq.analyze(saved(outside("w.bin")))["reason"].tolist() == [None]
    for location in ("../../etc/passwd", "/etc/passwd", "a/../../w.bin", "nowhere.bin", "", "w\0.bin"):
        refused(saved(outside(location)), "expected the file")
    refused(saved(outside("w.bin", offset=8)), "ends before")
    refused(saved(outside("w.bin", offset=-8)), "ends before")
    refused(saved(outside("w.bin", offset="x")), "ends before")
    refused(saved(outside("w.bin", length=4)), "needs 16 and has 4")
    refused(saved(TensorProto(name="w", data_type=1, dims=[10**6, 10**6], raw_data=b"\0" * 16)), "needs 4000000000000")
    refused(saved(TensorProto(name="w", data_type=1, dims=[10**6, 10**6], float_data=[1.0])), "needs 1000000000000")
    refused(saved(TensorProto(name="w", data_type=1, dims=[-2, 2], raw_data=b"\0" * 16)), "the shape")
    (tmp_path / "noise.onnx").write_bytes(os.urandom(200))
    refused(tmp_path / "noise.onnx", "an ONNX model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx")
    whole = onnx.load(saved(helper.make_tensor("w", 1, [40, 40], [0.0] * 1600))).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(whole[:-100])
    refused(tmp_path / "cut.onnx", "an ONNX model")


def test_folders_and_indices_that_lie(tmp_path):
    save_file({"w": torch.eye(2)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    refused(folder, "one checkpoint in")
    index = folder / "model.safetensors.index.json"
    for shards, words in (
        ({"w": "../outside.safetensors"}, "a path out of the folder"),
        ({"w": str(tmp_path / "outside.safetensors")}, "a path out of the folder"),
        ({"w": "missing.safetensors"}, "no such file"),
        ({"w": 3}, "weight_map"),
        (["w"], "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": shards}))
        refused(folder, words)
    for text in ("[1]", "{", "[" * 100_000, "\xff"):
        index.write_text(text, encoding="latin-1")
        refused(folder, "a JSON object")
    save_file({"w": torch.eye(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json")


@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"\0" * 100, b"<html>404</html>", random.Random(0).randbytes(50)]
)
def test_what_is_no_checkpoint(content, tmp_path):
    for name in ("file.bin", "file"):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "safetensors, torch.save or ONNX")


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "nowhere", "nowhere")
    refused("/dev/zero", "/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe")


def test_nothing_fills_the_memory(tmp_path):
    """Everything above once more, with little memory to spare: each is still refused in its own words."""
    paths = []
    for place, data in enumerate(SAFETENSORS.values()):
        paths.append(tmp_path / f"{place}.safetensors")
        paths[-1].write_bytes(data)
    for place, data in enumerate(pickles(tmp_path / "mark").values()):
        paths.append(archive(data, tmp_path / f"{place}.pt"))
    paths.append(archive(b"\0" * 6 * 10**8, tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED))
    run = [sys.executable, "-c", CONFINED, *map(str, paths)]
    said = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert len(said) == len(paths)
    assert all(line.startswith("refused expected") for line in said)
