"""Architectures of transformers, in configurations of one layer (two where a second differs) and two heads."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch import nn

from architectures.entry import BATCH, LENGTH, VOCABULARY, Architecture, Inputs

T.logging.set_verbosity_error()


def _tokens(_: int) -> Inputs:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH))}


def _pairs(_: int) -> Inputs:
    source, target = torch.randint(3, VOCABULARY, (2, BATCH, LENGTH))
    return {"input_ids": source, "decoder_input_ids": target[:, :4]}


def _pixels(size: int = 8, channels: int = 3) -> Callable[[int], Inputs]:
    return lambda _: {"pixel_values": torch.randn(BATCH, channels, size, size)}


def _sound(length: int = 60) -> Callable[[int], Inputs]:
    return lambda _: {"input_values": torch.randn(BATCH, length)}


def _features(_: int) -> Inputs:
    return {"input_features": torch.randn(BATCH, 4, 8), "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, 4))}


def _encoder(w: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": w,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": w + 2,
        "max_position_embeddings": LENGTH + 3,
        "type_vocab_size": 2,
    }


def _decoder(w: int) -> dict[str, Any]:
    common = {key: value for key, value in _encoder(w).items() if key != "type_vocab_size"}
    return {**common, "num_key_value_heads": 1, "use_cache": False, "pad_token_id": 0}


def _gpt(w: int) -> dict[str, Any]:
    return {"vocab_size": VOCABULARY, "n_embd": w, "n_layer": 1, "n_head": 2, "n_positions": 8, "use_cache": False}


def _both(w: int) -> dict[str, Any]:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in {"layers": 1, "attention_heads": 2, "ffn_dim": w + 2}.items()
    }
    return {"vocab_size": VOCABULARY, "d_model": w, "max_position_embeddings": 8, "use_cache": False, **sides}


def _image(w: int) -> dict[str, Any]:
    shared = {"hidden_size": w, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": w + 2}
    return {**shared, "image_size": 8, "patch_size": 4}


def _speech(w: int) -> dict[str, Any]:
    return {
        "hidden_size": w,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": w + 2,
        "conv_dim": (w, w),
        "conv_stride": (4, 2),
        "conv_kernel": (5, 3),
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }


def _stages(w: int, **more: Any) -> dict[str, Any]:
    return {"hidden_sizes": [w, w + 2], "depths": [1, 1], **more}


def _entry(
    name: str,
    config: str,
    base: Callable[[int], dict[str, Any]],
    inputs: Callable[[int], Inputs] = _tokens,
    *,
    head: str = "AutoModel",
    least: int = 4,
    training: bool = False,
    **changes: Any,
) -> Architecture:
    """A model of `getattr(transformers, config)`: `base(width)` with changes, numbers or functions of the width."""

    def build(w: int) -> nn.Module:
        own = {key: value(w) if callable(value) else value for key, value in changes.items()}
        own = {key: value for key, value in {**base(w), **own}.items() if value is not None}
        settings = getattr(T, config)(**own)
        return getattr(T, head).from_config(settings) if head.startswith("Auto") else getattr(T, head)(settings)

    return Architecture(name, "transformers", build, inputs, least, training)


_LM = "AutoModelForCausalLM"

_ENCODERS = (
    _entry("BERT", "BertConfig", _encoder),
    _entry("BERT, masked language model", "BertConfig", _encoder, head="AutoModelForMaskedLM"),
    _entry("RoBERTa", "RobertaConfig", _encoder, max_position_embeddings=LENGTH + 4, pad_token_id=1),
    _entry("ALBERT", "AlbertConfig", _encoder, embedding_size=3, num_hidden_layers=2),
    _entry(
        "DistilBERT",
        "DistilBertConfig",
        lambda w: {"vocab_size": VOCABULARY, "dim": w, "n_layers": 1, "n_heads": 2},
        hidden_dim=lambda w: w + 2,
        max_position_embeddings=8,
    ),
    _entry("ELECTRA", "ElectraConfig", _encoder, embedding_size=3),
    _entry("DeBERTa", "DebertaConfig", _encoder, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _entry("DeBERTa-v2", "DebertaV2Config", _encoder, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _entry("MPNet", "MPNetConfig", _encoder, type_vocab_size=None, max_position_embeddings=LENGTH + 4),
    _entry(
        "XLNet",
        "XLNetConfig",
        lambda w: {"vocab_size": VOCABULARY, "d_model": w, "n_layer": 1, "n_head": 2},
        d_inner=lambda w: w + 2,
    ),
    _entry(
        "MobileBERT",
        "MobileBertConfig",
        _encoder,
        intra_bottleneck_size=4,
        embedding_size=4,
        true_hidden_size=4,
        num_feedforward_networks=1,
    ),
    _entry(
        "SqueezeBERT",
        "SqueezeBertConfig",
        _encoder,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        intermediate_groups=2,
        output_groups=2,
        post_attention_groups=1,
        embedding_size=lambda w: w,
    ),
    _entry(
        "Nyströmformer",
        "NystromformerConfig",
        _encoder,
        segment_means_seq_len=LENGTH,
        num_landmarks=LENGTH,
        conv_kernel_size=3,
    ),
    _entry("BigBird", "BigBirdConfig", _encoder, attention_type="original_full"),
    _entry(
        "Longformer",
        "LongformerConfig",
        _encoder,
        attention_window=[4],
        max_position_embeddings=12,
        inputs=lambda _: {"input_ids": torch.randint(3, VOCABULARY, (BATCH, 4))},
    ),
    _entry(
        "Funnel",
        "FunnelConfig",
        lambda w: {"vocab_size": VOCABULARY, "d_model": w, "d_inner": w + 2, "n_head": 2},
        head="FunnelModel",
        block_sizes=[1, 1],
        block_repeats=[1, 1],
        d_head=lambda w: w // 2,
        num_decoder_layers=1,
    ),
    _entry("FNet", "FNetConfig", _encoder, num_attention_heads=None),
    _entry("ConvBERT", "ConvBertConfig", _encoder, embedding_size=lambda w: w, head_ratio=1, conv_kernel_size=3),
    _entry("RoFormer", "RoFormerConfig", _encoder, embedding_size=lambda w: w),
    _entry(
        "XLM",
        "XLMConfig",
        lambda w: {"n_words": VOCABULARY, "emb_dim": w, "n_layers": 1, "n_heads": 2},
        max_position_embeddings=8,
    ),
    _entry("ERNIE", "ErnieConfig", _encoder),
    _entry("RemBERT", "RemBertConfig", _encoder, input_embedding_size=3, output_embedding_size=3),
    _entry("I-BERT", "IBertConfig", _encoder, max_position_embeddings=LENGTH + 4, pad_token_id=1),
    _entry("YOSO", "YosoConfig", _encoder, max_position_embeddings=8),
    _entry("Megatron-BERT", "MegatronBertConfig", _encoder),
    _entry(
        "ModernBERT",
        "ModernBertConfig",
        _encoder,
        type_vocab_size=None,
        num_hidden_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    _entry("data2vec, text", "Data2VecTextConfig", _encoder, max_position_embeddings=LENGTH + 4, pad_token_id=1),
    _entry(
        "Perceiver",
        "PerceiverConfig",
        lambda w: {"d_latents": w, "d_model": w, "num_latents": 3},
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        inputs=lambda w: {"inputs": torch.randn(BATCH, LENGTH, w)},
    ),
)

_DECODERS = (
    _entry("GPT", "OpenAIGPTConfig", _gpt, use_cache=None),
    _entry("GPT-2", "GPT2Config", _gpt, head=_LM),
    _entry("GPT-BigCode", "GPTBigCodeConfig", _gpt),
    _entry("GPT-J", "GPTJConfig", _gpt, rotary_dim=lambda w: w // 2),
    _entry(
        "GPT-Neo",
        "GPTNeoConfig",
        lambda w: {"vocab_size": VOCABULARY, "hidden_size": w, "num_layers": 2},
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=8,
        use_cache=False,
        intermediate_size=lambda w: w + 2,
        window_size=3,
    ),
    _entry("GPT-NeoX", "GPTNeoXConfig", _decoder, num_key_value_heads=None, head=_LM),
    _entry("CodeGen", "CodeGenConfig", _gpt, n_head=4, rotary_dim=lambda w: w // 4, least=8),
    _entry("CTRL", "CTRLConfig", _gpt, dff=lambda w: w + 2),
    _entry(
        "OPT",
        "OPTConfig",
        lambda w: {"vocab_size": VOCABULARY, "hidden_size": w, "num_hidden_layers": 1},
        ffn_dim=lambda w: w + 2,
        num_attention_heads=2,
        max_position_embeddings=8,
        word_embed_proj_dim=lambda w: w,
        use_cache=False,
    ),
    _entry(
        "BLOOM",
        "BloomConfig",
        lambda w: {"vocab_size": VOCABULARY, "hidden_size": w, "n_layer": 1, "n_head": 2},
        use_cache=False,
    ),
    _entry(
        "MPT",
        "MptConfig",
        lambda w: {"vocab_size": VOCABULARY, "d_model": w, "n_layers": 1, "n_heads": 2},
        max_seq_len=8,
        expansion_ratio=2,
        use_cache=False,
    ),
    _entry("Llama", "LlamaConfig", _decoder, head=_LM),
    _entry("Llama, ReLU, tied", "LlamaConfig", _decoder, head=_LM, hidden_act="relu", tie_word_embeddings=True),
    _entry("Mistral", "MistralConfig", _decoder),
    _entry(
        "Mixtral",
        "MixtralConfig",
        _decoder,
        num_local_experts=2,
        num_experts_per_tok=2,
        experts_implementation="batched_mm",
    ),
    _entry("Qwen2", "Qwen2Config", _decoder),
    _entry(
        "Qwen2-MoE",
        "Qwen2MoeConfig",
        _decoder,
        num_experts=2,
        num_experts_per_tok=2,
        experts_implementation="batched_mm",
        moe_intermediate_size=lambda w: w,
        shared_expert_intermediate_size=lambda w: w,
    ),
    _entry("Qwen3", "Qwen3Config", _decoder, head_dim=lambda w: w // 2),
    _entry("Gemma", "GemmaConfig", _decoder, head_dim=lambda w: w // 2),
    _entry("Gemma 2", "Gemma2Config", _decoder, head_dim=lambda w: w // 2, num_hidden_layers=2),
    _entry("Gemma 3", "Gemma3TextConfig", _decoder, head_dim=lambda w: w // 2),
    _entry("Phi", "PhiConfig", _decoder),
    _entry("Phi-3", "Phi3Config", _decoder),
    _entry("Falcon", "FalconConfig", _decoder, new_decoder_architecture=False, num_kv_heads=1),
    _entry("StableLM", "StableLmConfig", _decoder),
    _entry("OLMo", "OlmoConfig", _decoder),
    _entry("OLMo 2", "Olmo2Config", _decoder),
    _entry("Cohere", "CohereConfig", _decoder),
    _entry("Granite", "GraniteConfig", _decoder),
    _entry("StarCoder2", "Starcoder2Config", _decoder),
    # a LayerNorm of two dimensions of a head leaves their signs only
    _entry("Persimmon", "PersimmonConfig", _decoder, num_key_value_heads=None, num_attention_heads=1),
    _entry("GLM", "GlmConfig", _decoder, head_dim=lambda w: w // 2),
    _entry("Helium", "HeliumConfig", _decoder, head_dim=lambda w: w // 2),
    _entry("SmolLM3", "SmolLM3Config", _decoder),
    _entry("BioGPT", "BioGptConfig", _encoder, type_vocab_size=None, use_cache=False),
    _entry(
        "RWKV",
        "RwkvConfig",
        lambda w: {"vocab_size": VOCABULARY, "hidden_size": w, "num_hidden_layers": 2},
        context_length=8,
        rescale_every=0,  # in evaluation mode the first forward pass would divide weights in place
        use_cache=False,
    ),
    _entry(
        "Mamba",
        "MambaConfig",
        lambda w: {"vocab_size": VOCABULARY, "hidden_size": w, "num_hidden_layers": 1},
        state_size=2,
        time_step_rank=2,
        use_cache=False,
    ),
    _entry(
        "Mamba 2",
        "Mamba2Config",
        lambda w: {"vocab_size": VOCABULARY, "hidden_size": w, "num_hidden_layers": 1},
        state_size=2,
        num_heads=4,
        head_dim=lambda w: w // 2,
        n_groups=1,
        chunk_size=4,
        use_cache=False,
    ),
)

_PAIRS = (
    _entry(
        "T5",
        "T5Config",
        lambda w: {"vocab_size": VOCABULARY, "d_model": w, "d_kv": w // 2, "num_heads": 2},
        _pairs,
        d_ff=lambda w: w + 2,
        num_layers=1,
        relative_attention_num_buckets=4,
        use_cache=False,
    ),
    _entry(
        "T5 1.1, gated",
        "T5Config",
        lambda w: {"vocab_size": VOCABULARY, "d_model": w, "d_kv": w // 2},
        _pairs,
        num_heads=2,
        d_ff=lambda w: w + 2,
        num_layers=1,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=4,
        use_cache=False,
    ),
    _entry("BART", "BartConfig", _both, _pairs),
    _entry("mBART", "MBartConfig", _both, _pairs),
    _entry("Pegasus", "PegasusConfig", _both, _pairs),
    _entry("Marian", "MarianConfig", _both, _pairs, pad_token_id=0),
    _entry("M2M-100", "M2M100Config", _both, _pairs),
    _entry("Blenderbot", "BlenderbotConfig", _both, _pairs),
    _entry(
        "Whisper",
        "WhisperConfig",
        _both,
        _features,
        num_mel_bins=4,
        max_source_positions=4,
        max_target_positions=8,
        max_position_embeddings=None,
        pad_token_id=0,
    ),
)

_SPEECH = (
    _entry("wav2vec 2.0", "Wav2Vec2Config", _speech, _sound()),
    _entry(
        "wav2vec 2.0, layer norms",
        "Wav2Vec2Config",
        _speech,
        _sound(),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    ),
    _entry("HuBERT", "HubertConfig", _speech, _sound()),
    _entry("UniSpeech", "UniSpeechConfig", _speech, _sound()),
    _entry("data2vec, audio", "Data2VecAudioConfig", _speech, _sound(), conv_pos_kernel_size=3),
    _entry(
        "Audio spectrogram transformer",
        "ASTConfig",
        _image,
        lambda _: {"input_values": torch.randn(BATCH, 8, 8)},
        image_size=None,
        max_length=8,
        num_mel_bins=8,
        frequency_stride=4,
        time_stride=4,
    ),
)

_VISION = (
    _entry("ViT", "ViTConfig", _image, _pixels()),
    _entry("DeiT", "DeiTConfig", _image, _pixels()),
    _entry("BEiT", "BeitConfig", _image, _pixels(), use_relative_position_bias=True, layer_scale_init_value=0.1),
    _entry("data2vec, vision", "Data2VecVisionConfig", _image, _pixels()),
    _entry("DINOv2", "Dinov2Config", _image, _pixels(), mlp_ratio=2, intermediate_size=None),
    _entry("SigLIP, vision", "SiglipVisionConfig", _image, _pixels()),
    _entry("CLIP, vision", "CLIPVisionConfig", _image, _pixels()),
    _entry("CLIP, text", "CLIPTextConfig", _encoder, type_vocab_size=None, eos_token_id=2),
    _entry(
        "Swin",
        "SwinConfig",
        lambda w: {"image_size": 8, "patch_size": 2, "embed_dim": w, "window_size": 2},
        _pixels(),
        depths=[1, 1],
        num_heads=[2, 2],
        mlp_ratio=1,
    ),
    _entry(
        "Swin v2",
        "Swinv2Config",
        lambda w: {"image_size": 8, "patch_size": 2, "embed_dim": w, "window_size": 2},
        _pixels(),
        depths=[1],
        num_heads=[2],
        mlp_ratio=1.0,
    ),
    _entry("ConvNeXt", "ConvNextConfig", _stages, _pixels(), patch_size=2, num_stages=2),
    _entry("ConvNeXt v2", "ConvNextV2Config", _stages, _pixels(), patch_size=2, num_stages=2),
    _entry("ResNet", "ResNetConfig", _stages, _pixels(), embedding_size=lambda w: w, layer_type="basic"),
    _entry(
        "ResNet, bottlenecks",
        "ResNetConfig",
        _stages,
        _pixels(),
        embedding_size=lambda w: w,
        hidden_sizes=lambda w: [2 * w, 2 * w],
    ),
    _entry("RegNet", "RegNetConfig", _stages, _pixels(), embedding_size=lambda w: w, groups_width=2),
    _entry(
        "BiT",
        "BitConfig",
        _stages,
        _pixels(),
        embedding_size=lambda w: w,
        num_groups=2,
        hidden_sizes=lambda w: [2 * w, 2 * w],
    ),
    _entry(
        "MobileNet",
        "MobileNetV1Config",
        lambda _: {"depth_multiplier": 0.03, "min_depth": 4, "image_size": 8},
        _pixels(),
    ),
    _entry(
        "MobileNet v2",
        "MobileNetV2Config",
        lambda _: {"depth_multiplier": 0.05, "min_depth": 4},
        _pixels(16),
        depth_divisible_by=4,
        expand_ratio=2,
    ),
    _entry(
        "EfficientNet",
        "EfficientNetConfig",
        lambda _: {"width_coefficient": 0.1, "depth_coefficient": 0.2},
        _pixels(16),
        depth_divisor=4,
        hidden_dim=128,
        image_size=16,
        kernel_sizes=[3, 3],
        in_channels=[8, 8],
        out_channels=[8, 8],
        depthwise_padding=[],
        strides=[1, 2],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 2],
        squeeze_expansion_ratio=0.25,
    ),
    _entry(
        "SegFormer",
        "SegformerConfig",
        lambda w: {"hidden_sizes": [w, w], "depths": [1, 1]},
        _pixels(16),
        num_encoder_blocks=2,
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[2, 2],
        mlp_ratios=[1, 1],
    ),
    _entry(
        "PoolFormer",
        "PoolFormerConfig",
        lambda w: {"hidden_sizes": [w, w], "depths": [1, 1]},
        _pixels(16),
        patch_sizes=[3, 3],
        strides=[2, 2],
        padding=[1, 1],
        num_encoder_blocks=2,
        mlp_ratio=2.0,
    ),
    _entry(
        "PVT",
        "PvtConfig",
        lambda w: {"hidden_sizes": [w, w], "depths": [1, 1], "image_size": 16},
        _pixels(16),
        num_encoder_blocks=2,
        num_attention_heads=[1, 2],
        sequence_reduction_ratios=[2, 1],
        patch_sizes=[4, 2],
        strides=[4, 2],
        mlp_ratios=[1, 1],
    ),
    _entry(
        "LeViT",
        "LevitConfig",
        lambda w: {"hidden_sizes": [8, 8], "depths": [1, 1], "image_size": 32},
        _pixels(32),
        training=True,  # in evaluation it keeps results of one pass for the next, which has no gradient then
        num_attention_heads=[1, 2],
        key_dim=[4, 4],
        mlp_ratio=[1, 1],
        attention_ratio=[1, 1],
        down_ops=[["Subsample", 4, 2, 1, 1, 2]],
        patch_size=16,
    ),
    _entry(
        "MobileViT",
        "MobileViTConfig",
        lambda w: {"hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4] * 7},
        _pixels(32),
        image_size=32,
        num_attention_heads=2,
        mlp_ratio=1.0,
        expand_ratio=1.0,
    ),
    _entry(
        "FocalNet",
        "FocalNetConfig",
        lambda w: {"image_size": 8, "patch_size": 2, "embed_dim": w},
        _pixels(),
        depths=[1],
        hidden_sizes=lambda w: [w],
        focal_levels=[1],
        focal_windows=[3],
        mlp_ratio=1.0,
    ),
)

ENTRIES = (*_ENCODERS, *_DECODERS, *_PAIRS, *_SPEECH, *_VISION)
