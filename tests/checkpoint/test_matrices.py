"""Every tensor gets a row or a reason: how they are taken apart, named and turned."""

import json
import math

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import equipoise as eq
from equipoise.errors import InputError


def rows(table):
    return {row["name"]: row for row in table.to_dict("records")}


def measured(source, **options):
    table = eq.analyze(source, heavy_tail=False, **options)
    return {name: row for name, row in rows(table).items() if row["reason"] is None}


def stable_rank(matrix):
    values = torch.linalg.svdvals(matrix.detach().double())
    return float((values / values[0]).square().sum())


def assert_are(found, expected):
    """Names, shapes and stable ranks of what was measured."""
    assert set(found) == set(expected)
    for name, matrix in expected.items():
        assert found[name]["shape"] == tuple(matrix.shape), name
        assert found[name]["stable_rank"] == pytest.approx(stable_rank(matrix.flatten(1)), rel=1e-9), name


@pytest.mark.parametrize("projection", [0, 4])
def test_lstm_gates(projection):
    model = nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=projection)
    expected = {}
    for name, weight in model.named_parameters():
        if name.startswith("weight_hr"):
            expected[name] = weight
        elif name.startswith("weight"):
            gates = zip(("input", "forget", "cell", "output"), weight.split(7), strict=True)
            expected |= {f"{name}[{gate}]": part for gate, part in gates}
    assert_are(measured(model), expected)
    assert_are(measured(model.state_dict()), expected)
    assert {row["type"] for row in measured(model).values()} == {"recurrent"}


def test_gru_cell_and_rnn():
    gru, rnn = nn.GRUCell(5, 7), nn.RNN(5, 7)
    gates = ("reset", "update", "new")
    parts = {
        f"{name}[{gate}]": part
        for name in ("weight_ih", "weight_hh")
        for gate, part in zip(gates, getattr(gru, name).split(7), strict=True)
    }
    assert_are(measured(gru), parts)
    assert_are(measured(rnn), {"weight_ih_l0": rnn.weight_ih_l0, "weight_hh_l0": rnn.weight_hh_l0})
    assert_are(measured(gru, split=False), {"weight_ih": gru.weight_ih, "weight_hh": gru.weight_hh})


def test_attention_projections():
    model = nn.MultiheadAttention(8, 2)
    q, k, v = model.in_proj_weight.split(8)
    names = {f"in_proj_weight[{part}]": weight for part, weight in zip("qkv", (q, k, v), strict=True)}
    assert_are(measured(model), {**names, "out_proj.weight": model.out_proj.weight})
    found = measured(model, split=False, names="in_proj*")
    assert_are(found, {"in_proj_weight": model.in_proj_weight})


def test_gpt2_keeps_in_out_and_the_config_says_so(tmp_path):
    tensors = {
        "h.0.attn.c_attn.weight": torch.randn(6, 18),
        "h.0.attn.c_proj.weight": torch.randn(6, 6),
        "h.0.mlp.c_fc.weight": torch.randn(6, 24),
        "wte.weight": torch.randn(30, 6),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    q, k, v = tensors["h.0.attn.c_attn.weight"].T.split(6)
    expected = {f"h.0.attn.c_attn.weight[{part}]": its for part, its in zip("qkv", (q, k, v), strict=True)}
    expected["h.0.attn.c_proj.weight"] = tensors["h.0.attn.c_proj.weight"].T
    expected["h.0.mlp.c_fc.weight"] = tensors["h.0.mlp.c_fc.weight"].T
    expected["wte.weight"] = tensors["wte.weight"]
    found = measured(tmp_path)
    assert_are(found, expected)
    assert found["h.0.mlp.c_fc.weight"]["note"] == "stored as (in, out)"
    assert found["wte.weight"]["type"] == "embedding"
    (tmp_path / "config.json").unlink()
    found = measured(tmp_path)  # a fused c_attn tells its orientation by its shape, the others do not
    assert found["h.0.attn.c_attn.weight[v]"]["stable_rank"] == pytest.approx(stable_rank(v))
    assert found["h.0.mlp.c_fc.weight"]["shape"] == (6, 24)


def test_a_fused_c_attn_stored_as_out_in_is_split_by_rows():
    weight = torch.randn(18, 6)
    found = measured({"h.0.attn.c_attn.weight": weight})
    assert_are(found, {f"h.0.attn.c_attn.weight[{p}]": w for p, w in zip("qkv", weight.split(6), strict=True)})


def test_transformers_conv1d_module_is_recognised():
    class Conv1D(nn.Module):  # as transformers.pytorch_utils has it
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 10))

    model = nn.ModuleDict({"c_fc": Conv1D()})
    assert_are(measured(model), {"c_fc.weight": model["c_fc"].weight.T})


