"""Pickles read into descriptions: what torch.load reads safely is read, and each number is where it says."""

import collections
import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import equipoise as eq
from equipoise.checkpoint.readers.opening import open_checkpoint
from equipoise.checkpoint.readers.unpickler import unpickled
from equipoise.errors import InputError


def tensors_of(path):
    return {entry.name: entry.read() for entry in open_checkpoint(path).tensors if entry.reason is None}


def refused(path):
    with pytest.raises(InputError) as caught:
        eq.analyze(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def mixed():
    base = torch.randn(6, 8)
    return {
        "plain": torch.randn(3, 4),
        "turned": base.T,
        "part": base[2:4, 1:5],
        "half": torch.randn(3, 3).half(),
        "double": torch.randn(2, 2).double(),
        "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "uint": torch.arange(9).to(torch.uint16).reshape(3, 3),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    }


@pytest.mark.filterwarnings("ignore:.*TypedStorage.*:UserWarning")
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_every_number_is_what_torch_reads(how, tmp_path):
    state = mixed()
    torch.save({"epoch": 3, "model": state}, tmp_path / "m.pt", **how)
    read = tensors_of(tmp_path / "m.pt")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].double(), tensor.detach().double())


def test_old_ordered_dicts_are_read(tmp_path):
    """Of Python 2: made of a list of pairs."""

    class Old(dict):
        def __reduce__(self):
            return collections.OrderedDict, ([[name, tensor] for name, tensor in self.items()],)

    weight = torch.randn(3, 2)
    torch.save(Old({"w": weight}), tmp_path / "old.pt")
    assert torch.equal(torch.load(tmp_path / "old.pt", weights_only=True)["w"], weight)
    assert torch.equal(tensors_of(tmp_path / "old.pt")["w"], weight)


