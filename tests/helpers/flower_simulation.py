"""Three clients in Flower's simulation: prints the distance from `fed_lrgd` in one process, the loss, the rounds."""

import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from torch import nn

from equipoise.integrations.flower import FedLRGD, lrgd_reply
from equipoise.optim import fed_lrgd

CLIENTS = 3
SETTINGS = {"steps": 200, "lr": 0.2, "anchors": 5, "seed": 3}


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(6).double())
        self.register_buffer("c", torch.linspace(-1, 1, 6).double())

    def forward(self, x):
        return torch.exp(-(x - self.c).square()) @ self.a


def loss(output, y):
    return (output - y).square().mean()


def examples(k):
    x = 2 * torch.rand(20 + 5 * k, 1, generator=torch.Generator().manual_seed(k)).double() - 1
    return x, torch.sin(2 * x[:, 0])


def points():
    x = torch.cos(torch.pi * (torch.arange(12).double() + 0.5) / 12)[:, None]
    return x, torch.sin(2 * x[:, 0])


client, server, found = ClientApp(), ServerApp(), {}


@client.train()
def train(message, context):
    return lrgd_reply(message, Kernel(), examples(int(context.node_config["partition-id"])), loss)


@server.main()
def main(grid, context):
    strategy = FedLRGD(
        Kernel(),
        points(),
        loss,
        fraction_evaluate=0.0,
        min_available_nodes=CLIENTS,
        min_train_nodes=CLIENTS,
        **SETTINGS,
    )
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(Kernel().state_dict()), num_rounds=1)
    found.update(a=result.arrays.to_torch_state_dict()["a"], rounds=len(result.train_metrics_clientapp))


if __name__ == "__main__":
    run_simulation(server, client, CLIENTS, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    alone = fed_lrgd(Kernel(), [examples(k) for k in range(CLIENTS)], points(), loss, **SETTINGS)
    print(float((found["a"] - alone.model.a.detach()).norm()), alone.losses[-1], found["rounds"])
