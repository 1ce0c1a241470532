"""Slow, obvious twins: every fast implementation is compared with one of these."""

import itertools

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

# --- spectra and alignment ---


def spectrum_measures(matrix: torch.Tensor) -> dict[str, float]:
    """Every measure of docs/theory.md §6 from its formula, in numpy and float64; right when nothing cancels."""
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


def rank_by_patterns(written: torch.Tensor, read: torch.Tensor, z: torch.Tensor, above: float) -> tuple[int, float]:
    """`(R, D)` of T4.3, as printed: `Σ_{i>R} σ_i²` of `written` is at most `D`, `R` its classes that are not all-off.

    `read` is within `above` of rank one; a row of `written` and a column of `read` for each column of `z`.
    """
    classes = pattern_classes(z)
    together = [list(members) for members in classes if len(members) > 1]
    conserved = [read[:, S].T @ read[:, S] - written[S] @ written[S].T for S in together]
    excess = [float(torch.linalg.eigvals(C).real.max() - C.trace()) for C in conserved]
    off = [u for u in range(len(written)) if not any(u in members for members in classes)]
    return len(classes), (above if together else 0.0) + sum(excess) + float(written[off].square().sum())


def paths(layers: list[torch.Tensor], biases: list[torch.Tensor | None]) -> dict[tuple, float]:
    """`Φ_π` of every path of a chain by brute force: (input or "1", neuron, …, output) -> product of weights."""
    found: dict[tuple, float] = {(i,): 1.0 for i in range(layers[0].shape[1])}
    for depth, (weight, bias) in enumerate(zip(layers, biases, strict=True)):
        longer = {}
        for path, product in found.items():
            for out in range(weight.shape[0]):
                longer[*path, out] = product * float(weight[out, path[-1]])
        if bias is not None:
            longer |= {(f"1@{depth}", out): float(bias[out]) for out in range(weight.shape[0])}
        found = longer
    return found


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


def margin_jacobian(model, inputs, labels, classes=None):
    """Rows of the Jacobian of `y_i f(x_i)`, or of `f_{y_i} - f_c`, by one backward pass for each margin."""
    import torch

    rows = []
    for example, label in zip(inputs, labels, strict=True):
        scores = model(example[None]).flatten()
        if classes is None:
            margins = [label * scores.squeeze()]
        else:
            margins = [scores[label] - scores[c] for c in range(classes) if c != label]
        for margin in margins:
            gradients = torch.autograd.grad(margin, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows)


# --- laws: every quadratic and linear one there is, from gradients alone ----------------------------------------------


def polynomial_laws(model, inputs, *, differences=False, seed=0):
    """How many `wᵀQw + cᵀw` are constant along gradient flow for every data set: `(linear, quadratic, affine)`.

    Solves `⟨2 Q w + c, ∇_w ⟨a, f(x; w)⟩⟩ = 0` for all symmetric `Q` and all `c` over random `w`, `x` and `a` (which
    sums to zero over the last axis for `differences`, as under a softmax). Of the solutions, `linear` have no `Q`,
    `quadratic` have no `c` and are not products of linear ones, `affine` are what is left.
    """
    weights, gradients = _random_gradients(model, inputs, differences, seed)
    linear = _nullity(gradients)
    upper, lower = torch.triu_indices(weights.shape[1], weights.shape[1])
    products = gradients[:, upper] * weights[:, lower] + gradients[:, lower] * weights[:, upper]
    everything = _nullity(torch.cat([products, gradients], 1))
    alone = _nullity(products) if everything > linear else 0
    return linear, alone - linear * (linear + 1) // 2, everything - alone - linear


def linear_laws(model, inputs, *, differences=False, seed=0):
    """How many `cᵀw` are constant along gradient flow for every data set: as above, at a fraction of the cost."""
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return _nullity(_random_gradients(model, inputs, differences, seed, points=size + 20)[1])


def _random_gradients(model, inputs, differences, seed, points=None):
    """Rows `w` and `∇_w ⟨a, f(x; w)⟩ / ‖·‖`, one more point for every unknown and some to spare."""
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in trained)
    points = size * (size + 3) // 2 + 20 if points is None else points
    rows = [_random_gradient(model, trained, inputs, differences, generator) for _ in range(points)]
    weights, gradients = (torch.stack(column) for column in zip(*rows, strict=True))
    return weights, gradients / gradients.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _random_gradient(model, trained, inputs, differences, generator):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    output = model(*(_another(x, generator) for x in inputs))
    combination = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    combination = combination - combination.mean(-1, keepdim=True) if differences else combination
    slopes = torch.autograd.grad((output * combination).sum(), trained, allow_unused=True, materialize_grads=True)
    flat = lambda tensors: torch.cat([tensor.detach().reshape(-1) for tensor in tensors])  # noqa: E731
    return flat(trained), flat(slopes)


def _another(x, generator):
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return torch.randint(int(x.max()) + 1, x.shape, generator=generator)