def test_big_endian_files_are_turned(tmp_path):
    torch.save({"w": torch.eye(3)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as source, zipfile.ZipFile(tmp_path / "big.pt", "w") as target:
        for part in source.infolist():
            content = source.read(part)
            if part.filename.endswith("byteorder"):
                content = b"big"
            if "/data/" in part.filename:
                content = np.frombuffer(content, "<f4").astype(">f4").tobytes()
            target.writestr(part.filename, content)
    assert torch.equal(tensors_of(tmp_path / "big.pt")["w"], torch.eye(3))


def rewritten(source, target, change):
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for part in before.infolist():
            for name, content in change(part.filename, before.read(part)):
                after.writestr(name, content)
    return target


def test_a_storage_is_as_long_as_it_says(tmp_path):
    torch.save({"a": torch.zeros(64, 64), "b": torch.ones(64, 64)}, tmp_path / "m.pt")
    for share in (0, 0.5, 2):
        cut = rewritten(
            tmp_path / "m.pt",
            tmp_path / "cut.pt",
            lambda name, its, share=share: [
                (name, (its * 2)[: int(len(its) * share)] if name.endswith("data/0") else its)
            ],
        )
        assert "16384 bytes" in refused(cut)
    lost = rewritten(
        tmp_path / "m.pt", tmp_path / "lost.pt", lambda name, its: [] if name.endswith("data/1") else [(name, its)]
    )
    assert "the file has none" in refused(lost)


def test_the_pickle_is_there_once_whatever_its_case(tmp_path):
    torch.save({"a": torch.zeros(4, 4)}, tmp_path / "m.pt")
    for other in ("DATA.PKL", "data.PKL"):
        two = rewritten(
            tmp_path / "m.pt",
            tmp_path / "two.pt",
            lambda name, its, other=other: [(name, its), *([("m/" + other, its)] if name.endswith("data.pkl") else [])],
        )
        assert "two parts" in refused(two) or "2 data.pkl" in refused(two)


@pytest.mark.filterwarnings("ignore:.*(Sparse|quant|TypedStorage).*:UserWarning")
def test_what_is_not_dense_has_its_reason_or_its_numbers(tmp_path):
    codes = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 3, torch.qint8)
    channels = torch.quantize_per_channel(torch.randn(4, 4), torch.full((4,), 0.1), torch.zeros(4), 0, torch.qint8)
    tensors = {
        "coo": torch.eye(6).to_sparse(),
        "csr": torch.eye(6).to_sparse_csr(),
        "meta": torch.ones(3, 3, device="meta"),
        "codes": codes,
        "channels": channels,
    }
    torch.save(tensors, tmp_path / "m.pt")
    table = eq.analyze(tmp_path / "m.pt").set_index("name")
    assert "sparse_coo" in table.loc["coo", "reason"]
    assert "sparse_csr" in table.loc["csr", "reason"]
    assert "meta" in table.loc["meta", "reason"]
    for name, tensor in (("codes", codes), ("channels", channels)):
        assert table.loc[name, "frobenius_norm"] == pytest.approx(float(tensor.dequantize().double().norm()), rel=1e-6)


def test_keys_are_text_and_names_are_short(tmp_path):
    key = "x"
    for _ in range(60):
        key = (key, key)
    torch.save({"a": (key, 1), "b": torch.eye(2)}, tmp_path / "value.pt")
    assert eq.analyze(tmp_path / "value.pt")["name"].tolist() == ["b"]
    # a dict whose key would hash for longer than anyone lives
    nest = b"X\x01\x00\x00\x00x" + b"2\x86" * 60
    found = unpickled(io.BytesIO(b"\x80\x02}" + nest + b"K\x01s."))
    assert list(found.values()) == [1]
    save_file({"_" * 20_000: torch.eye(3)}, tmp_path / "long.safetensors")
    assert "at most 1024 characters" in refused(tmp_path / "long.safetensors")
    save_file({"_" * 1000: torch.eye(3), "weight_ih" * 100: torch.eye(3)}, tmp_path / "fits.safetensors")
    assert eq.analyze(tmp_path / "fits.safetensors")["reason"].tolist() == [None, None]


def test_views_of_one_storage_do_not_multiply_the_work(tmp_path):
    small = torch.randn(20_000)
    torch.save({f"w{p}": small[p : p + 10_000].view(100, 100) for p in range(300)}, tmp_path / "many.pt")
    assert "overlap" in refused(tmp_path / "many.pt")


def test_one_tensor_under_many_names(tmp_path):
    weight = torch.eye(3)
    torch.save({f"n{place}": weight for place in range(3000)}, tmp_path / "m.pt")
    table = eq.analyze(tmp_path / "m.pt")
    assert len(table) == 1
    assert len(table["aliases"][0]) == 2999


def test_two_paths_that_read_the_same_are_both_there(tmp_path):
    torch.save({"a.b": torch.eye(2), "a": {"b": 2 * torch.eye(2)}, "c": torch.eye(3)}, tmp_path / "m.pt")
    table = eq.analyze(tmp_path / "m.pt").set_index("name")
    assert sorted(table.index) == ["a.b", "a.b (2)", "c"]
    assert {round(norm**2) for norm in table["frobenius_norm"]} == {2, 8, 3}


def test_recurrent_weights_of_one_dimension(tmp_path):
    save_file({"r.weight_ih_l0": torch.randn(8, 3), "r.weight_hh_l0": torch.randn(8)}, tmp_path / "m.safetensors")
    assert len(eq.analyze(tmp_path / "m.safetensors")) == 2


def test_names_do_not_reach_a_terminal_as_they_are(tmp_path):
    names = ["a\x1b[2Jb", "bell\x07", "\u202eright", "zero\u200bwidth", "c1\x9b31m", "line\nbreak"]
    save_file({name: torch.randn(2, 2) for name in names}, tmp_path / "m.safetensors")
    torch.save({"\ud800": torch.randn(2, 2)}, tmp_path / "m.pt")
    shown = [*eq.analyze(tmp_path / "m.safetensors")["name"], *eq.analyze(tmp_path / "m.pt")["name"]]
    assert all(name.isprintable() for name in shown)
    assert "a\\x1b[2Jb" in shown
    save_file({"\x1b]0;title\x07" + "n" * 2000: torch.randn(2, 2)}, tmp_path / "long.safetensors")
    refused(tmp_path / "long.safetensors")
    with pytest.raises(InputError) as caught:
        eq.analyze(tmp_path / "m.safetensors", names="\x1b[31m")
    assert str(caught.value).isprintable()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
def test_no_pickle_runs_what_it_names(tail, place, byte):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("called",)  # which is no Exception

    for payload in (pickle.dumps({"a": [1, (2, None)], "t": Trap()}, 2), b"\x80\x02" + tail):
        changed = bytearray(payload)
        changed[place % len(changed)] = byte
        with contextlib.suppress(Exception):
            unpickled(io.BytesIO(bytes(changed)))


def test_what_picklescan_calls_dangerous_is_refused(tmp_path):
    scanner = pytest.importorskip("picklescan.scanner")
    targets = ["os.system", "builtins.eval", "subprocess.Popen", "runpy.run_path", "webbrowser.open", "shutil.rmtree"]
    for target in targets:
        module, name = target.rsplit(".", 1)
        payload = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"X\x01\x00\x00\x00x\x85R."
        assert scanner.scan_pickle_bytes(io.BytesIO(payload), "p").issues_count
        with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
            file.writestr("m/data.pkl", payload)
        assert "a pickle that" in refused(tmp_path / "m.pt")


FOREIGN = {
    "model.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "page.pt": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "page.safetensors": (b"<html><body>", "HTML"),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 20, "HDF5"),
    "m.tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 20, "TensorFlow Lite"),
    "a.npy": (b"\x93NUMPY\x01\0", "numpy"),
    "m.gguf": (b"GGUF\x03\0\0\0", "GGUF"),
    "m.pkl": (pickle.dumps({"a": 1}, 4), "a pickle that torch.save did not write"),
    "m.tar": (b"x" * 257 + b"ustar" + b"\0" * 300, "tar"),
    "said.json": (b'{"error": "not found"}', "JSON"),
    "empty.pt": (b"", "empty"),
    "note.txt": (b"hello", "text"),
    "m.gz": (b"\x1f\x8b\x08\0", "compressed"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_named_for_what_they_are(name, tmp_path):
    content, said = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert said in message
    assert "safetensors, torch.save or ONNX" in message


def test_archives_and_folders_are_named_for_what_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.eye(2))
    assert "numpy" in refused(tmp_path / "a.npz")
    for parts, said in (
        (["m/data.pkl", "m/constants.pkl"], "torch.jit.load"),
        (["m/models/model.json"], "torch.export"),
        (["model.weights.h5", "config.json"], "Keras"),
        (["readme.txt"], "something else"),
    ):
        with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
            for part in parts:
                file.writestr(part, b"x")
        assert said in refused(tmp_path / "m.pt")
    for names, said in (
        ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
        (["zero_to_fp32.py", "latest"], "zero_to_fp32"),
        (["_CHECKPOINT_METADATA", "manifest.ocdbt"], "orbax"),
        (["saved_model.pb"], "TensorFlow"),
        (["flax_model.msgpack"], "flax"),
    ):
        folder = tmp_path / said
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"x")
        assert said in refused(folder)


def test_lightning_checkpoints_with_other_objects_say_so(tmp_path):
    content = {"pytorch-lightning_version": "2.0", "state_dict": {"w": torch.eye(2)}, "hparams": torch.nn.ReLU()}
    torch.save(content, tmp_path / "m.ckpt")
    message = refused(tmp_path / "m.ckpt")
    assert "Lightning" in message
    assert "state_dict" in message
