import copy
import io
import warnings

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.optim import SAM
from reference import hessian

KINDS = ("plain", "trace", "frobenius", "determinant")


class Bowl(nn.Module):
    """`½ wᵀ A w + ¼ Σ w⁴`, with a Hessian that moves."""

    def __init__(self, size=4, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(size, size, generator=generator).double()
        self.w = nn.Parameter(torch.randn(size, generator=generator).double())
        self.register_buffer("A", root @ root.T / size)

    def forward(self):
        return 0.5 * self.w @ self.A @ self.w + 0.25 * self.w.pow(4).sum()


def closure_of(model, optimizer, sign=1.0):
    def closure():
        optimizer.zero_grad()
        loss = sign * model()
        loss.backward()
        return loss

    return closure


def estimate(kind, q, width):
    """A sharpness from values of `½ zᵀ H z`."""
    return {
        "trace": lambda: 2 * q.mean(),
        "frobenius": lambda: 2 * q.var(),
        "determinant": lambda: -2 * torch.log(torch.exp(-(width**2) * q).mean()),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_it_descends_the_loss_and_the_sharpness_along_the_drawn_directions(kind):
    model, samples = Bowl(), 3
    w = model.w.detach().clone().requires_grad_()
    loss = lambda w: 0.5 * w @ model.A @ w + 0.25 * w.pow(4).sum()  # noqa: E731
    torch.manual_seed(0)
    directions = torch.stack([torch.randn_like(w) for _ in range(samples)])
    q = 0.5 * torch.einsum("mi,ij,mj->m", directions, hessian(loss, w), directions)
    (gradient,) = torch.autograd.grad(loss(w) + 0.3 * estimate(kind, q, 0.5), w)
    torch.manual_seed(0)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), kind, 1e-3, strength=0.3, samples=samples, width=0.5)
    optimizer.step(closure_of(model, optimizer))
    torch.testing.assert_close(model.w.detach(), (w - 0.1 * gradient).detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_estimates_are_those_of_the_exact_hessian(kind):
    generator = torch.Generator().manual_seed(1)
    H = Bowl().A
    directions = torch.randn(400_000, len(H), generator=generator).double()
    exact = {
        "trace": H.trace(),
        "frobenius": H.square().sum(),
        "determinant": torch.logdet(torch.eye(len(H)) + 0.25 * H),
    }[kind]
    q = 0.5 * ((directions @ H) * directions).sum(1)
    torch.testing.assert_close(estimate(kind, q, 0.5), exact, rtol=1e-2, atol=0)


def test_plain_takes_the_gradient_at_the_worst_point_nearby():
    model = Bowl()
    w = model.w.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * w @ model.A @ w + 0.25 * w.pow(4).sum(), w)
    there = (w + 0.2 * gradient / gradient.norm()).detach().requires_grad_()
    (expected,) = torch.autograd.grad(0.5 * there @ model.A @ there + 0.25 * there.pow(4).sum(), there)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2)
    optimizer.step(closure_of(model, optimizer))
    torch.testing.assert_close(model.w.detach(), (w - 0.1 * expected).detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_ascent_of_the_negative_is_descent(kind):
    ends = []
    for sign in (1.0, -1.0):
        torch.manual_seed(3)
        model = Bowl()
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.05, maximize=sign < 0), kind)
        for _ in range(5):
            optimizer.step(closure_of(model, optimizer, sign))
        ends.append(model.w.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_through_a_file_in_the_middle_bit_for_bit(kind):
    torch.manual_seed(0)
    model = Bowl()
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=0.05), kind)
    for _ in range(3):
        optimizer.step(closure_of(model, optimizer))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, file)
    file.seek(0)
    ends = [optimizer.step(closure_of(model, optimizer)) for _ in range(3)]
    loaded = torch.load(file)
    other = Bowl(seed=9)
    other.load_state_dict(loaded["model"])
    again = SAM(torch.optim.AdamW(other.parameters(), lr=0.9), kind)
    again.load_state_dict(loaded["optimizer"])
    torch.set_rng_state(loaded["rng"])
    assert [again.step(closure_of(other, again)) for _ in range(3)] == ends
    assert torch.equal(model.w, other.w)
    assert again.optimizer.param_groups[0]["lr"] == 0.05


