"""A Hugging Face training under watch
===================================

A small BERT reads handwritten digits, one pixel a token.

::

    python examples/watch_huggingface.py
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from equipoise.integrations.huggingface import WatchCallback


def main(steps=60, **arguments):
    set_seed(0)
    digits = load_digits()
    data = [
        {"input_ids": torch.tensor(pixels, dtype=torch.long), "labels": int(label)}
        for pixels, label in zip(digits.data, digits.target, strict=True)
    ]
    config = BertConfig(
        vocab_size=17,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=10,
    )
    model = BertForSequenceClassification(config)
    watching = WatchCallback(every=20)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            **arguments,
        )
        Trainer(model=model, args=settings, train_dataset=data, callbacks=[watching]).train()
    return watching.log


if __name__ == "__main__":
    main()