def test_convolutions():
    model = nn.ModuleDict(
        {
            "one": nn.Conv1d(3, 5, 4),
            "two": nn.Conv2d(4, 6, 3, groups=2),
            "three": nn.Conv3d(2, 3, 2),
            "up": nn.ConvTranspose2d(4, 6, 3),
        }
    )
    weights = {f"{name}.weight": layer.weight for name, layer in model.items()}
    weights["up.weight"] = model["up"].weight.transpose(0, 1)
    found = measured(model)
    assert_are(found, weights)
    assert [found[name]["type"] for name in weights] == ["conv1d", "conv2d", "conv3d", "conv2d"]


def transposed(weight, groups):
    """(out, in / groups, *taps) of a transposed convolution, one group after the other."""
    return torch.cat([part.transpose(0, 1) for part in weight.chunk(groups)])


def test_grouped_and_transposed_convolutions():
    model = nn.ModuleDict(
        {
            "grouped": nn.ConvTranspose2d(6, 6, 3, groups=3),
            "wide": nn.ConvTranspose1d(4, 8, 3, groups=2),
            "deep": nn.ConvTranspose3d(3, 2, 2),
            "depthwise": nn.Conv2d(4, 8, 3, groups=4),
        }
    )
    weights = {f"{name}.weight": layer.weight for name, layer in model.items()}
    for name in ("grouped", "wide", "deep"):
        weights[f"{name}.weight"] = transposed(model[name].weight, model[name].groups)
    found = measured(model)
    assert_are(found, weights)
    assert found["grouped.weight"]["shape"] == (6, 2, 3, 3)
    assert found["grouped.weight"]["numerical_rank"] == 6
    assert [found[name]["type"] for name in weights] == ["conv2d", "conv1d", "conv3d", "conv2d"]
    # its output is that of the matrix on patches: the sum over a patch of ones is the sum over inputs and taps
    layer = model["grouped"]
    inside = layer(torch.ones(1, 6, 9, 9))[0, :, 4, 4] - layer.bias
    assert torch.allclose(weights["grouped.weight"].sum((1, 2, 3)), inside, atol=1e-5)


def test_thousands_of_tiny_experts_are_one_row():
    """A file of few kilobytes would take minutes and gigabytes otherwise; larger ones and fewer have a row each."""
    (row,) = measured({"experts.w": torch.randn(20_000, 1, 1)}).values()
    assert row["note"] == "unfolded after its first dimension"
    assert row["frobenius_norm"] > 0
    both = {"experts.w": torch.randn(5000, 2, 2), "experts.v": torch.randn(3, 8, 8)}
    assert set(measured(both)) == {"experts.w", *(f"experts.v[{place}]" for place in range(3))}
    assert set(measured({"experts.w": torch.randn(3, 2, 2)})) == {f"experts.w[{place}]" for place in range(3)}


def test_bilinear_forms_are_matrices_and_no_kernels():
    layer = nn.Bilinear(4, 3, 2)
    assert_are(measured(layer), {f"weight[{k}]": layer.weight[k] for k in range(2)})
    assert {row["type"] for row in measured(layer).values()} == {"bilinear"}
    assert measured(layer, split=False)["weight"]["shape"] == (2, 4, 3)


class Mixture(nn.Module):
    def __init__(self, count=3, **attributes):
        super().__init__()
        self.num_experts = count
        self.w_in, self.w_out = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(3, 4, 8))
        self.bias = nn.Parameter(torch.randn(3, 8))
        self.router = nn.Linear(4, 3)
        for name, value in attributes.items():
            setattr(self, name, value)


def each(name, stack):
    return {f"{name}[{k}]": matrix for k, matrix in enumerate(stack)}