def _nullity(rows):
    """Dimension of the null space; the gap between zero and non-zero must be plain to see."""
    sigma = torch.linalg.svdvals(rows)
    sigma = sigma / sigma[0]
    null = int((sigma < 1e-12).sum())
    assert null == len(sigma) or sigma[-null - 1] > 1e-9, f"no gap: {sigma[-null - 1]:.1e}"
    return null


# --- sliding (T4.5): Filippov's convex combination, by scipy on the surface ---


def crossed(margins, kinks, weights, arrives):
    """`(w, crossings)` where `arrives(w)` rises through zero, on the flow of `log R`, from kink to kink.

    `margins(w, on)` and `kinks(w, on)` take which pairs are on; between kinks the flow is smooth, and followed by
    DOP853. A pair that reaches its kink changes sides; one that should slide there is refused.
    """
    import torch
    from scipy.integrate import solve_ivp

    on, crossings, w = kinks(weights, None) > 0, 0, weights
    while True:

        def velocity(_, flat, on=on):
            seen, pull = torch.func.vjp(lambda weights: margins(weights, on), torch.as_tensor(flat))
            return pull(torch.softmax(-seen, 0))[0].numpy()

        def nearest(_, flat, on=on):
            z = kinks(torch.as_tensor(flat), on)
            return float(torch.where(on, z, -z).min()) + 1e-12  # a pair that has just changed sides is above

        def event(_, flat):
            return arrives(torch.as_tensor(flat))

        nearest.terminal, nearest.direction, event.terminal, event.direction = True, -1, True, 1
        events = [nearest, event]
        found = solve_ivp(velocity, (0.0, 1e6), w.numpy(), "DOP853", events=events, rtol=1e-11, atol=1e-13)
        if len(found.y_events[1]):
            return torch.as_tensor(found.y_events[1][0]), crossings
        w, crossings = torch.as_tensor(found.y_events[0][0]), crossings + 1
        z = kinks(w, on)
        pair = int(torch.where(on, z, -z).argmin())
        on = on ^ (torch.arange(len(on)) == pair)
        _, moved = torch.func.jvp(
            lambda weights, on=on: kinks(weights, on), (w,), (torch.as_tensor(velocity(0, w, on)),)
        )
        assert (moved[pair] > 0) == on[pair], "slides"


def slid(margins, surfaces, weights, arrives):
    """`(w, α)` where `arrives(w)` rises through zero, on the flow of `log R` held on the surfaces `z = 0`.

    `margins(w, α)` takes the slopes of the pairs held, one for each of `surfaces(w)`. As `z = 0`, the velocity is
    affine in `α`; the `α` with which every `z` stays zero solves a linear system.
    """
    import torch
    from scipy.integrate import solve_ivp

    def velocity(w, slopes):
        seen, pull = torch.func.vjp(lambda w: margins(w, slopes), w)
        return pull(torch.softmax(-seen, 0))[0]

    def held(w):
        normals = torch.func.jacrev(surfaces)(w)
        base, units = velocity(w, w.new_zeros(len(normals))), torch.eye(len(normals), dtype=w.dtype)
        if not len(normals):
            return base, base[:0]
        columns = torch.stack([velocity(w, unit) - base for unit in units], 1)
        slopes = torch.linalg.solve(normals @ columns, -normals @ base)
        return base + columns @ slopes, slopes

    def event(_, w):
        return arrives(torch.as_tensor(w))

    event.terminal, event.direction = True, 1
    rate = lambda _, w: held(torch.as_tensor(w))[0].numpy()  # noqa: E731
    found = solve_ivp(rate, (0.0, 1e6), weights.numpy(), "DOP853", events=event, rtol=1e-12, atol=1e-13)
    end = torch.as_tensor(found.y_events[0][0])
    return end, held(end)[1]


def equalised(layers, rounds=500):
    """Cross-layer equalisation as Nagel et al. (2019) state it: weights and biases of a chain of convolutions.

    For each pair, `s_i = √(r1_i r2_i) / r2_i` with the ranges of output channel i of the first and of input channel i
    of the second; a depthwise layer has one input channel for each output channel.
    """
    found = [[layer.weight.detach().clone(), layer.bias.detach().clone()] for layer in layers]
    for _ in range(rounds):
        for number, (first, second) in enumerate(itertools.pairwise(found)):
            axis = 0 if layers[number + 1].groups > 1 else 1
            r1 = first[0].abs().flatten(1).amax(1)
            r2 = second[0].abs().transpose(0, axis).flatten(1).amax(1)
            s = (r1 * r2).sqrt() / r2
            first[0], first[1] = first[0] / s[:, None, None, None], first[1] / s
            shape = [-1 if place == axis else 1 for place in range(4)]
            second[0] = second[0] * s.reshape(shape)
    return found


def pattern_classes_by_comparison(preactivations):
    """Channels with the same signs in every row, compared pair by pair: the slow twin of hashed patterns."""
    on = (preactivations > 0).T
    classes = []
    for channel in range(len(on)):
        mine = next((each for each in classes if torch.equal(on[each[0]], on[channel])), None)
        if mine is None:
            classes.append([channel])
        else:
            mine.append(channel)
    return classes


