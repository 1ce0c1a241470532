"""LoRA adapters in PEFT's file format, merged into their base."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import equipoise as eq
from equipoise.checkpoint.adapters import merge
from equipoise.checkpoint.opened import open_checkpoint
from equipoise.errors import InputError

PREFIX = "base_model.model."


def base():
    return {
        "model.q_proj.weight": torch.randn(6, 5),
        "model.conv.weight": torch.randn(4, 3, 2, 2),
        "model.embed.weight": torch.randn(9, 5),
        "model.head.weight": torch.randn(9, 6, dtype=torch.bfloat16),
    }


def adapter(folder, factors, **config):
    folder.mkdir(exist_ok=True)
    save_file({name: its.contiguous() for name, its in factors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config))
    return folder


def pair(module, out, inputs, r=2):
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(r, inputs),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(out, r),
    }


def update(factors, module):
    return factors[f"{PREFIX}{module}.lora_B.weight"] @ factors[f"{PREFIX}{module}.lora_A.weight"]


def merged(state, folder):
    return {stored.name: stored.read() for stored in merge(open_checkpoint(state), folder).tensors}


def test_linear_layers_at_each_scale(tmp_path):
    state, factors = base(), pair("model.q_proj", 6, 5) | pair("model.head", 9, 6)
    delta, head = update(factors, "model.q_proj"), update(factors, "model.head")
    for config, scale in (({}, 4), ({"use_rslora": True}, 8 / math.sqrt(2)), ({"alpha_pattern": {"q_proj": 2}}, 1)):
        found = merged(state, adapter(tmp_path / "a", factors, **config))
        assert torch.allclose(found["model.q_proj.weight"], state["model.q_proj.weight"] + scale * delta, atol=1e-5)
    assert found["model.head.weight"].dtype == torch.float32
    assert torch.allclose(found["model.head.weight"], state["model.head.weight"].float() + 4 * head, atol=1e-5)
    assert found["model.embed.weight"] is not None
    assert torch.equal(found["model.embed.weight"], state["model.embed.weight"])


def test_convolutions_embeddings_and_conv1d(tmp_path):
    state = base() | {"h.c_fc.weight": torch.randn(5, 7)}
    factors = {
        f"{PREFIX}model.conv.lora_A.weight": torch.randn(2, 3, 2, 2),
        f"{PREFIX}model.conv.lora_B.weight": torch.randn(4, 2, 1, 1),
        f"{PREFIX}model.embed.lora_embedding_A": torch.randn(2, 9),
        f"{PREFIX}model.embed.lora_embedding_B": torch.randn(5, 2),
    }
    found = merged(state, adapter(tmp_path / "a", factors))
    a, b = factors[f"{PREFIX}model.conv.lora_A.weight"], factors[f"{PREFIX}model.conv.lora_B.weight"]
    kernel = state["model.conv.weight"] + 4 * torch.einsum("or,rikl->oikl", b[..., 0, 0], a)
    assert torch.allclose(found["model.conv.weight"], kernel, atol=1e-5)
    a, b = factors[f"{PREFIX}model.embed.lora_embedding_A"], factors[f"{PREFIX}model.embed.lora_embedding_B"]
    assert torch.allclose(found["model.embed.weight"], state["model.embed.weight"] + 4 * (b @ a).T, atol=1e-5)
    turned = pair("h.c_fc", 7, 5)
    found = merged(state, adapter(tmp_path / "b", turned, fan_in_fan_out=True))
    assert torch.allclose(found["h.c_fc.weight"], state["h.c_fc.weight"] + 4 * update(turned, "h.c_fc").T, atol=1e-5)


def test_the_table_is_that_of_the_merged_weights(tmp_path):
    state, factors = base(), pair("model.q_proj", 6, 5)
    save_file(state, tmp_path / "model.safetensors")
    folder = adapter(tmp_path / "adapter", factors)
    by_hand = state | {"model.q_proj.weight": state["model.q_proj.weight"] + 4 * update(factors, "model.q_proj")}
    found, expected = eq.analyze(tmp_path / "model.safetensors", adapter=folder), eq.analyze(by_hand)
    for name in ("model.q_proj.weight", "model.embed.weight"):
        row, other = (table.set_index("name").loc[name, "stable_rank"] for table in (found, expected))
        assert row == pytest.approx(other, rel=1e-5)
    alone = eq.analyze(folder)  # not merged unless asked: its factors are matrices too
    assert len(alone) == 2
    assert (alone["numerical_rank"] == 2).all()


def test_a_base_saved_without_its_outer_prefix(tmp_path):
    state = {"q_proj.weight": torch.randn(6, 5)}
    factors = pair("model.q_proj", 6, 5)
    found = merged(state, adapter(tmp_path / "a", factors))
    assert not torch.equal(found["q_proj.weight"], state["q_proj.weight"])


def test_adapters_that_cannot_be_merged(tmp_path):
    good = pair("model.q_proj", 6, 5)

    def refuse(words, factors=good, **config):
        with pytest.raises(InputError, match=words):
            merge(open_checkpoint(base()), adapter(tmp_path / "a", factors, **config))

    refuse("found DoRA", use_dora=True)
    refuse("found IA3", peft_type="IA3")
    refuse("lora_alpha as a number", lora_alpha="many")
    refuse("for the adapter to change; found none", pair("model.absent", 6, 5))
    refuse("factors for model.q_proj.weight", pair("model.q_proj", 7, 5))
    refuse("both factors", dict(list(good.items())[:1]))
    refuse("A and B alone", good | {f"{PREFIX}model.q_proj.lora_magnitude_vector": torch.ones(6)})
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        merge(open_checkpoint(base()), tmp_path)