def test_stacked_experts_whatever_their_name(tmp_path):
    model = nn.ModuleDict({"mixer": Mixture()})
    mixer = model["mixer"]
    expected = each("mixer.w_in", mixer.w_in) | each("mixer.w_out", mixer.w_out)
    expected |= {"mixer.router.weight": mixer.router.weight}
    found = measured(model)
    assert_are(found, expected)
    assert found["mixer.w_in[1]"]["type"] == "expert"
    assert "biases of stacked experts" in rows(eq.analyze(model))["mixer.bias"]["reason"]
    turned = Mixture(is_transposed=True)
    assert_are(measured(turned, names="w_in*"), each("w_in", turned.w_in.transpose(1, 2)))

    class ParallelExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3, 4))

    parallel = ParallelExperts()
    assert_are(measured(parallel), each("weight", parallel.weight))
    state = {key: value.detach() for key, value in model.state_dict().items()} | {"conv.weight": torch.randn(3, 2, 2)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_local_experts": 3}}))
    assert_are(measured(tmp_path), expected | {"conv.weight": state["conv.weight"]})
    (tmp_path / "config.json").unlink()
    assert measured(tmp_path)["mixer.w_in"]["shape"] == (3, 8, 4)  # nothing says that they are experts


def test_a_model_of_transformers_tells_its_configuration():
    class Config:  # of the library: some keys are numbers, some values of any kind
        def to_dict(self):
            return {"model_type": ["x"], "id2label": {0: "a", 1: "b"}, 3: 4, "text_config": {"moe_num_experts": 5}}

    model = nn.ModuleDict({"mixer": nn.ParameterDict({"w": torch.randn(5, 4, 3)})})
    assert measured(model)["mixer.w"]["shape"] == (5, 4, 3)
    model.config = Config()
    assert_are(measured(model), each("mixer.w", model["mixer"]["w"]))


def test_moments_masks_and_fixed_transforms_are_no_weights():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for optimizers in ({"optimizer": state}, {"optimizer_states": [state]}, {"mine": state}, {"opt": state["state"]}):
        found = rows(eq.analyze({"model": model.state_dict(), **optimizers}))
        assert [name for name, row in found.items() if row["reason"] is None] == ["model.weight"]
        moments = [row["reason"] for name, row in found.items() if name.endswith("exp_avg")]
        assert "a moment that an optimizer keeps, not a weight" in moments
    kept = {
        "_model.stft.forward_basis_buffer": torch.randn(6, 1, 8),
        "spectrogram_extractor.stft.conv_real.weight": torch.randn(6, 1, 8),
        "logmel_extractor.melW": torch.randn(8, 4),
        "features.mel_scale.fb": torch.rand(8, 4),
        "h.0.attn.masked_bias": torch.ones(1, 1, 4, 4),
    }
    weights = {"encoder.fb_proj.weight": torch.randn(3, 4), "optimizer_net.weight": torch.randn(3, 4)}
    found = rows(eq.analyze(kept | weights))
    assert {name for name, row in found.items() if row["reason"] is None} == set(weights)
    assert "a fixed transform" in found["logmel_extractor.melW"]["reason"]

    class Learned(nn.Module):  # a parameter is a weight, whatever it is called
        def __init__(self):
            super().__init__()
            self.stft = nn.Conv1d(1, 6, 8)

    assert "stft.weight" in measured(Learned())


def test_nothing_that_holds_numbers_is_left_out():
    matrix = np.random.default_rng(0).standard_normal((3, 4))
    state = {
        "array": matrix,
        "swapped": matrix.astype(">f4"),
        "half": matrix.astype(ml_dtypes.bfloat16),
        "strided": matrix[::-1],
        "nested": {"inner": [matrix.astype(np.float16)]},
        "whole": np.ones((2, 2), int),
        "text": np.array(["a", "b"]),
        "objects": np.array([None, "b"]),
        "layer": nn.Linear(4, 3),
        "epoch": 3,
        "name": "x",
        "nothing": None,
        "rate": np.float64(0.1),
    }
    found = rows(eq.analyze(state))
    assert set(found) == {
        *("array", "swapped", "half", "strided", "nested.inner.0", "whole", "text", "objects"),
        *("layer.weight", "layer.bias"),
    }
    for name in ("array", "swapped", "strided"):
        assert found[name]["stable_rank"] == pytest.approx(stable_rank(torch.from_numpy(matrix.copy())), rel=1e-6)
    assert found["half"]["dtype"] == "bfloat16"
    assert found["nested.inner.0"]["dtype"] == "float16"
    assert "int64" in found["whole"]["reason"]
    assert found["text"]["reason"] == "a numpy array of <U1"
    assert found["objects"]["reason"] == "a numpy array of object"


def test_raw_parameters_single_outputs_embeddings_and_experts():
    state = {
        "weights": torch.randn(6, 4),
        "head.weight": torch.randn(1, 64),
        "pos_embed": torch.randn(1, 9, 5),
        "cls_token": torch.randn(1, 1, 5),
        "tok_embeddings.weight": torch.randn(11, 5),
        "mlp.experts.down_proj": torch.randn(3, 4, 5),
        "mixer": torch.randn(3, 4, 5),
    }
    expected = state | {"pos_embed": state["pos_embed"][0], "cls_token": state["cls_token"][0]}
    experts = expected.pop("mlp.experts.down_proj")
    expected |= {f"mlp.experts.down_proj[{k}]": experts[k] for k in range(3)}
    found = measured(state)
    assert_are(found, expected)
    kinds = {name: row["type"] for name, row in found.items()}
    assert kinds["weights"] == kinds["mixer"] == "parameter"
    assert kinds["head.weight"] == "linear"
    assert kinds["pos_embed"] == kinds["tok_embeddings.weight"] == "embedding"
    assert kinds["mlp.experts.down_proj[2]"] == "expert"
    assert found["head.weight"]["numerical_rank"] == 1


def test_half_precision_is_measured_from_its_exact_values():
    weight = torch.randn(30, 20)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        found = measured({"w": weight.to(dtype)})["w"]
        assert found["dtype"] == str(dtype).removeprefix("torch.")
        assert found["stable_rank"] == pytest.approx(stable_rank(weight.to(dtype).float()), rel=1e-9)


def test_what_has_no_spectrum_says_why():
    bad = torch.randn(4, 4)
    bad[1, 2] = math.nan
    spoilt = torch.ones(3)
    spoilt[0] = math.inf
    state = {
        "good": torch.randn(4, 4),
        "nan": bad,
        "bias": torch.tensor([3.0, 4.0]),
        "spoilt": spoilt,
        "scalar": torch.tensor(2.0),
        "steps": torch.tensor([[1, 2]]),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
        "empty": torch.ones(0, 3),
        "six": torch.ones(1, 1, 1, 1, 2, 2),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, 2, device="meta"),
        "wide": torch.ones(1).expand(3, 4),
    }
    found = rows(eq.analyze(state))
    assert set(found) == set(state)
    assert found["good"]["reason"] is None
    words = {
        "nan": "1 of 16 entries are NaN or infinite",
        "bias": "a vector",
        "spoilt": "a vector: a spectrum needs two dimensions; NaN or infinite entries",
        "scalar": "a single number",
        "steps": "int64",
        "mask": "bool",
        "complex": "complex",
        "empty": "empty",
        "six": "6 dimensions",
        "sparse": "sparse_coo",
        "meta": "meta device",
        "wide": "more numbers than it stores",
    }
    for name, said in words.items():
        assert said in found[name]["reason"], name
        assert pd.isna(found[name]["stable_rank"])
    assert found["bias"]["frobenius_norm"] == 5.0


