import torch
from torch import nn

from equipoise.graph.capture import capture
from equipoise.graph.chain import read_tail


def names(model, *shape):
    return [layer.weight for layer in read_tail(capture(model, torch.ones(2, *shape)))]


class Skip(nn.Module):
    """A residual block, and a tail above the sum; the second layer of the tail may be read twice."""

    def __init__(self, read_twice=False):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 1)
        self.read_twice = read_twice

    def forward(self, x):
        h = self.first(x + self.down(torch.relu(self.up(x))))
        return self.last(self.second(h) + h if self.read_twice else self.second(h))


def test_the_tail_of_any_network():
    assert names(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), 4) == ["2.weight"]
    assert names(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Tanh()), 4) == []
    trunk = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    assert names(nn.Sequential(*trunk, nn.Linear(27, 5), nn.Linear(5, 2)), 1, 8, 8) == ["4.weight", "5.weight"]


def test_it_ends_where_something_else_reads_or_adds():
    assert names(Skip(), 4) == ["first.weight", "second.weight", "last.weight"]
    assert names(Skip(read_twice=True), 4) == ["last.weight"]


def test_several_outputs_have_no_tail():
    class Both(Skip):
        def forward(self, x):
            h = self.first(x)
            return self.last(self.second(h)), h

    assert names(Both(), 4) == []


def test_pointwise_convolutions_belong_and_others_do_not():
    layers = [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 3, 1)]
    assert names(nn.Sequential(*layers), 2, 6, 6) == ["1.weight", "2.weight"]
    # a flattened image is read position by position: the two unfoldings of the kernel differ
    assert names(nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(16, 1)), 2, 2, 2) == ["2.weight"]
    assert names(nn.Sequential(nn.Conv2d(2, 4, 2), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5, 1)), 2, 2, 2) == [
        "1.weight",
        "3.weight",
    ]


def test_a_layer_used_twice_ends_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.again, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.last(self.again(self.again(x)))

    assert names(Twice(), 3) == ["last.weight"]
