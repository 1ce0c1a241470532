"""Every network of the zoo has exactly the laws that theory gives it, and they hold (T1, T2.2)."""

import pytest
import torch

from equipoise.laws.check import run_backward
from helpers.cases import CASES, case
from helpers.independence import dependent


@pytest.fixture(scope="module", params=[each.name for each in CASES])
def name(request):
    """Each network of the zoo: all tests of one, then those of the next, so that one process derives its laws once."""
    return request.param


def after_backward(name, inputs):
    """The network with random weights and running statistics, after a random loss on a batch."""
    model = case(name).model(seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for label, buffer in model.named_buffers():
            if label.endswith("running_mean"):
                buffer.normal_()
    run_backward(model, inputs, None)
    return model


def another(x, size):
    """A batch of another size; the edges of a graph stay."""
    if x.is_floating_point():
        return 2 * torch.randn(size, *x.shape[1:], dtype=x.dtype)
    return torch.randint(int(x.max()) + 1, (size, *x.shape[1:])) if x.shape[0] != 2 else x


def test_laws_are_those_of_theory(derived, name):
    laws = derived(name)
    assert tuple((law.kind, law.count) for law in laws) == case(name).laws
    assert len({law.name for law in laws}) == len(laws)


def test_no_quantity_follows_from_others(derived, name):
    assert dependent(derived(name), case(name).model()) == 0


def test_every_use_of_every_parameter_is_read(derived, name):
    laws, model = derived(name), case(name).model()
    assert laws.coverage.complete
    trained = {label for label, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(laws.coverage.uses) - set(laws.coverage.frozen) - set(laws.coverage.unused)


def test_residuals_are_rounding_on_any_batch(derived, name):
    torch.manual_seed(1)
    batch = tuple(another(x, 7 if x.shape[0] != 6 else 6) for x in case(name).inputs())
    model = after_backward(name, batch)
    for law, residual in zip(derived(name), derived(name).residual(model).values(), strict=True):
        assert residual < (1e-14 if law.exact else 1e-2), law.name


def test_a_step_changes_every_value_as_predicted(derived, name):
    torch.manual_seed(2)
    model = after_backward(name, case(name).inputs())
    laws = derived(name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    before, predicted = laws.value(model), laws.predict_drift(model, optimizer)
    optimizer.step()
    after = laws.value(model)
    for law in laws:
        size = sum(parameter.square().sum() for label, parameter in model.named_parameters() if label in law.parameters)
        error = (after[law.name] - before[law.name] - predicted[law.name].change).norm()
        assert error < 1e-14 * size.detach(), law.name
        assert predicted[law.name].exact is law.exact


@pytest.mark.parametrize(
    ("torch_nn", "by_hand"),
    [
        ("layer norm", "hand-written layer norm"),
        ("rms norm", "hand-written rms norm"),
        ("attention", "hand-written attention"),
        ("grouped query", "hand-written grouped query"),
        ("nn.RNN", "recurrent"),
    ],
)
def test_hand_written_layers_have_the_laws_of_torch_nn(derived, torch_nn, by_hand):
    signature = lambda name: [(law.kind, law.count, law.exact) for law in derived(name)]  # noqa: E731
    assert signature(torch_nn) == signature(by_hand)


def test_laws_have_these_names(derived):
    assert [law.name for law in derived("attention")] == [
        "0.weight → 1.q.weight + 1.k.weight + 1.v.weight",
        "1.q.weight → 1.k.weight",
        "1.v.weight → 1.o.weight",
        "1.o.weight → 2.weight",
        "shift of 1.k.bias",
    ]
    assert [law.statement for law in derived("linear tail")] == [
        "‖0.weight[i]‖² + 0.bias[i]² - ‖2.weight[:, i]‖²",
        "2.weight 2.weightᵀ + 2.bias 2.biasᵀ - 3.weightᵀ 3.weight",
        "3.weight 3.weightᵀ + 3.bias 3.biasᵀ - 4.weightᵀ 4.weight",
    ]


def test_values_are_what_the_statement_says(derived):
    model, laws = case("linear tail").model(), derived("linear tail")
    weight = {name: parameter.detach() for name, parameter in model.named_parameters()}
    vertex = weight["0.weight"].square().sum(1) + weight["0.bias"] ** 2 - weight["2.weight"].square().sum(0)
    matrix = (
        weight["2.weight"] @ weight["2.weight"].T
        + torch.outer(weight["2.bias"], weight["2.bias"])
        - weight["3.weight"].T @ weight["3.weight"]
    )
    values = list(laws.value(model).values())
    torch.testing.assert_close(values[0], vertex)
    torch.testing.assert_close(values[1], matrix)


def test_values_are_kept_along_the_flow(derived):
    """Ten thousandfold smaller steps, ten thousandfold smaller drift for each unit of time: it is the flow's law."""
    network, drifts = case("linear tail"), []
    for rate, steps in ((1e-2, 10), (1e-3, 100)):
        model = network.model()
        laws, optimizer = derived("linear tail"), torch.optim.SGD(model.parameters(), lr=rate)
        start = laws.value(model)
        for _ in range(steps):
            optimizer.zero_grad()
            model(*network.inputs()).square().sum().backward()
            optimizer.step()
        drifts.append(max(float((value - start[name]).norm()) for name, value in laws.value(model).items()))
    assert drifts[1] < drifts[0] / 5
    assert drifts[1] < 1e-2
