"""LoRA adapters in PEFT's file format, merged into their base."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import equipoise as eq
from equipoise.checkpoint.effective.adapters import merge
from equipoise.checkpoint.readers.opening import open_checkpoint
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
    return {entry.name: entry.read() for entry in merge(open_checkpoint(state), folder).tensors}


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


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"q_proj": torch.nn.Linear(6, 6), "v_proj": torch.nn.Linear(6, 6)}) for _ in range(2)
        )
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.score = torch.nn.Linear(6, 2)


PATTERNS = {r".*layers\.1\..*(q_proj|v_proj)": 6, "q_proj": 3, r"layers.0.v_proj": 5}
OPTIONS = {
    "plain": {},
    "patterns": {"rank_pattern": PATTERNS, "alpha_pattern": {"^layers.1.q_proj": 16, r"[qv]_proj": 2, "conv": 9}},
    "stabilised": {"use_rslora": True, "alpha_pattern": {"0.q_proj": 64}, "rank_pattern": {"v_proj": 3}},
    "bias": {"lora_bias": True, "target_modules": ["q_proj"], "modules_to_save": ["score"]},
    "bias of the base": {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]},
    "orthogonal": {"init_lora_weights": "orthogonal", "target_modules": ["q_proj"]},
}


@pytest.mark.filterwarnings("ignore:.*have invalid shape:UserWarning")  # PEFT, of its own lora_bias
@pytest.mark.parametrize("name", OPTIONS)
def test_the_weights_are_those_that_peft_merges(name, tmp_path):
    peft = pytest.importorskip("peft")
    model = Small()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["embed", "conv", "q_proj", "v_proj"]} | OPTIONS[name]
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    fresh = Small()
    fresh.load_state_dict(state)  # loaded anew: PEFT sorts the patterns as it saves them
    expected = peft.PeftModel.from_pretrained(fresh, tmp_path).merge_and_unload().state_dict()
    found = merged(state, tmp_path)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.allclose(found[key].float(), value, rtol=1e-5, atol=1e-5), key
    changed = {key for key, value in expected.items() if not torch.equal(value, state[key])}
    assert len(changed) >= 2


@pytest.mark.parametrize("options", [{"use_dora": True}, {}])
def test_a_model_that_peft_adapts_in_memory(options):
    peft = pytest.importorskip("peft")
    targets = ["embed", "conv", "q_proj"]
    adapted = peft.get_peft_model(Small(), peft.LoraConfig(r=2, target_modules=targets, **options))
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    found = eq.analyze(adapted, heavy_tail=False).set_index("name")
    assert not any("lora" in name for name in found.index)
    for name, value in adapted.merge_and_unload().state_dict().items():
        if value.dim() > 1:
            row = found.loc[f"base_model.model.{name}"]
            expected = torch.linalg.svdvals(value.double().flatten(1))[:5].tolist()
            assert row["singular_values"] == pytest.approx(expected, rel=1e-5), name
    assert found.loc["base_model.model.conv.weight", "type"] == "conv2d"


def test_patterns_are_regular_expressions_and_the_first_counts(tmp_path):
    """As `peft.utils.get_pattern_key`: at the start of a name or after a dot, up to its end."""
    state = {"model.layers.1.q_proj.weight": torch.randn(6, 5), "model.layers.11.q_proj.weight": torch.randn(6, 5)}
    factors = pair("model.layers.1.q_proj", 6, 5) | pair("model.layers.11.q_proj", 6, 5)
    for patterns, scales in (
        ({r".*\.layers\.1\..*(q_proj|v_proj)": 64, "q_proj": 2}, (32, 1)),
        ({"q_proj": 2, r".*\.layers\.1\..*": 64}, (1, 1)),
        ({"1.q_proj": 64}, (32, 4)),  # not the end of a number
        ({"layers.1.q": 64, "proj": 2}, (4, 4)),  # not a part of a name
        ({r"layers\.\d+\.[qk]_proj": 6}, (3, 3)),
    ):
        found = merged(state, adapter(tmp_path / "a", factors, alpha_pattern=patterns))
        for place, scale in zip((1, 11), scales, strict=True):
            name = f"model.layers.{place}.q_proj"
            expected = state[f"{name}.weight"] + scale * update(factors, name)
            assert torch.allclose(found[f"{name}.weight"], expected, atol=1e-4), (patterns, name)
    factors = pair("model.layers.1.q_proj", 6, 5, r=4)
    found = merged(state, adapter(tmp_path / "r", factors, r=2, rank_pattern={r"layers\.1\..*": 4}, use_rslora=True))
    delta = 8 / 2 * update(factors, "model.layers.1.q_proj")
    expected = state["model.layers.1.q_proj.weight"] + delta
    assert torch.allclose(found["model.layers.1.q_proj.weight"], expected, atol=1e-4)


def test_whole_tensors_biases_and_attention(tmp_path):
    state = {
        "model.q_proj.weight": torch.randn(6, 5),
        "model.q_proj.bias": torch.zeros(6),
        "attn.in_proj_weight": torch.eye(6)[:, :2],
    }
    factors = pair("model.q_proj", 6, 5) | pair("attn", 6, 2)
    bias, score = torch.randn(6), torch.randn(2, 5)
    whole = {f"{PREFIX}model.q_proj.lora_B.bias": bias, f"{PREFIX}score.weight": score}
    found = merged(state, adapter(tmp_path / "a", factors | whole))
    assert torch.allclose(found["model.q_proj.bias"], 4 * bias)
    assert torch.equal(found["score.weight"], score)  # a head that the base does not have
    delta = 4 * update(factors, "attn")
    assert torch.allclose(found["attn.in_proj_weight"], state["attn.in_proj_weight"] + delta, atol=1e-5)
    replaced = {f"{PREFIX}model.q_proj.base_layer.weight": torch.ones(6, 5)}
    found = merged(state, adapter(tmp_path / "b", pair("model.q_proj", 6, 5) | replaced, lora_alpha=0))
    assert torch.equal(found["model.q_proj.weight"], torch.ones(6, 5))
    torch.save({name: its for name, its in factors.items() if "q_proj" in name}, tmp_path / "b" / "adapter_model.bin")
    (tmp_path / "b" / "adapter_model.safetensors").unlink()
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    expected = state["model.q_proj.weight"] + 4 * update(factors, "model.q_proj")
    assert torch.allclose(merged(state, tmp_path / "b")["model.q_proj.weight"], expected, atol=1e-5)


def test_adapters_that_cannot_be_merged(tmp_path):
    good = pair("model.q_proj", 6, 5)

    def refuse(words, factors=good, **config):
        with pytest.raises(InputError, match=words):
            merge(open_checkpoint(base()), adapter(tmp_path / "a", factors, **config))

    refuse("found DoRA", use_dora=True)
    for kind in ("IA3", "LOHA", "LOKR", "ADALORA", "VERA", "OFT", "PROMPT_TUNING"):
        refuse(f"found {kind}; merge it with PEFT", peft_type=kind)
    for start in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "unheard_of"):
        refuse(f"init_lora_weights='{start}', which changes the base", init_lora_weights=start)
    refuse("layer_replication", layer_replication=[[0, 4], [2, 5]])
    refuse("target_parameters", target_parameters=["experts.down_proj"])
    refuse("activated LoRA", alora_invocation_tokens=[1, 2])
    refuse("found use_something_new", use_something_new=True)
    refuse("factors of rank 8 for model.q_proj, as adapter_config.json says; found rank 2", r=8)
    refuse("regular expressions as patterns", alpha_pattern={"(": 3})
    refuse("patterns as a dictionary", alpha_pattern=[3])
    refuse("one adapter; found a, b", {f"{PREFIX}x.lora_{s}.{n}.weight": torch.ones(2, 2) for s in "AB" for n in "ab"})
    refuse(
        "factors for model.conv.weight",
        pair("model.conv", 4, 12) | {f"{PREFIX}model.conv.lora_B.weight": torch.ones(4, 1)},
    )
    refuse("lora_alpha as a number", lora_alpha="many")
    refuse("for the adapter to change; found none", pair("model.absent", 6, 5))
    refuse("factors for model.q_proj.weight", pair("model.q_proj", 7, 5))
    refuse("both factors", dict(list(good.items())[:1]))
    refuse("A and B alone", good | {f"{PREFIX}model.q_proj.lora_magnitude_vector": torch.ones(6)})
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        merge(open_checkpoint(base()), tmp_path)


def test_patterns_that_may_take_forever_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    module = "a" * 40
    base = {f"model.{module}.weight": torch.randn(4, 3)}
    for pattern in ("(a+)+b", "(a|aa)" * 30 + "b", ".*a.*a.*a.*a.*a.*b", "a?" * 30 + "a" * 30):
        where = adapter(tmp_path / "a", pair(f"model.{module}", 4, 3), rank_pattern={pattern: 2})
        with pytest.raises(InputError, match="quickly compared"):
            eq.analyze(base, adapter=where)
    usual = {r"model\\.(a|b)+": 2} | {f"layers.{place}.q": 2 for place in range(500)} | {".*a": 2}
    usual.pop(r"model\\.(a|b)+")
    where = adapter(tmp_path / "a", pair(f"model.{module}", 4, 3), rank_pattern=usual)
    assert len(eq.analyze(base, adapter=where)) == 1
