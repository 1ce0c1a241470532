"""Balanced initialisation: the function that was drawn, with every conserved quantity at zero."""

from torch import nn

from equipoise.arguments import checked
from equipoise.graph.capture import Inputs
from equipoise.transform import balance


@checked
def balanced_(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Balance a model in place: the same function, weights of least norm, every conserved quantity zero.

    Gradient flow then keeps them at zero, which is what results on balanced initialisation suppose (Arora et al. 2019).
    To learn what could not be balanced, call `eq.balance`, which returns a report.

    Args:
        model: any module that `eq.invariances` reads, with values.
        example_inputs: a tensor, a sequence of arguments or a mapping of keywords, with values.

    Returns:
        The same module.

    Raises:
        InputError, CaptureError: as `eq.balance`; the model is then unchanged.

    >>> import torch, equipoise as eq
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> x = torch.ones(2, 3).double()
    >>> laws = eq.invariances(eq.init.balanced_(model, x), x)
    >>> [float(value.abs().max()) < 1e-12 for value in laws.value(model).values()]
    [True]
    """
    model.load_state_dict(balance(model, example_inputs).model.state_dict())
    return model
