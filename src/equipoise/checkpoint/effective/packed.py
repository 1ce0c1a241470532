"""Weights of two to eight bits in packed codes: GPTQ, AWQ, bitsandbytes, compressed-tensors, MXFP4, NVFP4."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from equipoise.checkpoint.effective.codes import fp4, power_of_two, unpack
from equipoise.checkpoint.effective.tensor_index import AssembledTensor, TensorIndex, put_together, refused
from equipoise.checkpoint.tensor_entry import Json, TensorEntry
from equipoise.errors import one_line

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each half byte
_GPTQ_BITS = (2, 3, 4, 8)
_WITH_CODES = (
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
)
Reading = tuple[tuple[int, ...], tuple[TensorEntry, ...], Callable[..., Tensor], str]  # shape, parts, how, note


class Unfit(Exception):
    """Why codes and scales do not go together."""


def packed(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """The weights that each format's names and shapes give."""
    for last, read in (("qweight", _by_groups), ("weight_packed", _compressed)):
        for stem, codes in parts.ending(last):
            if stem == "" or stem.endswith("."):
                others = [parts.get(f"{stem}{name}") for name in _WITH_CODES]
                yield from put_or_refused(f"{stem}weight", codes, others, partial(read, parts, stem, codes))
    for codes in parts.tensors:
        others = parts.under(codes.name)
        yield from put_or_refused(codes.name, codes, others, partial(_bitsandbytes, parts, codes.name, codes))
    for name, codes in parts.ending("_blocks"):
        yield from put_or_refused(name, codes, [], partial(_mxfp4, parts, name, codes))


