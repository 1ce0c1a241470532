"""Balanced initialisation: the function that was drawn, with every conserved quantity at zero."""

from torch import nn

from equipoise.arguments import checked
from equipoise.errors import InputError
from equipoise.graph.capture import Inputs
from equipoise.modes import default_modes
from equipoise.transform import balance


@checked
@default_modes()
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
        InputError: as `eq.balance`, and for weights created in inference mode; the model is then unchanged.
        CaptureError: as `eq.balance`.

    >>> import torch, equipoise as eq
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> x = torch.ones(2, 3).double()
    >>> laws = eq.invariances(eq.init.balanced_(model, x), x)
    >>> [float(value.abs().max()) < 1e-12 for value in laws.value(model).values()]
    [True]
    """
    created = next((name for name, weight in model.named_parameters() if weight.is_inference()), None)
    if created is not None:
        raise InputError(
            expected="weights that can be changed in place",
            found=f"{created}, created in torch.inference_mode()",
            remedy="create the model outside it, or pass copy.deepcopy(model)",
        )
    model.load_state_dict(balance(model, example_inputs).model.state_dict())
    return model
