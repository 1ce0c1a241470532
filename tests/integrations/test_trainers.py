"""The examples, run: a plain loop, Lightning and Hugging Face, on handwritten digits."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def residuals(log):
    return log.table().query("observer == 'residual' and quantity == 'residual'")


def test_a_plain_loop_with_tensorboard(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    log = example("watch_training")(tmp_path, epochs=4)
    assert log.alarms == []
    assert log.last("margin", "accuracy") > 0.6
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard", "watch", "watch.svg"}
    assert "watched 116 steps" in capsys.readouterr().out


# Lightning 2.6 gives advice on workers and loggers as warnings
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_lightning(tmp_path, capsys):
    pytest.importorskip("lightning")
    log = example("watch_lightning")(
        epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    assert log.off == {}
    assert log.alarms == []
    assert set(residuals(log).step) == {1, 10}
    assert residuals(log).value.max() < 1e-6
    assert set(log.table().query("quantity == 'dead'").place) == {"net.0.weight"}
    assert set(log.table().query("quantity == 'mismatch'").place) == {
        "net.0.weight → net.2.weight",
        "net.2.weight → net.3.weight",
    }


def test_hugging_face(capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    log = example("watch_huggingface")(steps=21, disable_tqdm=True)
    assert log.off == {}
    assert log.alarms == []
    assert set(residuals(log).step) == {1, 20}
    assert any("attention.self.query.weight" in place for place in residuals(log).place)
