"""What the nodes of an ONNX graph say of its tensors: orientation, groups, gates, scales."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import equipoise as eq

RANDOM = np.random.default_rng(0)


def random(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def rows(path, nodes, tensors):
    initialisers = [numpy_helper.from_array(its, name) for name, its in tensors.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], initialisers)), path / "m.onnx")
    return {row["name"]: row for row in eq.analyze(path / "m.onnx", heavy_tail=False).to_dict("records")}


def assert_is(row, matrix, kind):
    assert row["reason"] is None
    assert row["shape"] == matrix.shape
    assert row["type"] == kind
    expected = np.linalg.svd(matrix.reshape(len(matrix), -1).astype(np.float64), compute_uv=False)
    assert row["singular_values"] == pytest.approx(expected[:5].tolist(), rel=1e-6)


def test_products_convolutions_and_tables(tmp_path):
    tensors = {
        "x_w": random(6, 4),
        "w_x": random(6, 4),
        "gemm": random(6, 4),
        "gemm_t": random(6, 4),
        "turned": random(6, 4),
        "table": random(9, 4),
        "kernel": random(6, 2, 3, 3),
        "up": random(6, 2, 3, 3),
        "plain_up": random(6, 4, 3),
        "shape": np.array([[1, 2]]),
        "summand": random(1, 6),
        "factor": random(6, 1, 1),
        "positions": random(5, 6),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "x_w"], ["a"]),
        helper.make_node("MatMul", ["w_x", "x"], ["b"]),
        helper.make_node("Gemm", ["x", "gemm"], ["c"]),
        helper.make_node("Gemm", ["x", "gemm_t"], ["d"], transB=1),
        helper.make_node("Transpose", ["turned"], ["turned_t"], perm=[1, 0]),
        helper.make_node("Identity", ["turned_t"], ["same"]),
        helper.make_node("MatMul", ["x", "same"], ["e"]),
        helper.make_node("Gather", ["table", "ids"], ["f"]),
        helper.make_node("Conv", ["x", "kernel"], ["g"], group=2),
        helper.make_node("ConvTranspose", ["x", "up"], ["h"], group=3),
        helper.make_node("ConvTranspose", ["x", "plain_up"], ["i"]),
        helper.make_node("Add", ["a", "summand"], ["j"]),
        helper.make_node("Mul", ["j", "factor"], ["k"]),
        helper.make_node("Add", ["positions", "k"], ["l"]),
    ]
    found = rows(tmp_path, nodes, tensors)
    for name, matrix in {
        "x_w": tensors["x_w"].T,
        "w_x": tensors["w_x"],
        "gemm": tensors["gemm"].T,
        "gemm_t": tensors["gemm_t"],
        "turned": tensors["turned"],
    }.items():
        assert_is(found[name], matrix, "linear")
    assert_is(found["table"], tensors["table"], "embedding")
    assert_is(found["kernel"], tensors["kernel"], "conv2d")
    up = tensors["up"].reshape(3, 2, 2, 3, 3).transpose(0, 2, 1, 3, 4).reshape(6, 2, 3, 3)
    assert_is(found["up"], up, "conv2d")
    assert found["up"]["numerical_rank"] == 6
    assert_is(found["plain_up"], tensors["plain_up"].transpose(1, 0, 2), "conv1d")
    assert "int64" in found["shape"]["reason"]
    assert_is(found["positions"], tensors["positions"], "parameter")
    assert "a vector" in found["summand"]["reason"]
    assert "a vector" in found["factor"]["reason"]


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_gates_of_recurrent_nodes(operator, directions, tmp_path):
    gates = {"LSTM": ["input", "output", "forget", "cell"], "GRU": ["update", "reset", "new"], "RNN": [""]}[operator]
    size = len(gates)
    tensors = {
        "W": random(directions, size * 5, 4),
        "R": random(directions, size * 5, 5),
        "B": random(directions, size * 10),
        "h": random(directions, 1, 5),
    }
    nodes = [helper.make_node(operator, ["x", "W", "R", "B", "", "h"], ["y"], hidden_size=5, direction="bidirectional")]
    found = rows(tmp_path, nodes, tensors)
    sides = [""] if directions == 1 else ["[forward]", "[reverse]"]
    names = {
        f"{name}{side}{f'[{gate}]' if gate else ''}": tensors[name][k, place * 5 : place * 5 + 5]
        for name in "WR"
        for k, side in enumerate(sides)
        for place, gate in enumerate(gates)
    }
    assert {name for name, row in found.items() if row["reason"] is None} == set(names)
    for name, matrix in names.items():
        assert_is(found[name], matrix, "recurrent")
    assert "vectors" in found["B"]["reason"]
    assert "vectors" in found["h"]["reason"]


def test_codes_that_a_node_dequantises(tmp_path):
    codes, scale, zero = RANDOM.integers(-128, 127, (6, 4)), np.abs(random(6)), RANDOM.integers(-9, 9, 6)
    tensors = {
        "rowwise": codes.astype(np.int8),
        "scale": scale,
        "zero": zero.astype(np.int8),
        "whole": (codes + 128).astype(np.uint8),
        "one": np.array(0.3, np.float32),
        "packed": RANDOM.integers(0, 255, (6, 2, 8)).astype(np.uint8),
        "scales": np.abs(random(6, 2)),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["rowwise", "scale", "zero"], ["r"], axis=0),
        helper.make_node("Gemm", ["x", "r"], ["a"], transB=1),
        helper.make_node("DequantizeLinear", ["whole", "one"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["b"]),
        helper.make_node("MatMulNBits", ["x", "packed", "scales"], ["c"], domain="com.microsoft", K=32, N=6, bits=4),
    ]
    found = rows(tmp_path, nodes, tensors)
    assert_is(found["rowwise"], ((codes - zero[:, None]) * scale[:, None]).astype(np.float32), "linear")
    assert_is(found["whole"], ((codes + 128) * np.float32(0.3)).T.astype(np.float32), "linear")
    assert found["rowwise"]["note"] == "dequantised: int8"
    assert "MatMulNBits" in found["scales"]["reason"]
    assert "uint8" in found["packed"]["reason"]
