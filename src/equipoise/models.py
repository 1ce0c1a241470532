"""Models as they are passed in: copied with all that they keep, and called on the inputs that they take."""

import copy
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def copied_model(model: nn.Module) -> nn.Module:
    """A deep copy; tensors with a history that modules keep, such as caches, are constants in it."""
    kept = (leaf for module in model.modules() for leaf in pytree.tree_leaves(dict(vars(module))))
    memo: dict[int, object] = {
        id(leaf): leaf.detach().clone() for leaf in kept if isinstance(leaf, Tensor) and not leaf.is_leaf
    }
    return copy.deepcopy(model, memo)


def call_model(model: nn.Module, inputs: object) -> object:
    """The result of a model on a tensor, a sequence of arguments, or a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs) if isinstance(inputs, Tensor) else model(*cast(Sequence[object], inputs))
