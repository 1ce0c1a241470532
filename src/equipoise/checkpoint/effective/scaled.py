"""Numbers of eight bits with a scale for the tensor, for each row, or for each block."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from equipoise.checkpoint.effective.codes import power_of_two
from equipoise.checkpoint.effective.packed import Reading, Unfit, nvfp4, put_or_refused
from equipoise.checkpoint.effective.tensor_index import AssembledTensor, TensorIndex, refused
from equipoise.checkpoint.tensor_entry import TensorEntry

_CODES = ("float8", "int8", "uint8", "F8_", "F4")  # dtypes; safetensors' own names where torch has none
_BLOCK = 128  # of DeepSeek's weight_scale_inv, whose last blocks may be cut
_SCALES = re.compile(
    r"(^|[._])(weight_scale(_inv|_2)?|weight_zero_point|scale_weight|scales?|scale_inv|qzeros|zeros?|zero_points?|absmax"
    r"|quant_map|nested_absmax|nested_quant_map|codebooks?|centroids|SCB|SU|SV|weight_global_scale|q_scale(_max)?"
    r")$|(?<=\w)_scale(s|_inv)?$"
)
# Codes of methods that are refused: what their integers are called
_METHODS = {
    "W_q": "HQQ",
    "codes": "AQLM",
    "q_weight": "EXL2",
    "Qidxs": "QuIP#",
    "indices": "VPTQ",
    "qweight": "a quantisation without its scales",
    "weight_packed": "compressed-tensors",
    "B": "Marlin",
}


def scaled(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """`scale · q`, or `scale · (q - zero point)`, under the names that are in use for both."""
    for weight in parts.tensors:
        if not weight.dtype.startswith(_CODES) or len(weight.shape) < 2:
            continue
        if weight.name.endswith("._data"):  # of optimum-quanto
            yield from _quanto(parts, weight)
            continue
        beside = weight.name.removesuffix("weight")
        names = [f"{weight.name}_scale_inv", f"{weight.name}_scale"]
        names += [f"{beside}scale_weight", f"{beside}scale"] if beside != weight.name else []
        scale = next((found for name in names if (found := parts.get(name))), None)
        if scale is not None:
            others = (scale, parts.get(f"{weight.name}_zero_point"), parts.get(f"{weight.name}_scale_2"))
            yield from put_or_refused(weight.name, weight, others, partial(_scaled, parts, weight, *others))


def _quanto(parts: TensorIndex, codes: TensorEntry) -> Iterator[AssembledTensor]:
    name = codes.name.removesuffix("._data")
    scale, shift = parts.get(f"{name}._scale"), parts.get(f"{name}._shift")
    if scale is not None and shift is None and codes.dtype != "uint8":
        yield from put_or_refused(name, codes, (scale,), partial(_scaled, parts, codes, scale, None, None))
    elif scale is not None:
        reason = "codes of optimum-quanto below eight bits, which are not read here: dequantise the model first"
        others = tuple(part for part in (scale, shift) if part is not None)
        yield refused(name, codes.shape, codes.dtype, (codes, *others), reason)


def _scaled(
    parts: TensorIndex, weight: TensorEntry, scale: TensorEntry, zero: TensorEntry | None, second: TensorEntry | None
) -> Reading:
    if weight.dtype == "uint8" and zero is None:
        return nvfp4(weight, scale, second, inverse=False)
    if not weight.dtype.startswith(("float8", "int8", "uint8")):
        raise Unfit(f"codes of {weight.dtype}, which torch does not read")
    inverse = scale.name.endswith(("_inv", ".scale"))
    blocks = _blocks(parts, weight.shape, scale.shape, inverse)
    exponents = scale.dtype in ("uint8", "float8_e8m0fnu")
    if second is not None and second.count != 1:
        raise Unfit(f"a second scale of shape {second.shape}")
    if zero is not None and zero.shape != scale.shape:
        raise Unfit(f"zero points of shape {zero.shape} for scales of shape {scale.shape}")

    def compute(q: Tensor, s: Tensor, *more: Tensor) -> Tensor:
        factor = power_of_two(s) if exponents else s.float()
        value = q.float()
        if zero is not None:
            value = value - _spread(more[0].float(), weight.shape, blocks)
        if second is not None:
            factor = factor * more[-1].float().flatten()[0]
        return value * _spread(factor, weight.shape, blocks)

    its = (weight, scale, *(part for part in (zero, second) if part is not None))
    return weight.shape, its, compute, f"dequantised: {weight.dtype} × {scale.name.rpartition('.')[2]}"


def _blocks(parts: TensorIndex, shape: Sequence[int], scales: Sequence[int], inverse: bool) -> tuple[int, ...]:
    """How many entries along each dimension share a scale."""
    if math.prod(scales) == 1:
        return tuple(shape)
    if len(scales) == 1 and scales[0] == shape[0]:
        return (1, *shape[1:])
    if len(scales) != len(shape):
        raise Unfit(f"scales of shape {tuple(scales)} for a weight of shape {tuple(shape)}")
    said = parts.quantization.get("weight_block_size")
    known = said if isinstance(said, list) and len(said) == 2 and all(isinstance(its, int) for its in said) else None
    sizes: list[int] = []
    for place, (size, count) in enumerate(zip(shape, scales, strict=True)):
        from_end = place - len(shape)
        its = known[from_end] if known and from_end >= -2 and count not in (1, size) else None
        sizes.append(_block(size, count, its, inverse))
    return tuple(sizes)


def _block(size: int, count: int, said: int | None, inverse: bool) -> int:
    """The width of `count` blocks of `size` entries, the last of which may be cut.

    >>> _block(256, 2, None, False), _block(200, 2, None, True), _block(200, 2, 100, False)
    (128, 128, 100)

    Raises:
        Unfit: where no width, or more than one, is likely.
    """
    if count == 1:
        return size
    if not 1 < count <= size:
        raise Unfit(f"{count} scales for {size} entries: dequantise the model first")
    fitting = range(math.ceil(size / count), (size - 1) // (count - 1) + 1)  # ⌈size/width⌉ = count
    if said is not None and said in fitting:
        return said
    if inverse and said is None and _BLOCK in fitting:
        return _BLOCK
    powers = (1 << exponent for exponent in range(size.bit_length() + 1))
    likely = {
        width
        for width in (*powers, size // count)
        if width in fitting and (width & (width - 1) == 0 or width * count == size)
    }
    if said is None and len(likely) == 1:
        return likely.pop()
    words = "as weight_block_size says" if said is not None else "of a width that config.json does not say"
    raise Unfit(f"{count} scales for {size} entries, {words}: dequantise the model first")


def _spread(scale: Tensor, shape: Sequence[int], blocks: Sequence[int]) -> Tensor:
    """One number for each entry, or for each that broadcasts."""
    if scale.numel() == 1:
        return scale.flatten()[0]
    scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.ndim))
    for dim, (size, width) in enumerate(zip(shape, blocks, strict=True)):
        if 1 < scale.shape[dim] < size:
            scale = scale.repeat_interleave(width, dim).narrow(dim, 0, size)
    return scale


def leftover(parts: TensorIndex) -> Iterator[AssembledTensor]:
    """Codes of methods that are not read, by their names, and scales that nothing was found for."""
    whose = str(parts.quantization.get("quant_method") or "")
    coded: dict[str, str] = {}
    for entry in parts.tensors:
        prefix, _, last = entry.name.rpartition(".")
        is_codes = re.fullmatch(r"u?int(8|16|32)|float8\w*|F[48]_\w*|F4", entry.dtype) and len(entry.shape) > 1
        if is_codes and (last in _METHODS or whose):
            coded[prefix] = whose or _METHODS[last]
        elif is_codes and not entry.dtype.startswith("float8"):
            coded.setdefault(prefix, "")
    for entry in parts.tensors:
        prefix, _, last = entry.name.rpartition(".")
        if prefix not in coded or entry.reason or entry.use.reason or len(entry.shape) < 2:
            continue
        method = f"{coded[prefix]}, which is not read here: dequantise the model first" if coded[prefix] else ""
        known = _SCALES.search(entry.name) or (coded[prefix] and last not in ("weight", "bias"))
        if known and entry.dtype.startswith(("float", "bfloat")):
            reason = "scales of quantised codes are no weight" + (f" ({method})" if method else "")
            yield refused(entry.name, entry.shape, entry.dtype, (entry,), reason)
        elif last in _METHODS and method:
            yield refused(entry.name, entry.shape, entry.dtype, (entry,), f"codes of {method}")
