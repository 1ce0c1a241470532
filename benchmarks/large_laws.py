"""Derive the laws of a LLaMA-shaped decoder whose weights are on `meta`, beside torch.export of the same model.

python benchmarks/large_laws.py [layers] [width]

CPU seconds of one process, and the largest resident set. "capture" is export with a free batch and its
decompositions; "derivation" is all the rest of `invariances`.
"""

import itertools
import resource
import sys
import time

import torch
import transformers
from torch import Tensor, nn

from equipoise import invariances
from equipoise.graph.capture import capture


def decoder(layers: int, width: int) -> nn.Module:
    """Heads of 128, four of them to each head of keys and values."""
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 512,
        attn_implementation="eager",
        use_cache=False,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


def measure(layers: int, width: int) -> str:
    model = decoder(layers, width)
    inputs: dict[str, Tensor] = {"input_ids": torch.zeros(1, 8, dtype=torch.long, device="meta")}
    seconds = [time.process_time()]
    torch.export.export(model, (), inputs, strict=False)
    seconds.append(time.process_time())
    capture(model, inputs)
    seconds.append(time.process_time())
    laws = invariances(model, inputs)
    seconds.append(time.process_time())
    export, captured, total = (later - earlier for earlier, later in itertools.pairwise(seconds))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return (
        f"{layers} layers of {width}: {parameters:.2f} G parameters, {len(laws)} laws; export {export:.1f} s, "
        f"capture {captured:.1f} s, derivation {total - captured:.1f} s, memory {memory:.2f} GB"
    )


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    print(measure(*(given or [32, 4096])))
