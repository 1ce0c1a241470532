import copy
import io

import pytest
import torch
from sklearn.linear_model import MultiTaskLasso
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.optim import ProximalSGD, active_neurons, share_neurons, shrink_groups_


def regression(seed=0, n=40, neurons=15, outputs=3):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, neurons, generator=generator).double()
    truth = torch.zeros(outputs, neurons).double()
    truth[:, :4] = torch.randn(outputs, 4, generator=generator).double()
    return phi, phi @ truth.T + 0.1 * torch.randn(n, outputs, generator=generator).double()


def test_it_is_the_multi_task_lasso():
    phi, psi = regression()
    layer = nn.Linear(15, 3, bias=False).double()
    optimizer = ProximalSGD(layer.parameters(), lr=0.3, strength=0.2)
    for _ in range(500):
        optimizer.zero_grad()
        (0.5 * (layer(phi) - psi).square().sum() / len(phi)).backward()
        optimizer.step()
    exact = torch.from_numpy(MultiTaskLasso(0.2, fit_intercept=False, tol=1e-12).fit(phi.numpy(), psi.numpy()).coef_)
    torch.testing.assert_close(layer.weight.detach(), exact, rtol=0, atol=1e-6)
    assert active_neurons(layer.weight).tolist() == active_neurons(exact, tolerance=1e-9).tolist()


def test_shrinking_minimises_the_penalty_and_the_distance():
    torch.manual_seed(0)
    for axis in (0, 1):
        weight = torch.randn(3, 4, 2).double()
        moved = shrink_groups_(weight.clone(), 0.7, axis)

        def cost(v, axis=axis, weight=weight):
            return 0.5 * (v - weight).square().sum() + 0.7 * sum(part.norm() for part in v.unbind(axis))

        for _ in range(20):
            assert cost(moved) < cost(moved + 0.1 * torch.randn_like(moved))


@pytest.mark.parametrize("seed", range(6))
def test_outputs_share_as_few_neurons_as_the_ranks_allow(seed):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(12, 4, generator=generator).double() @ torch.randn(4, 60, generator=generator).double()
    psi = phi @ torch.randn(60, 3, generator=generator).double() @ torch.randn(3, 10, generator=generator).double()
    found = share_neurons(phi, psi)
    assert float((phi @ found.T - psi).norm()) <= 1e-12 * float(psi.norm())
    assert len(active_neurons(found)) <= 12
    norms = torch.linalg.vector_norm(found, dim=0)
    used = active_neurons(found)
    dual = torch.linalg.lstsq(phi[:, used].T, (found[:, used] / norms[used]).T, driver="gelsd").solution
    feasible = torch.linalg.vector_norm(phi.T @ dual, dim=1).max().clamp_min(1)  # ‖Λᵀ φ_k‖ ≤ 1 after division by it
    assert float(norms.sum()) <= float((dual * psi).sum() / feasible) * 1.001


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_few_neurons_whatever_the_unit_of_the_outputs(scale):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    phi = draw(12, 4) @ draw(4, 60)
    psi = scale * phi @ draw(60, 3)
    found = share_neurons(phi, psi)
    assert float((phi @ found.T - psi).norm()) <= 1e-11 * float(psi.norm())
    assert len(active_neurons(found)) <= 12


def test_outputs_that_are_zero_need_no_neurons():
    assert not share_neurons(torch.eye(3), torch.zeros(3, 2)).any()


def test_outputs_out_of_reach_are_refused():
    with pytest.raises(InputError, match="outputs that a combination of the features gives exactly"):
        share_neurons(torch.ones(3, 2), torch.eye(3))


def test_state_goes_through_a_file_in_the_middle_bit_for_bit():
    phi, psi = regression()

    def made():
        torch.manual_seed(1)
        layer = nn.Linear(15, 3, bias=False).double()
        return layer, ProximalSGD(layer.parameters(), lr=0.1, strength=0.05, momentum=0.9)

    def steps(layer, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (layer(phi) - psi).square().mean().backward()
            optimizer.step()

    layer, optimizer = made()
    steps(layer, optimizer, 5)
    file = io.BytesIO()
    torch.save([layer.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file)
    other, again = made()
    other.load_state_dict(weights)
    again.load_state_dict(state)
    for each in ((layer, optimizer), (other, again)):
        steps(*each, 5)
    assert torch.equal(layer.weight, other.weight)


def test_without_strength_it_is_sgd_and_maximize_ascends():
    phi, psi = regression()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(15, 4), nn.Linear(4, 3)).double()
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    for sign, maximize in ((1.0, False), (-1.0, True)):
        ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
        groups = [{"params": ours[0].parameters(), "lr": 0.02}, {"params": [*ours[1].parameters(), frozen]}]
        groups.append({"params": [nn.Parameter(torch.ones(0, 3))]})
        optimizer = ProximalSGD(groups, lr=0.1, strength=0.0, momentum=0.5, maximize=maximize)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        plain = torch.optim.SGD(
            [{"params": theirs[0].parameters(), "lr": 0.02}, {"params": theirs[1].parameters()}], 0.1, 0.5
        )
        other = torch.optim.lr_scheduler.StepLR(plain, 1, 0.5)
        for _ in range(4):
            for m, o, factor in ((ours, optimizer, sign), (theirs, plain, 1.0)):
                o.zero_grad()
                (factor * (m(phi) - psi).square().mean()).backward()
                o.step()
            scheduler.step()
            other.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
    assert torch.equal(frozen, torch.ones(2, 2))


def test_a_compiled_step_is_the_step():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, compiles in zip(layers, (False, True), strict=True):
        optimizer = ProximalSGD(layer.parameters(), lr=0.1, strength=0.5)
        layer(torch.ones(2, 4)).square().sum().backward()
        step = torch.compile(optimizer.step, backend="eager") if compiles else optimizer.step
        step()
    torch.testing.assert_close(*(layer.weight for layer in layers))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr above 0"),
        ({"strength": -1.0}, "strength of 0 or more"),
        ({"momentum": 1.0}, "momentum of 0 or more, below 1"),
        ({"axis": 2}, "penalised parameters with an axis 2"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ProximalSGD([nn.Parameter(torch.ones(2, 2))], **settings)


def test_sparse_gradients_are_refused_by_name():
    model = nn.Embedding(5, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="a sparse one of weight"):
        ProximalSGD(model.named_parameters()).step()


def test_it_trains_digits_in_two_lines_on_fewer_neurons():
    X, y = eq.data.load("digits", n=300)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    groups = [{"params": [model[2].weight]}, {"params": [*model[0].parameters(), model[2].bias], "strength": 0.0}]
    optimizer = ProximalSGD(groups, lr=0.2, strength=3e-2, momentum=0.9)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    assert float((model(X).argmax(1) == y).double().mean()) > 0.95
    assert len(active_neurons(model[2].weight)) < 45
