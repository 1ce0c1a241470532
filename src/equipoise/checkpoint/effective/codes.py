"""Codes of fewer than eight bits, taken out of the words that they are packed in."""

import torch
from jaxtyping import Integer
from torch import Tensor

# e2m1: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0)
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack(words: Integer[Tensor, "rows words"], bits: int, count: int) -> Integer[Tensor, "rows count"]:
    """`count` codes of each row, packed densely from the lowest bit of the first word on.

    >>> unpack(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), 4, 3).tolist()
    [[1, 2, 3]]
    """
    octets = words.contiguous().flatten().view(torch.uint8).unflatten(0, (len(words), -1))
    if bits == 8:
        return octets[:, :count].int()
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        codes = (octets[:, :, None] >> shifts) & ((1 << bits) - 1)
        return codes.flatten(1)[:, :count].int()
    single = (octets[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    powers = 2 ** torch.arange(bits, dtype=torch.int32)
    return (single.flatten(1)[:, : count * bits].reshape(len(words), count, bits) * powers).sum(-1, dtype=torch.int32)


def fp4(octets: Tensor) -> Tensor:
    """Two numbers of four bits from each byte, the lower half first, along the last dimension.

    >>> fp4(torch.tensor([0x9F], dtype=torch.uint8)).tolist()
    [-6.0, -0.5]
    """
    values = torch.tensor([*_FP4, *(-value for value in _FP4)])
    return torch.stack((values[(octets & 0xF).int()], values[(octets >> 4).int()]), -1).flatten(-2)


def power_of_two(exponents: Tensor) -> Tensor:
    """`2^(e - 127)` of `e8m0` exponents in bytes.

    >>> power_of_two(torch.tensor([127, 130], dtype=torch.uint8)).tolist()
    [1.0, 8.0]
    """
    return torch.exp2(exponents.view(torch.uint8).float() - 127)
