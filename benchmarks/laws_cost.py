"""What the laws of an 85-million-parameter GPT-2-shaped model cost, beside one reading of its weights and gradients.

python benchmarks/laws_cost.py [threads]

All figures from one process, each the best of several repeats. CPU seconds are given beside wall seconds, for they
matter less what else the machine does. "Reading" is `Σ_p ⟨w_p, g_p⟩`: one `torch.dot` for each parameter, which reads
every weight and every gradient once and writes nothing.
"""

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from equipoise import invariances
from equipoise.laws import Laws
from gpt2 import GPT2

Cost = tuple[float, float]  # wall and CPU seconds


def best(work: Callable[[], object], repeats: int = 7) -> Cost:
    """The shortest wall time and the shortest CPU time of several calls."""
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*found, strict=True)
    return min(walls), min(cpus)


def reading(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> list[Tensor]:
    return [torch.dot(weight.view(-1), gradients[name].view(-1)) for name, weight in weights.items()]


def norms(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> object:
    return torch._foreach_norm(list(weights.values())), torch._foreach_norm(list(gradients.values()))


def extra_memory(work: Callable[[], object]) -> float:
    """Megabytes by which a call raises the resident set at its peak, from a heap without free memory (Linux, glibc)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, _ = _resident()
    work()
    return (_resident()[1] - before) / 1e3


def _resident() -> tuple[int, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]), int(lines["VmHWM"].split()[0])


def matrix_flops(laws: Laws) -> float:
    """Multiplications and additions in the moments of matrix-wise laws."""
    total = 0.0
    for law in laws:
        blocks, width = law.interface.blocks, law.interface.width
        if law.kind != "shift" and width > 1:
            columns = [weight_size(member.view) / (blocks * width) for member in law.interface.members]
            total += sum(2 * blocks * width**2 * count for count in columns)
    return total


def weight_size(view: tuple[int, ...]) -> int:
    return torch.Size(view).numel()


def gemm_rate() -> float:
    """Operations a second in products of the shape of one head: 64 × 768 by 768 × 64, twelve at a time."""
    a, b = torch.randn(12, 64, 768), torch.randn(12, 768, 64)
    return 2 * 12 * 64 * 64 * 768 / best(lambda: torch.bmm(a, b), 50)[1]


def derivation() -> Laws:
    with torch.device("meta"):
        model = GPT2()
    found: list[Laws] = []
    wall, cpu = best(lambda: found.append(invariances(model, torch.zeros(2, 8, dtype=torch.long))), 1)
    print(f"capture and derivation on the meta device: {wall:.1f} s wall, {cpu:.1f} s CPU (asked: under 20 s)")
    print(f"{len(found[0])} laws, {found[0].conserved} conserved quantities; {found[0].coverage}")
    return found[0]


def main(threads: int = 1) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    laws = derivation()
    model = GPT2()
    model(torch.randint(0, 256, (2, 64))).tanh().mul(torch.randn(256)).sum().backward()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    size = sum(weight.numel() for weight in weights.values())
    extra = extra_memory(lambda: laws.residual(weights, gradients))
    wall, cpu = base = best(lambda: reading(weights, gradients))
    rate = 8 * size / cpu
    print(f"\n{size / 1e6:.1f} M parameters, float32, {threads} thread(s)")
    print(
        f"reading weights and gradients once: {wall * 1e3:.0f} ms wall, {cpu * 1e3:.0f} ms CPU, {rate / 1e9:.0f} GB/s"
    )
    show("norms of weights and gradients, torch._foreach_norm", best(lambda: norms(weights, gradients)), base)
    show("residual of every law, exact", best(lambda: laws.residual(weights, gradients)), base)
    for count in (1, 4, 16):
        cost = best(lambda count=count: laws.residual(weights, gradients, sketch=count))
        show(f"residual of every law, sketch={count}", cost, base)
    flops, speed = matrix_flops(laws), gemm_rate()
    floor = flops / speed
    print(f"matrix products of the exact pass: {flops / 1e9:.1f} GFlop at {speed / 1e9:.0f} GFlop/s take")
    print(f"   {floor * 1e3:.0f} ms, {floor / cpu:.1f} × the reading by themselves")
    print(f"peak extra memory of the exact pass: {extra:.1f} MB, {extra / (4e-6 * size):.1%} of the weights")
    print(f"largest residual of an exact law: {largest(laws, weights, gradients):.1e}")


def largest(laws: Laws, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
    found = laws.residual(weights, gradients)
    return max(float(found[law.name]) for law in laws if law.exact)


def show(what: str, cost: Cost, base: Cost) -> None:
    wall, cpu = cost
    ratios = f"{wall / base[0]:.2f} × reading by wall, {cpu / base[1]:.2f} × by CPU"
    print(f"{what}: {wall * 1e3:.0f} ms wall, {cpu * 1e3:.0f} ms CPU; {ratios}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
