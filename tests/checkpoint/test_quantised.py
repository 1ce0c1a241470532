"""Quantised weights are what their codes and scales stand for, or have a reason: scales and codes are no layers."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import equipoise as eq


def rows(source, **options):
    return {row["name"]: row for row in eq.analyze(source, heavy_tail=False, **options).to_dict("records")}


def values(matrix):
    return torch.linalg.svdvals(matrix.double())[:5].tolist()


def folder(path, tensors, **quantization):
    path.mkdir(exist_ok=True)
    save_file({name: its.contiguous() for name, its in tensors.items()}, path / "model.safetensors")
    if quantization:
        (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return path


def assert_is(source, weight, name="l.weight", note=""):
    """One row for the weight, and nothing else that is measured."""
    found = rows(source)
    measured = {key for key, row in found.items() if row["reason"] is None}
    assert measured == {name}
    assert found[name]["shape"] == tuple(weight.shape)
    assert found[name]["singular_values"] == pytest.approx(values(weight), rel=1e-6)
    assert note in found[name]["note"]
    return found


def assert_refused(source, words, name="l.weight"):
    found = rows(source)
    assert [row["name"] for row in found.values() if row["reason"] is None] == []
    assert words in found[name]["reason"]


def spread(scale, block, shape):
    """Each scale for its block, one by one."""
    return torch.tensor(
        [[float(scale[i // block[0], j // block[1]]) for j in range(shape[1])] for i in range(shape[0])]
    )


E4M3 = torch.float8_e4m3fn


def fp8(*shape):
    return (torch.randn(shape) * 40).to(E4M3)


def test_eight_bits_with_scales_for_tensor_rows_and_blocks(tmp_path):
    q = fp8(24, 20)
    one, rowwise = torch.tensor(0.37), torch.rand(24) * torch.logspace(-2, 2, 24)
    for scale, weight in (
        ({"l.weight_scale": one}, q.float() * one),
        ({"l.weight_scale": one[None], "l.input_scale": 2 * one}, q.float() * one),
        ({"l.weight_scale": rowwise}, q.float() * rowwise[:, None]),
        ({"l.weight_scale": rowwise[:, None].bfloat16()}, q.float() * rowwise[:, None].bfloat16().float()),
        ({"l.scale_weight": one, "scaled_fp8": torch.zeros(2).to(E4M3)}, q.float() * one),
        ({"l.weight_scale": one, "l.weight_scale_2": 2 * one}, q.float() * one * 2 * one),
    ):
        assert_is(folder(tmp_path / "a", {"l.weight": q} | scale), weight, note="dequantised: float8_e4m3fn")
    codes = torch.randint(-128, 128, (24, 20), dtype=torch.int8)
    zero = torch.randint(-9, 9, (24, 1), dtype=torch.int8)
    tensors = {"l.weight": codes, "l.weight_scale": rowwise[:, None], "l.weight_zero_point": zero}
    assert_is(folder(tmp_path / "b", tensors), (codes.float() - zero) * rowwise[:, None])
    q, scale = fp8(200, 300), torch.rand(2, 3) + torch.tensor([[0.0, 9, 99]])
    tensors = {"l.weight": q, "l.weight_scale_inv": scale}
    assert_is(folder(tmp_path / "c", tensors), q.float() * spread(scale, (128, 128), q.shape))
    said = folder(tmp_path / "d", tensors, quant_method="fp8", weight_block_size=[100, 100])
    assert_is(said, q.float() * spread(scale, (100, 100), q.shape))
    q, scale = fp8(8, 12), torch.rand(2, 3)
    assert_is(
        folder(tmp_path / "e", {"l.weight": q, "l.weight_scale_inv": scale}), q.float() * spread(scale, (4, 4), q.shape)
    )
    assert_is({"weight": q, "weight_scale_inv": scale}, q.float() * spread(scale, (4, 4), q.shape), "weight")
    one = torch.tensor(0.5)
    tied = rows({"a.weight": fp8(3, 4), "a.weight_scale": one, "b.weight": fp8(3, 4), "b.weight_scale": one})
    assert set(tied) == {"a.weight", "b.weight"}
    assert all(row["note"].startswith("dequantised") for row in tied.values())
    for lost in (torch.rand(3), torch.rand(2, 5), torch.rand(1, 2, 3)):
        assert_refused({"l.weight": q, "l.weight_scale": lost}, "scales")
    assert_refused(
        {"l.weight": fp8(6, 9), "l.weight_scale": torch.rand(2, 3)}, "of a width that config.json does not say"
    )
    assert_is({"l.weight": q}, q.float())  # without a scale it is what it says


def test_stacked_experts_in_eight_bits():
    q, scale = fp8(3, 8, 4), torch.rand(3, 2, 1)
    found = rows({"experts.up_proj": q, "experts.up_proj_scale_inv": scale})
    assert set(found) == {f"experts.up_proj[{k}]" for k in range(3)}
    for k in range(3):
        weight = q[k].float() * spread(scale[k], (4, 4), (8, 4))
        assert found[f"experts.up_proj[{k}]"]["singular_values"] == pytest.approx(values(weight), rel=1e-6)


def words(codes, bits):
    """int32 along the rows of a matrix, code by code from the lowest bit on."""
    packed = []
    for row in codes.tolist():
        whole = sum(code << (bits * place) for place, code in enumerate(row))
        packed.append([(whole >> (32 * k)) & 0xFFFFFFFF for k in range(math.ceil(len(row) * bits / 32))])
    return torch.tensor(packed, dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits, tmp_path):
    inputs, out, groups = 64, 32, 4
    q, z = torch.randint(2**bits, (inputs, out)), torch.randint(1, 2**bits, (groups, out))
    s, index = torch.rand(groups, out).half(), torch.arange(inputs, dtype=torch.int32) // 16
    shuffled = index[torch.randperm(inputs)]
    for order in (index, shuffled):
        weight = torch.stack([s[order[i]].float() * (q[i] - z[order[i]]) for i in range(inputs)], 1)
        tensors = {"l.qweight": words(q.T, bits).T, "l.scales": s, "l.g_idx": order, "l.bias": torch.zeros(out)}
        first = folder(tmp_path / "1", tensors | {"l.qzeros": words(z - 1, bits)}, quant_method="gptq", bits=bits)
        assert_is(first, weight, note=f"GPTQ, {bits} bits")
        later = tensors | {"l.qzeros": words(z, bits)}
        assert_is(folder(tmp_path / "2", later, quant_method="gptq", checkpoint_format="gptq_v2"), weight)
    assert_refused(later, "config.json is missing")
    symmetric = torch.full((groups, out), 2 ** (bits - 1))
    tensors = {"qweight": words(q.T, bits).T, "scales": s, "qzeros": words(symmetric - 1, bits)}
    assert_is(tensors, (s[index].float() * (q - symmetric[index])).T, "weight")
    assert_refused({name: its for name, its in later.items() if "qzeros" not in name}, "without zero points")
    assert_refused(later | {"l.qzeros": later["l.qzeros"][:2]}, "GPTQ zero points of shape")


def test_awq(tmp_path):
    inputs, out, groups = 16, 24, 2
    q, z, s = torch.randint(16, (inputs, out)), torch.randint(16, (groups, out)), torch.rand(groups, out).half()

    def packed(codes):  # as AutoAWQ's WQLinear_GEMM.from_linear
        found = torch.zeros(len(codes), out // 8, dtype=torch.int64)
        for column in range(out // 8):
            for place, moved in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                found[:, column] |= codes[:, column * 8 + moved] << (4 * place)
        return found.to(torch.int32)

    weight = torch.stack([s[i // 8].float() * (q[i] - z[i // 8]) for i in range(inputs)], 1)
    tensors = {"l.qweight": packed(q), "l.qzeros": packed(z), "l.scales": s}
    assert_is(folder(tmp_path / "a", tensors, quant_method="awq", version="gemm"), weight, note="AWQ, 4 bits")
    assert_is(tensors, weight)
    assert_refused(folder(tmp_path / "b", tensors, quant_method="awq", version="gemv"), "only gemm is read")


def test_compressed_tensors(tmp_path):
    for bits, out, inputs, groups in ((4, 6, 40, 5), (8, 6, 20, 1), (3, 32, 64, 2)):
        half, width = 2 ** (bits - 1), inputs // groups
        q, z = torch.randint(-half, half, (out, inputs)), torch.randint(-half, half, (out, groups))
        s = torch.rand(out, groups).bfloat16()
        tensors = {
            "l.weight_packed": words(q + half, bits),
            "l.weight_scale": s,
            "l.weight_shape": torch.tensor([out, inputs]),
        }
        config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": bits}}}}
        scale, zero = spread(s, (1, width), q.shape), spread(z, (1, width), q.shape)
        assert_is(folder(tmp_path / "a", tensors, **config), scale * q, note=f"compressed-tensors, {bits} bits")
        packed = tensors | {"l.weight_zero_point": words(z.T + half, bits).T}
        assert_is(folder(tmp_path / "b", packed, **config), scale * (q - zero))
        order = torch.arange(inputs, dtype=torch.int32).flip(0) // width
        shuffled = s.float()[:, order.long()] * q
        assert_is(folder(tmp_path / "c", tensors | {"l.weight_g_idx": order}, **config), shuffled)
    assert_refused({name: its for name, its in tensors.items() if "shape" not in name}, "without their shape")


FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def halves(codes, low_first=True):
    first, second = codes[..., 0::2], codes[..., 1::2]
    return (first | second << 4 if low_first else first << 4 | second).to(torch.uint8)


def test_four_bit_floats_of_microscaling_and_nvidia():
    codes = torch.randint(16, (3, 8, 64))
    exponents = torch.randint(120, 131, (3, 8, 2), dtype=torch.uint8)
    tensors = {"experts.up_blocks": halves(codes).reshape(3, 8, 2, 16), "experts.up_scales": exponents}
    found = rows(tensors)
    assert set(found) == {f"experts.up[{k}]" for k in range(3)}
    numbers = torch.tensor(FP4)[codes]
    for k in range(3):
        weight = numbers[k] * spread(2.0 ** (exponents[k].float() - 127), (1, 32), (8, 64))
        assert found[f"experts.up[{k}]"]["singular_values"] == pytest.approx(values(weight), rel=1e-6)
    scale, whole = (torch.rand(8, 4) * 50).to(E4M3), torch.tensor([0.013])
    weight = numbers[0] * spread(scale, (1, 16), (8, 64))
    entry = {"l.weight": halves(codes[0]), "l.weight_scale": scale, "l.weight_scale_2": whole}
    assert_is(entry, weight * whole, note="NVFP4")
    entry = {"l.weight_packed": halves(codes[0]), "l.weight_scale": scale, "l.weight_global_scale": whole}
    assert_is(entry, weight / whole, note="NVFP4")
    assert_refused({"l.weight": halves(codes[0]), "l.weight_scale": scale}, "codes of four bits")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_in_four_bits(kind, nested):
    out, inputs, block, outer = 7, 90, 64, 4
    codes = torch.randint(16, (out * inputs,))
    table, count = torch.sort(torch.randn(16))[0], math.ceil(out * inputs / block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [out, inputs]}
    absmax = torch.rand(count)
    extra = {"absmax": absmax}
    if nested:
        inner, outside, offset = torch.randint(256, (count,)), torch.rand(math.ceil(count / outer)), 0.07
        dynamic = torch.sort(torch.randn(256))[0]
        absmax = torch.tensor([dynamic[inner[k]] * outside[k // outer] + offset for k in range(count)])
        extra = {"absmax": inner.to(torch.uint8), "nested_absmax": outside, "nested_quant_map": dynamic}
        state |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": offset}
    extra |= {"quant_map": table}
    blob = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors = {"l.weight": halves(codes, low_first=False)[:, None], f"l.weight.quant_state.bitsandbytes__{kind}": blob}
    tensors |= {f"l.weight.{name}": its for name, its in extra.items()}
    weight = torch.tensor([table[c] * absmax[k // block] for k, c in enumerate(codes)]).reshape(out, inputs)
    assert_is(tensors, weight, note=f"bitsandbytes {kind}")
    lost = {name: its for name, its in tensors.items() if "quant_state" not in name}
    assert_refused(lost, "without their quant_state")
    damaged = tensors | {f"l.weight.quant_state.bitsandbytes__{kind}": blob[:-3]}
    assert_refused(damaged, "damaged quant_state")


def test_bitsandbytes_in_eight_bits():
    codes, rowwise = torch.randint(-127, 128, (9, 6), dtype=torch.int8), torch.rand(9)
    tensors = {"l.weight": codes, "l.SCB": rowwise, "l.weight_format": torch.tensor(0, dtype=torch.uint8)}
    assert_is(tensors, codes.float() * rowwise[:, None] / 127, note="bitsandbytes int8")
    assert_refused(tensors | {"l.weight_format": torch.tensor(1, dtype=torch.uint8)}, "a layout of the GPU")


def test_optimum_quanto():
    codes, scale = torch.randint(-128, 128, (6, 4), dtype=torch.int8), torch.rand(6, 1)
    tensors = {"l.weight._data": codes, "l.weight._scale": scale, "l.input_scale": torch.tensor(1.0)}
    assert_is(tensors, codes.float() * scale)
    packed = {"l.weight._data": codes.byte(), "l.weight._scale": torch.rand(6, 2), "l.weight._shift": torch.rand(6, 2)}
    assert_refused(packed, "optimum-quanto")


UNREAD = {
    "Marlin": {"B": torch.ones(4, 4).int(), "s": torch.rand(2, 4), "workspace": torch.ones(3).int()},
    "HQQ": {"W_q": torch.ones(4, 4).byte(), "scale": torch.rand(4, 1), "zero": torch.rand(4, 1)},
    "AQLM": {
        "codes": torch.ones(4, 4, 1).char(),
        "codebooks": torch.rand(1, 8, 1, 8),
        "scales": torch.rand(4, 1, 1, 1),
    },
    "EXL2": {"q_weight": torch.ones(4, 4).int(), "q_scale": torch.ones(1, 1).int(), "scales": torch.rand(2, 3)},
}


@pytest.mark.parametrize("method", UNREAD)
def test_methods_that_are_not_read_are_named_and_their_scales_are_no_layers(method, tmp_path):
    tensors = {f"l.{name}": its for name, its in UNREAD[method].items()}
    for source in (tensors, folder(tmp_path, tensors, quant_method=method.lower())):
        found = rows(source)
        assert set(found) == set(tensors)
        assert all(row["reason"] for row in found.values())
        assert any(method.lower() in row["reason"].lower() for row in found.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_torch_quantises_itself():
    model = nn.ModuleDict({"fc": nn.Linear(6, 5), "lstm": nn.LSTM(6, 4), "cell": nn.GRUCell(6, 4)})
    kinds = {nn.Linear, nn.LSTM, nn.GRUCell}
    small = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
    found = rows(small)
    weight = small["fc"].weight().dequantize()
    assert found["fc.weight"]["singular_values"] == pytest.approx(values(weight), rel=1e-6)
    assert found["fc.weight"]["note"] == "dequantised: qint8"
    assert found["fc.bias"]["frobenius_norm"] == pytest.approx(float(model["fc"].bias.norm()))
    for layer, name, gate in (("lstm", "weight_hh_l0", "[cell]"), ("cell", "weight_ih", "[update]")):
        weight = small[layer].get_weight()[name].dequantize()
        part = weight[8:12] if layer == "lstm" else weight[4:8]
        assert found[f"{layer}.{name}{gate}"]["singular_values"] == pytest.approx(values(part), rel=1e-6)
    assert not any("packed" in name or "param" in name for name in found)
    state = rows(small.state_dict())
    assert state["fc.weight"]["singular_values"] == found["fc.weight"]["singular_values"]
    assert "pass the model" in state["lstm._all_weight_values.0.param"]["reason"]
    assert "pass the model" in state["cell._packed_weight_hh"]["reason"]
    channels = torch.quantize_per_channel(torch.randn(4, 6), torch.rand(4) / 9, torch.zeros(4), 0, torch.qint8)
    assert_is({"l.weight": channels}, channels.dequantize(), note="dequantised: qint8")