def test_tied_weights_have_one_row_with_all_names():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    table = eq.analyze(model)
    assert table[["name", "aliases"]].to_numpy().tolist() == [["embed.weight", ["head.weight"]]]
    assert eq.analyze(model, names="head*")["name"].tolist() == ["embed.weight"]
    twins = eq.analyze({"a": torch.eye(3), "b": torch.eye(3)})
    assert twins["name"].tolist() == ["a", "b"]  # equal, not tied


def test_lazy_and_compiled_and_parallel_models():
    lazy = nn.Sequential(nn.LazyLinear(3))
    assert "lazy" in rows(eq.analyze(lazy))["0.weight"]["reason"]
    compiled = torch.compile(nn.Sequential(nn.Linear(3, 2)))
    assert set(rows(eq.analyze(compiled))) == {"0.weight", "0.bias"}
    assert set(rows(eq.analyze({"module.w": torch.eye(2)}))) == {"w"}
    assert set(rows(eq.analyze({"module.w": torch.eye(2), "w": torch.eye(2)}))) == {"module.w", "w"}


def test_filters():
    state = {
        "h.0.attn.weight": torch.eye(3),
        "h.0.mlp.weight": torch.eye(3),
        "wte.weight": torch.eye(3),
        "b": torch.ones(3),
    }

    def left(**options):
        return eq.analyze(state, **options)["name"].tolist()

    assert left(names="*.mlp.*") == ["h.0.mlp.weight"]
    assert left(names=["wte*", "re:attn|mlp"]) == ["h.0.attn.weight", "h.0.mlp.weight", "wte.weight"]
    assert left(types="linear", names="h.*") == ["h.0.attn.weight", "h.0.mlp.weight"]
    assert left(types=["embedding", "other"]) == ["wte.weight", "b"]
    for wrong, words in (
        ({"names": "re:("}, "a regular expression"),
        ({"names": "nothing"}, "filters that keep something"),
        ({"types": "convolution"}, "types among"),
    ):
        with pytest.raises(InputError, match=words):
            eq.analyze(state, **wrong)


