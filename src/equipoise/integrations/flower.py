"""Flower: FedLRGD as a strategy of its servers, and the reply of its clients (Jadbabaie, Makur & Shah 2023).

A round sends the model and the server's points to the clients, gets `r` weights of each, and descends on the server:
see `equipoise.optim.fed_lrgd`, which does the same in one process. Federated averaging is Flower's own `FedAvg`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]
from torch import nn

from equipoise.optim.federated import Examples, LossFunction, anchor_parameters, descend, server_weights

POINTS, SETTINGS = "server-points", "fedlrgd"  # records of a message
WEIGHTS = "weights"


class FedLRGD(FedAvg):
    """Low-rank federated gradient descent: clients send a weight for each point of the server, which descends alone.

    Use `lrgd_reply` in the `@app.train()` of the clients. One round is the method of the paper; further rounds begin
    from where the server has come to.

    Args:
        model: the architecture; its parameters are those of the arrays that a round begins with.
        server: the points of the server, as `(X, y)`.
        loss: the mean of outputs and targets.
        steps: of the server's descent in a round.
        lr: its learning rate.
        anchors: the number of parameters at which clients compare gradients.
        spread: their distance from the current ones.
        seed: of the anchors.
        **settings: of Flower's `FedAvg`, such as `fraction_train`.
    """

    def __init__(
        self,
        model: nn.Module,
        server: Examples,
        loss: LossFunction,
        *,
        steps: int = 100,
        lr: float = 0.1,
        anchors: int = 4,
        spread: float = 1.0,
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.model, self.server, self.loss, self.steps, self.lr = model, server, loss, steps, lr
        self.anchoring = {"anchors": anchors, "spread": float(spread), "seed": seed}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's messages, with the points of the server and how to draw the anchors."""
        self.model.load_state_dict(arrays.to_torch_state_dict())
        points = ArrayRecord({"X": self.server[0], "y": self.server[1]})
        for message in super().configure_train(server_round, arrays, config, grid):
            message.content[POINTS] = points
            message.content[SETTINGS] = ConfigRecord(dict(self.anchoring))
            yield message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the weights, by examples, and the descent with it; None where no client replied."""
        averaged, metrics = super().aggregate_train(server_round, replies)
        if averaged is None:
            return None, metrics
        weights = averaged.to_torch_state_dict()[WEIGHTS]
        descend(self.model, self.server, self.loss, weights, steps=self.steps, lr=self.lr)
        return ArrayRecord(self.model.state_dict()), metrics


def lrgd_reply(message: Message, model: nn.Module, examples: Examples, loss: LossFunction) -> Message:
    """The reply of a client to a round of `FedLRGD`.

    Args:
        message: as the client's `@app.train()` got it.
        model: the architecture; its parameters are replaced by those of the message.
        examples: of the client, as `(X, y)`.
        loss: the mean of outputs and targets.

    Returns:
        A message with the weights and the number of examples.
    """
    content = message.content
    model.load_state_dict(content["arrays"].to_torch_state_dict())
    points = content[POINTS].to_torch_state_dict()
    asked = content[SETTINGS]
    anchors = anchor_parameters(model, int(asked["anchors"]), float(asked["spread"]), int(asked["seed"]))
    weights = server_weights(model, examples, (points["X"], points["y"]), loss, anchors)
    records = {
        "arrays": ArrayRecord({WEIGHTS: weights}),
        "metrics": MetricRecord({"num-examples": len(examples[0]), "weight": float(torch.linalg.vector_norm(weights))}),
    }
    return Message(content=RecordDict(records), reply_to=message)