def test_it_shares_groups_and_state_with_the_optimizer_that_it_wraps():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    inner = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}], lr=0.1, momentum=0.9)
    optimizer = SAM(inner)
    optimizer.add_param_group({"params": model[1].parameters()})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = copy.deepcopy(model.state_dict())
    loss = lambda: model(torch.ones(4, 3).double()).square().mean()  # noqa: E731
    optimizer.step(closure_of(loss, optimizer))
    scheduler.step()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[1].weight, before["1.weight"])
    assert inner.param_groups[1]["lr"] == 0.05
    assert optimizer.state is inner.state
    assert "momentum_buffer" in optimizer.state[model[1].weight]
    inner.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is inner.param_groups


def test_frozen_unused_and_empty_parameters_stay_and_copies_train_alike():
    torch.manual_seed(0)
    model = Bowl()
    empty, frozen, unused = nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    frozen.requires_grad_(False)
    optimizer = SAM(torch.optim.SGD([model.w, empty, frozen, unused], lr=0.1), "frobenius")
    loss = lambda: model() + empty.sum()  # noqa: E731
    twin_model, twin = copy.deepcopy((model, optimizer))
    optimizer.step(closure_of(loss, optimizer))
    assert torch.equal(frozen, torch.ones(2))
    assert torch.equal(unused, torch.ones(3))
    torch.manual_seed(0)
    torch.randn(0)
    assert twin.optimizer.param_groups[0]["params"][0] is twin_model.w
    twin.step(closure_of(twin_model, twin))
    assert not torch.equal(twin_model.w, Bowl().w)


def test_an_evaluation_that_fails_leaves_the_weights_as_they_were():
    model = Bowl()
    before, calls = model.w.detach().clone(), []
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), "trace")

    def closure():
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return closure_of(model, optimizer)()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert torch.equal(model.w, before)


def test_sparse_gradients_are_refused_by_name():
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = SAM(torch.optim.SGD(model.named_parameters(), lr=0.1))
    with pytest.raises(InputError, match="found a sparse one of weight; make the embedding"):
        optimizer.step(closure_of(lambda: model(torch.tensor([1])).sum(), optimizer))


def bad(**settings):
    return lambda optimizer: SAM(optimizer, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad(sharpness="sharp"), "expected sharpness= to be .*plain.*; found 'sharp'"),
        (bad(rho=0.0), "expected rho to be a positive number"),
        (bad(strength=float("nan")), "expected strength to be a positive number"),
        (bad(sharpness="determinant", width=-1), "expected width to be a positive number"),
        (bad(sharpness="frobenius", samples=1), "expected 2 samples or more"),
        (bad(sharpness="trace", samples=0), "expected 1 samples or more"),
        (lambda optimizer: SAM(optimizer.param_groups[0]["params"]), "expected optimizer= to be an Optimizer"),
        (lambda optimizer: SAM(optimizer).step(), "expected a closure"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(torch.optim.SGD(Bowl().parameters(), lr=0.1))


def test_groups_that_ascend_and_descend_are_refused():
    model = nn.Linear(2, 1)
    groups = [{"params": [model.weight], "maximize": True}, {"params": [model.bias]}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(InputError, match="all minimise or all maximise"):
        optimizer.step(closure_of(lambda: model(torch.ones(1, 2)).sum(), optimizer))


@pytest.mark.parametrize("kind", KINDS)
def test_watch_accuses_nobody(kind):
    X, y = eq.data.load("digits", classes=(0, 1), n=60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), kind)
    loss = lambda: nn.functional.soft_margin_loss(model(X).squeeze(1), y)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with eq.watch(model, optimizer, every=2, quiet=True) as log:
            for _ in range(6):
                optimizer.step(closure_of(loss, optimizer))
    assert log.alarms == []
    assert len(log.notes) <= 1
    assert log.last("residual", "residual", "0.weight → 2.weight") < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_digits_in_two_lines(kind):
    X, y = eq.data.load("digits", classes=(0, 1), n=80)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    loss = lambda: nn.functional.soft_margin_loss(model(X).squeeze(1), y)  # noqa: E731
    first = loss().item()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.5), kind)
    for _ in range(30):
        optimizer.step(closure_of(loss, optimizer))
    assert loss().item() < 0.2 * first