def test_names_that_the_table_prints_are_accepted():
    state = {
        "a.in_proj_weight": torch.randn(12, 4),
        "a.in_proj_weightq": torch.eye(4),
        "experts.w": torch.randn(3, 4, 4),
        "h0.w": torch.eye(3),
        "h1.w": torch.eye(3),
        "h2.w": torch.eye(3),
    }
    table = eq.analyze(state)
    for name in table["name"]:
        assert eq.analyze(state, names=name)["name"].tolist() == [name]
    assert eq.analyze(state, names=table["name"].tolist())["name"].tolist() == table["name"].tolist()
    assert eq.analyze(state, names="*.in_proj_weight[q]")["name"].tolist() == ["a.in_proj_weight[q]"]
    assert eq.analyze(state, names="experts.w[*]")["name"].tolist() == [f"experts.w[{k}]" for k in range(3)]
    assert eq.analyze(state, names="h[0-1].w")["name"].tolist() == ["h0.w", "h1.w"]  # still a choice
    tied = nn.ModuleDict({"a": nn.LSTMCell(3, 4), "b": nn.LSTMCell(3, 4)})
    tied["b"].weight_hh = tied["a"].weight_hh
    assert eq.analyze(tied, names="b.weight_hh[cell]")["name"].tolist() == ["a.weight_hh[cell]"]


def test_alignment_along_a_chain_a_sequential_and_a_graph():
    u = torch.nn.functional.normalize(torch.randn(6), dim=0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(u, torch.randn(4)))
        model[3].weight.copy_(torch.outer(torch.randn(3), u))
    found = rows(eq.analyze(model))
    assert found["0.weight"]["next"] == "3.weight"
    assert found["0.weight"]["alignment_next"] == pytest.approx(1.0, abs=1e-6)
    assert found["0.weight"]["null_alignment_next"] == pytest.approx(0.35, abs=0.05)
    assert found["3.weight"]["next"] == "4.weight"
    assert found["4.weight"]["next"] is None

    told = rows(eq.analyze(model.state_dict(), chain=["0.weight", "3.weight"]))
    assert told["0.weight"]["alignment_next"] == pytest.approx(1.0, abs=1e-6)
    assert told["3.weight"]["next"] is None
    with pytest.raises(InputError, match="names of matrices, lower layer first"):
        eq.analyze(model.state_dict(), chain=["0.weight", "0.bias"])

    class Net(nn.Module):  # no Sequential: only the graph knows
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Linear(6, 3), nn.Linear(4, 6)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    graph = rows(eq.analyze(Net(), example_inputs=torch.ones(2, 4)))
    assert graph["a.weight"]["next"] == "b.weight"
    assert rows(eq.analyze(Net()))["a.weight"]["next"] is None


def test_side_by_side():
    first = {"a": torch.randn(5, 4), "gone": torch.randn(3, 3), "resized": torch.randn(3, 3)}
    second = {"a": first["a"] * 1.5, "new": torch.randn(3, 3), "resized": torch.randn(4, 3)}
    table = eq.analyze(first, second)
    assert table["name"].tolist() == ["a", "gone", "resized", "new"]
    found = rows(table)
    assert found["a"]["distance"] == pytest.approx(0.5, rel=1e-6)
    assert found["a"]["stable_rank_a"] == pytest.approx(found["a"]["stable_rank_b"], rel=1e-6)
    assert found["a"]["spectral_norm_b"] == pytest.approx(1.5 * found["a"]["spectral_norm_a"], rel=1e-6)
    assert found["gone"]["reason_b"] == found["new"]["reason_a"] == "it is not in this checkpoint"
    assert math.isnan(found["resized"]["distance"])


def test_the_callback_hears_every_tensor_and_the_end():
    heard = []
    eq.analyze({"a": torch.eye(3), "b": torch.ones(4)}, callback=lambda *said: heard.append(said))
    assert heard == [("b", 4, 13), ("a", 13, 13)]  # what takes least memory comes first


def test_what_is_no_checkpoint_is_refused():
    for wrong in (3, None, torch.ones(2), [torch.ones(2)]):
        with pytest.raises(InputError, match="a model, a state dict or the path"):
            eq.analyze(wrong)
    with pytest.raises(InputError, match="a checkpoint with tensors; found none in state dict"):
        eq.analyze({})