def put_or_refused(
    name: str, codes: TensorEntry, others: Sequence[TensorEntry | None], read: Callable[[], Reading | None]
) -> Iterator[AssembledTensor]:
    """The weight of that name, if there is one; with `Unfit`, one row for the codes and the others, with the reason."""
    try:
        found = read()
    except (Unfit, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of files that lie
        its = (codes, *(part for part in others if part is not None))
        why = str(error) if isinstance(error, Unfit) else f"codes that cannot be read ({one_line(error)})"
        yield refused(name, codes.shape, codes.dtype, its, why)
    else:
        if found:
            shape, its, compute, note = found
            yield put_together(name, shape, its, compute, note)


def _by_groups(parts: TensorIndex, stem: str, codes: TensorEntry) -> Reading | None:
    """GPTQ or AWQ, which share their names and pack different sides."""
    scales, zeros = parts.get(f"{stem}scales"), parts.get(f"{stem}qzeros")
    if scales is None or len(scales.shape) != 2 or len(codes.shape) != 2:
        return None
    if zeros is None or codes.dtype != "int32" or zeros.dtype != "int32" or len(zeros.shape) != 2:
        raise Unfit(f"quantised codes of {codes.dtype} without zero points in int32: dequantise the model first")
    if str(parts.quantization.get("version", "gemm")).lower() not in ("gemm", "1"):
        raise Unfit(f"AWQ codes in the layout {parts.quantization['version']}: only gemm is read")
    if codes.shape[1] == scales.shape[1]:
        return _gptq(parts, stem, codes, scales, zeros)
    if codes.shape[1] * 8 == scales.shape[1] and zeros.shape == (scales.shape[0], codes.shape[1]):
        return _awq(codes, scales, zeros)
    raise Unfit(f"quantised codes of shape {codes.shape}, scales of {scales.shape}: no layout of GPTQ or AWQ")


def _gptq(parts: TensorIndex, stem: str, codes: TensorEntry, scales: TensorEntry, zeros: TensorEntry) -> Reading:
    """`W[o, i] = s[g(i), o] (q[i, o] - z[g(i), o])` (Frantar et al. 2023); version 1 stores `z - 1`."""
    (groups, out), index = scales.shape, parts.get(f"{stem}g_idx")
    bits = 32 * zeros.shape[1] // out
    if bits not in _GPTQ_BITS or zeros.shape != (groups, math.ceil(out * bits / 32)):
        raise Unfit(f"GPTQ zero points of shape {zeros.shape} for scales of {scales.shape}")
    inputs = index.shape[0] if index is not None else codes.shape[0] * 32 // bits
    if codes.shape[0] != math.ceil(inputs * bits / 32):
        raise Unfit(f"GPTQ codes of shape {codes.shape} for {inputs} inputs of {bits} bits")
    size = math.ceil(inputs / groups)
    shift = _zero_point_shift(parts, zeros, bits, out)

    def compute(q: Tensor, s: Tensor, z: Tensor, *indices: Tensor) -> Tensor:
        group = indices[0].long() if indices else torch.arange(inputs) // size
        zero = (unpack(z, bits, out) + shift) % 2**bits
        return (s.float()[group] * (unpack(q.T, bits, inputs).T - zero[group])).T.contiguous()

    its = (codes, scales, zeros, *([index] if index is not None else []))
    return (out, inputs), its, compute, f"dequantised: GPTQ, {bits} bits"


def _zero_point_shift(parts: TensorIndex, zeros: TensorEntry, bits: int, out: int) -> int:
    """1 where the file holds `z - 1`: `checkpoint_format` says so, or symmetric zero points do."""
    if parts.quantization:
        return 0 if parts.quantization.get("checkpoint_format") == "gptq_v2" else 1
    held = unpack(zeros.read(), bits, out)
    for shift in (1, 0):
        if bool((held + shift == 2 ** (bits - 1)).all()):
            return shift
    raise Unfit("GPTQ codes whose zero points may be stored less one: config.json is missing, which says so")


def _awq(codes: TensorEntry, scales: TensorEntry, zeros: TensorEntry) -> Reading:
    """`W[o, i] = s[g(i), o] (q[i, o] - z[g(i), o])` in four bits (Lin et al. 2024), as AutoAWQ's gemm packs them."""
    (groups, out), inputs = scales.shape, codes.shape[0]
    if inputs % groups:
        raise Unfit(f"AWQ codes for {inputs} inputs in {groups} groups")

    def unordered(words: Tensor) -> Tensor:
        halves = unpack(words, 4, 8 * words.shape[1]).unflatten(1, (-1, 8))
        return halves[:, :, torch.tensor(_AWQ_ORDER).argsort()].flatten(1)

    def compute(q: Tensor, s: Tensor, z: Tensor) -> Tensor:
        group = torch.arange(inputs) // (inputs // groups)
        return (s.float()[group] * (unordered(q) - unordered(z)[group])).T.contiguous()

    return (out, inputs), (codes, scales, zeros), compute, "dequantised: AWQ, 4 bits"


def _compressed(parts: TensorIndex, stem: str, codes: TensorEntry) -> Reading | None:
    """compressed-tensors: integers packed into int32, or NVFP4 in bytes."""
    scale = parts.get(f"{stem}weight_scale")
    if scale is None:
        return None
    if codes.dtype == "uint8":
        return nvfp4(codes, scale, parts.get(f"{stem}weight_global_scale"), inverse=True)
    said = parts.get(f"{stem}weight_shape")
    if said is None or codes.dtype != "int32" or len(codes.shape) != 2 or len(scale.shape) != 2:
        raise Unfit(f"packed codes of {codes.dtype}, without their shape: dequantise the model first")
    out, inputs = (int(size) for size in said.read().flatten().tolist())
    bits = _bits(parts, codes.shape[1], inputs)
    if codes.shape != (out, math.ceil(inputs * bits / 32)) or scale.shape[0] not in (1, out):
        raise Unfit(f"codes of shape {codes.shape} and scales of {scale.shape} for ({out}, {inputs}) in {bits} bits")
    zero, index = parts.get(f"{stem}weight_zero_point"), parts.get(f"{stem}weight_g_idx")
    groups = scale.shape[1]
    size = math.ceil(inputs / groups)
    half = 2 ** (bits - 1)
    if zero is not None and zero.dtype == "int32" and zero.shape != (math.ceil(out * bits / 32), groups):
        raise Unfit(f"zero points of shape {zero.shape} for scales of {scale.shape}")

    def compute(q: Tensor, s: Tensor, _: Tensor, *more: Tensor) -> Tensor:
        order = more[-1] if index is not None else None
        group = torch.arange(inputs) // size if order is None or int(order.min()) < 0 else order.long()
        value = unpack(q, bits, inputs) - half
        if zero is not None:
            z = unpack(more[0].T, bits, out).T - half if more[0].dtype == torch.int32 else more[0].int()
            value = value - z.expand(out, groups)[:, group]
        return s.float().expand(out, groups)[:, group] * value

    its = (codes, scale, said, *(part for part in (zero, index) if part is not None))
    return (out, inputs), its, compute, f"dequantised: compressed-tensors, {bits} bits"


def _bits(parts: TensorIndex, words: int, inputs: int) -> int:
    """As the configuration says, where one width serves all layers; else the only one that fits."""
    groups = parts.quantization.get("config_groups")
    said = {
        its.get("weights", {}).get("num_bits")
        for its in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(its, Mapping) and isinstance(its.get("weights"), Mapping)
    }
    fitting = [bits for bits in range(1, 9) if math.ceil(inputs * bits / 32) == words]
    agreed = [bits for bits in fitting if bits in said] if said else fitting
    usual = [bits for bits in agreed if bits in (2, 4, 8)]
    if len(agreed) == 1 or len(usual) == 1:
        return (usual or agreed)[0]
    raise Unfit(f"{words} words for {inputs} inputs, of a width that config.json does not say")


def _bitsandbytes(parts: TensorIndex, stem: str, codes: TensorEntry) -> Reading | None:
    """NF4 or FP4 with a `quant_state` (Dettmers et al. 2023), or int8 with `SCB` (Dettmers et al. 2022)."""
    rows = parts.get(f"{stem.rpartition('.')[0]}.SCB".removeprefix("."))
    if rows is not None and codes.dtype == "int8" and codes.shape[:1] == rows.shape and stem.endswith("weight"):
        return _llm_int8(parts, stem, codes, rows)
    if codes.dtype not in ("uint8", "float32", "bfloat16", "float16") or f"{stem}.absmax" not in parts.by_name:
        return None
    states = [(kind, parts.get(f"{stem}.quant_state.bitsandbytes__{kind}")) for kind in ("nf4", "fp4")]
    kind, state = next((its for its in states if its[1] is not None), ("", None))
    table, absmax = parts.get(f"{stem}.quant_map"), parts.get(f"{stem}.absmax")
    if state is None or table is None or absmax is None:
        raise Unfit("bitsandbytes codes without their quant_state: save the model again")
    described = _json(state)
    try:
        shape = tuple(int(size) for size in described["shape"])
        block = int(described["blocksize"])
        nested = int(described.get("nested_blocksize") or 0)
        offset = float(described.get("nested_offset") or 0.0)
    except (KeyError, TypeError, ValueError):
        raise Unfit("bitsandbytes codes whose quant_state does not say shape and block size") from None
    count = math.prod(shape)
    second = [parts.get(f"{stem}.nested_{part}") for part in ("absmax", "quant_map")]
    inner = tuple(part for part in second if part is not None)
    if block < 1 or nested < 0:
        raise Unfit(f"bitsandbytes codes in blocks of {min(block, nested)}")
    if codes.dtype != "uint8" or codes.count != (count + 1) // 2 or absmax.count != math.ceil(count / block):
        raise Unfit(f"bitsandbytes codes of shape {codes.shape} in {codes.dtype} for a weight of {shape}")
    if (nested > 0) != (len(inner) == 2):
        raise Unfit("bitsandbytes codes without the second scales that their quant_state promises")

    def compute(q: Tensor, values: Tensor, largest: Tensor, _: Tensor, *inside: Tensor) -> Tensor:
        scale = largest.flatten()
        if inside:
            again = inside[0].flatten().repeat_interleave(min(nested, len(scale)))[: len(scale)]
            scale = inside[1][scale.int()] * again + offset
        halves = torch.stack((q.flatten() >> 4, q.flatten() & 0xF), 1).flatten()[:count]
        return (values[halves.int()] * scale.float().repeat_interleave(min(block, count))[:count]).reshape(shape)

    return shape, (codes, table, absmax, state, *inner), compute, f"dequantised: bitsandbytes {kind}"


def _llm_int8(parts: TensorIndex, stem: str, codes: TensorEntry, rows: TensorEntry) -> Reading:
    layout = parts.get(f"{stem}_format")
    its = (codes, rows, *([layout] if layout is not None else []))
    if layout is not None and layout.count and int(layout.read().flatten()[0]) != 0:
        raise Unfit("bitsandbytes codes in a layout of the GPU: save the model again with a newer bitsandbytes")

    def compute(q: Tensor, s: Tensor, *_: Tensor) -> Tensor:
        return q.float() * (s.float() / 127).reshape(-1, *[1] * (q.ndim - 1))

    return codes.shape, its, compute, "dequantised: bitsandbytes int8"


def _json(entry: TensorEntry) -> Json:
    try:
        found = json.loads(bytes(entry.read().flatten().to(torch.uint8).tolist()))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unfit("bitsandbytes codes with a damaged quant_state")
    return found


def _mxfp4(parts: TensorIndex, stem: str, codes: TensorEntry) -> Reading | None:
    """Microscaling blocks of 32 numbers of four bits, as in gpt-oss: `(…, out, blocks, 16)` bytes."""
    scales = parts.get(f"{stem}_scales")
    if scales is None or codes.dtype != "uint8" or scales.dtype != "uint8" or codes.shape[:-1] != scales.shape:
        return None
    shape = (*codes.shape[:-2], codes.shape[-2] * codes.shape[-1] * 2)

    def compute(q: Tensor, exponents: Tensor) -> Tensor:
        return (fp4(q) * power_of_two(exponents)[..., None]).flatten(-2)

    return shape, (codes, scales), compute, "dequantised: MXFP4"


def nvfp4(codes: TensorEntry, scale: TensorEntry, whole: TensorEntry | None, inverse: bool) -> Reading:
    """Four bits with an fp8 scale for each 16 and one for all, which compressed-tensors stores as its inverse."""
    out, inputs = codes.shape[0], 2 * math.prod(codes.shape[1:])
    if len(scale.shape) != 2 or scale.shape[0] != out or inputs % max(scale.shape[1], 1) or whole is None:
        raise Unfit(f"codes of four bits of shape {codes.shape} with scales of {scale.shape}")
    block = inputs // scale.shape[1]

    def compute(q: Tensor, s: Tensor, one: Tensor) -> Tensor:
        factor = s.float() / one.float().flatten()[0] if inverse else s.float() * one.float().flatten()[0]
        return fp4(q) * factor.repeat_interleave(block, 1)

    return (out, inputs), (codes, scale, whole), compute, "dequantised: NVFP4"