def matched_chain(layers, targets, rounds=100):
    """Weight matching (Ainsworth et al. 2023) with a permutation specification by hand: weights and biases.

    The specification of a chain of linear layers or convolutions: permutation k permutes the rows and the bias of layer
    k and the columns of layer k + 1.
    """
    own = [[layer.weight.detach().clone(), layer.bias.detach().clone()] for layer in layers]
    wanted = [[layer.weight.detach(), layer.bias.detach()] for layer in targets]
    for _ in range(rounds):
        settled = True
        for k in range(len(own) - 1):
            gain = wanted[k][0].flatten(1) @ own[k][0].flatten(1).T + torch.outer(wanted[k][1], own[k][1])
            gain += wanted[k + 1][0].transpose(0, 1).flatten(1) @ own[k + 1][0].transpose(0, 1).flatten(1).T
            order = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            settled &= bool((order == torch.arange(len(order))).all())
            own[k] = [own[k][0][order], own[k][1][order]]
            own[k + 1][0] = own[k + 1][0][:, order]
        if settled:
            break
    return own


# --- features by class, and bounds on rank ---


def collapse_figures(features, labels, weight=None):
    """NC1–NC3 of Papyan, Han & Donoho (2020), with `Σ_W` and `Σ_B` as they are printed, in numpy."""
    h, y = features.double().flatten(1).numpy(), labels.numpy()
    classes = sorted(set(y.tolist()))
    means = np.stack([h[y == c].mean(0) for c in classes])
    centred = means - means.mean(0)
    inside = sum(
        np.outer(row - means[classes.index(c)], row - means[classes.index(c)])
        for row, c in zip(h, y.tolist(), strict=True)
    )
    between = sum(np.outer(m, m) for m in centred) / len(classes)
    norms = [np.linalg.norm(m) for m in centred]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(centred, 2)]
    found = {
        "within": np.trace(inside / len(h) @ np.linalg.pinv(between, rcond=1e-12)) / len(classes),
        "equinorm": np.std(norms) / np.mean(norms),
        "equiangle": np.std(cosines),
        "simplex": np.mean([abs(c + 1 / (len(classes) - 1)) for c in cosines]),
    }
    if weight is not None:
        w = weight.double().numpy().T
        found["self_duality"] = np.linalg.norm(w / np.linalg.norm(w) - centred.T / np.linalg.norm(centred))
    return found


def cluster_sums(features, labels):
    """`Σ ‖h_i - h̄_c‖²` and `Σ ‖h_i - h̄‖²`, example by example."""
    h, y = features.double().flatten(1).numpy(), labels.numpy()
    within = sum(((row - h[y == c].mean(0)) ** 2).sum() for row, c in zip(h, y.tolist(), strict=True))
    return within, sum(((row - h.mean(0)) ** 2).sum() for row in h)


def mismatched(features, labels):
    """The share of examples whose nearest class centre is that of another class, by comparing every distance."""
    h, y = features.double().flatten(1).numpy(), labels.numpy().tolist()
    centre = {c: h[[i for i, other in enumerate(y) if other == c]].mean(0) for c in sorted(set(y))}
    nearest = [min(centre, key=lambda c: ((row - centre[c]) ** 2).sum()) for row in h]
    return sum(a != b for a, b in zip(nearest, y, strict=True)) / len(y)


def neuron_cones(weight, inputs, labels):
    """By neuron: `|cos|` with the signed sum of the examples that it is on for, and which classes it is on for."""
    found = []
    for w in weight.double().numpy():
        on = [i for i, x in enumerate(inputs.double().numpy()) if w @ x > 0]
        total = sum((float(labels[i]) * inputs[i].double().numpy() for i in on), np.zeros(len(w)))
        cosine = abs(w @ total) / np.linalg.norm(w) / np.linalg.norm(total) if on and total.any() else 0.0
        positive = {i for i, y in enumerate(labels.tolist()) if y > 0}
        found.append((cosine, set(on) == positive, set(on) == set(range(len(inputs))) - positive, not on))
    return found


# --- sharpness -------------------------------------------------------------------------------------------------------


def hessian(function, at):
    """The Hessian of a scalar function of one tensor, row by row, differentiable once more."""
    (gradient,) = torch.autograd.grad(function(at), at, create_graph=True)
    rows = [torch.autograd.grad(entry, at, create_graph=True)[0].flatten() for entry in gradient.flatten()]
    return torch.stack(rows)


def gradient_flow(problem, weights):
    """`-∇ log R` and `log R` by autograd through `torch.func.functional_call` on all examples at once."""
    flat = weights.detach().clone().requires_grad_()
    inputs, labels = problem.weighted_data
    output = torch.func.functional_call(problem.model, problem.layout.views(flat), (inputs,))
    if problem.loss.multiclass:
        risk = torch.nn.functional.cross_entropy(output, labels)
    else:
        risk = torch.exp(-labels * output.squeeze(1)).mean()
    log_risk = risk.log()
    return -torch.autograd.grad(log_risk, flat)[0], float(log_risk.detach())
