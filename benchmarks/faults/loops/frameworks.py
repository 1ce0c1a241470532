"""Trainers that run the loop themselves: accelerate, Lightning, Hugging Face."""

import tempfile
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from loops.base import STEPS, Loop, batch, loss_of, recipe
from loops.models import perceptron


def _examples() -> TensorDataset:
    return TensorDataset(*batch(0, 16 * STEPS))


def _at_once(model: nn.Module, optimizer: Any, train: Any) -> Loop:
    """All steps are taken in the first."""

    def step(number: int) -> None:
        if number == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                train()

    return Loop(model, optimizer, step)


def _accelerated(precision: str) -> Loop:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = perceptron()
    called, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))

    def step(number: int) -> None:
        optimizer.zero_grad()
        accelerator.backward(loss_of(called, number))
        accelerator.clip_grad_norm_(called.parameters(), 1.0)
        optimizer.step()

    return Loop(model, optimizer, step, watched=called)


@recipe
def accelerate() -> Loop:
    return _accelerated("no")


@recipe
def accelerate_bf16() -> Loop:
    return _accelerated("bf16")


def _lightning(**settings: Any) -> Loop:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()
            self.own = torch.optim.SGD(self.net.parameters(), lr=0.05)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, both: Any, index: int) -> Tensor:
            return F.cross_entropy(self(both[0]), both[1])

        def configure_optimizers(self) -> Any:
            return self.own

    model = Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def train() -> None:
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet, **settings)
        trainer.fit(model, DataLoader(_examples(), 16))

    return _at_once(model, model.own, train)


@recipe
def lightning() -> Loop:
    return _lightning()


@recipe
def lightning_bf16_accumulating() -> Loop:
    return _lightning(precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=0.1)


def _hugging_face(**settings: Any) -> Loop:
    import transformers

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    model, (x, y) = Net(), batch(0, 16 * STEPS)
    rows = [{"x": one, "labels": other} for one, other in zip(x, y, strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def train() -> None:
        fixed = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 99}
        asked = transformers.TrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=16, max_steps=STEPS, **fixed, **settings
        )
        transformers.Trainer(model, asked, train_dataset=rows, optimizers=(optimizer, None)).train()

    return _at_once(model, optimizer, train)


@recipe
def hugging_face() -> Loop:
    return _hugging_face()


@recipe
def hugging_face_bf16_accumulating() -> Loop:
    return _hugging_face(bf16=True, gradient_accumulation_steps=2)
