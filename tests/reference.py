"""Slow, obvious twins: every fast implementation is compared with one of these."""

import numpy as np
import torch

# --- spectra and alignment ---


def spectrum_measures(matrix: torch.Tensor) -> dict[str, float]:
    """Every measure of THEORY §6 from its formula as printed, in numpy and float64; right when nothing cancels."""
    sigma = np.linalg.svd(matrix.double().flatten(1).numpy(), compute_uv=False)
    p = sigma / sigma.sum()
    p = p[p > 0]
    return {
        "frobenius_norm": np.sqrt((sigma**2).sum()),
        "rank_one_residual": 1 - sigma[0] ** 2 / (sigma**2).sum(),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
    }


def circular_convolution_matrix(kernel: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The dense matrix of a stride-1 convolution with circular padding, one unit image at a time."""
    channels, height, width = kernel.shape[1], *size
    units = torch.eye(channels * height * width, dtype=kernel.dtype).view(-1, channels, height, width)
    wrapped = torch.nn.functional.pad(units, (0, kernel.shape[3] - 1, 0, kernel.shape[2] - 1), mode="circular")
    return torch.nn.functional.conv2d(wrapped, kernel).flatten(1).T


# --- activity ---


def pattern_classes(z: torch.Tensor) -> set[tuple[int, ...]]:
    """Groups of neurons with equal on/off patterns, not all-off, by comparing every pair of neurons."""
    on = (z > 0).T.tolist()
    groups = [tuple(v for v, other in enumerate(on) if other == pattern) for pattern in on if any(pattern)]
    return set(groups)


# --- theorems ---


def deficit_bounds(tail: list[torch.Tensor], biases: list[torch.Tensor | None]) -> list[float]:
    """`D_k` of T3.1 for the layers of a linear tail, as printed: `D_k = D_{k+1} + λ_1(C_k) - tr C_k`, `D_L = 0`."""
    bounds = [0.0]
    for lower, bias, upper in reversed(list(zip(tail, biases, tail[1:], strict=False))):
        conserved = upper.T @ upper - lower @ lower.T
        if bias is not None:
            conserved = conserved - torch.outer(bias, bias)
        bounds.insert(0, bounds[0] + float(torch.linalg.eigvals(conserved).real.max() - conserved.trace()))
    return bounds


# --- the entropic problem (T6.1): scipy on the stiff system itself ---------------------------------------------------


def margins_by_radau(kernel, initial, span):
    """`u(span)` of `du/dτ = K softmax(-u)` by scipy's Radau at tight tolerance."""
    import numpy as np
    from scipy.integrate import solve_ivp
    from scipy.special import softmax

    kernel, initial = np.asarray(kernel), np.asarray(initial)
    solved = solve_ivp(lambda _, u: kernel @ softmax(-u), (0.0, span), initial, method="Radau", rtol=1e-10, atol=1e-10)
    return solved.y[:, -1]


# --- margins: one example, one gradient at a time --------------------------------------------------------------------


def margin_jacobian(model, inputs, labels):
    """Rows of the Jacobian of `y_i f(x_i)`, by one backward pass for each example."""
    import torch

    rows = []
    for example, label in zip(inputs, labels, strict=True):
        margin = (label * model(example[None])).squeeze()
        gradients = torch.autograd.grad(margin, list(model.parameters()))
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows)
