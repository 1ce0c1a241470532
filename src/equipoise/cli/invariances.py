"""`equipoise invariances`: the laws of a network."""

import equipoise as eq
from equipoise.cli.app import Json, app, integers, line


@app.command
def invariances(
    *, widths: str = "64,64,64,64", inputs: int = 64, linear_tail: int = 3, bias: bool = False, json: Json = False
) -> int:
    """List every law that gradient flow keeps in a reference network.

    Parameters
    ----------
    widths: hidden widths.
    inputs: width of the input.
    """
    model = eq.networks.mlp([inputs, *integers("--widths", widths), 1], linear_tail=linear_tail, bias=bias)
    laws = eq.invariances(model, next(model.parameters()).new_ones(2, inputs))
    rows = [{"name": law.name, "kind": law.kind, "count": law.count} for law in laws]
    print(line({"laws": rows}) if json else str(laws))
    return 0
