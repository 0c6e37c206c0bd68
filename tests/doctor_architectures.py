"""Architectures of transformers from tiny configurations, in the mode in which they are meant to be used."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
DECODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 100,
}
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
WAVES = {
    **TEXT,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _text() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(14).reshape(2, 7) + 3}


def _pairs() -> dict[str, Tensor]:
    return {**_text(), "decoder_input_ids": torch.arange(14).reshape(2, 7) + 3}


def _small() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 3, 64, 64)}


def _wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 800)}


# The model, its configuration, its batch.
ARCHITECTURES: dict[str, tuple[dict[str, Any], Any]] = {
    **dict.fromkeys(("Phi", "GPTNeoX", "Olmo2", "Bert", "Roberta", "MPNet", "Deberta", "DebertaV2"), (TEXT, _text)),
    **dict.fromkeys(("Persimmon", "Falcon"), (TEXT, _text)),
    **dict.fromkeys(("Qwen2", "Cohere", "StableLm", "Granite", "Starcoder2"), (GROUPED, _text)),
    **dict.fromkeys(("Llama", "Mistral", "Qwen3", "Gemma", "Gemma2", "Gemma3Text", "Helium"), (HEADS, _text)),
    "Phi3": ({**GROUPED, "pad_token_id": 0}, _text),
    "Glm": ({**HEADS, "pad_token_id": 0}, _text),
    "Mixtral": ({**HEADS, "num_local_experts": 2}, _text),
    "Electra": ({**TEXT, "embedding_size": 32}, _text),
    "Albert": ({**TEXT, "embedding_size": 16}, _text),
    "ConvBert": ({**TEXT, "embedding_size": 32}, _text),
    "RoFormer": ({**TEXT, "embedding_size": 32}, _text),
    "ModernBert": ({**TEXT, **TOKENS, "cls_token_id": 1, "sep_token_id": 2}, _text),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}, _text),
    "GPTJ": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "rotary_dim": 4}, _text),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}, _text),
    "Mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 100}, _text),
    "DistilBert": ({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100}, _text),
    "XLNet": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 100}, _text),
    "T5": ({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}, _pairs),
    **dict.fromkeys(("Bart", "Pegasus"), (DECODER, _pairs)),
    **dict.fromkeys(("ViT", "DeiT", "Beit", "ViTMAE", "Dinov2", "SiglipVision", "CLIPVision"), (PATCHES, _small)),
    **{
        name: ({"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "window_size": 4}, _small)
        for name in ("Swin", "Swinv2")
    },
    **dict.fromkeys(("ConvNext", "ConvNextV2", "PoolFormer"), (STAGES, _images)),
    **{name: ({**STAGES, "num_attention_heads": [1, 1, 2, 2]}, _images) for name in ("Segformer",)},
    "Pvt": ({**STAGES, "num_attention_heads": [1, 1, 2, 2], "image_size": 64}, _images),
    "Levit": (
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [1, 1, 1],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        _images,
    ),
    "ResNet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, _images),
    "RegNet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8}, _images),
    "Bit": ({"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 8}, _images),
    **{name: ({"depth_multiplier": 0.25}, _images) for name in ("MobileNetV1", "MobileNetV2")},
    "EfficientNet": ({"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}, _images),
    "MobileViT": (
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32]},
        _images,
    ),
    **dict.fromkeys(("Wav2Vec2", "Hubert", "Wav2Vec2Conformer"), (WAVES, _wave)),
    "Nemotron": (GROUPED, _text),
}

# What is left of errors and warnings in training mode, each a fault of the architecture as it is published.
TRUE_FINDINGS = {
    # TensorFlow's decay was copied into torch's momentum (huggingface/transformers#19454).
    "MobileNetV1": {"EN112"},
    "MobileNetV2": {"EN112"},
    # Their initialization draws batch norm weights around 0 as if they were matrices.
    "EfficientNet": {"EN112", "EN705"},
    # And dropout stands before a batch norm, whose statistics it changes in training alone.
    "MobileViT": {"EN402", "EN705"},
    # The weight is kept as 1 + w, and initialized as 1.
    "Nemotron": {"EN705"},
}

# In evaluation nothing is averaged, so a flipped momentum does no harm there; a convention of weights does.
TRUE_WHEN_SERVED = {"Nemotron": {"EN505"}}

# Those that surgery is tested on.
FAMILIES = (
    *("ResNet", "RegNet", "MobileNetV1", "MobileNetV2", "EfficientNet", "ConvNext"),
    *("Swin", "ViT", "Bert", "GPT2", "Llama", "Gemma", "Wav2Vec2"),
)


def build(name: str) -> nn.Module:
    """A model of random weights."""
    transformers = importlib.import_module("transformers")
    settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    model: nn.Module = getattr(transformers, f"{name}Model")(config)
    return model


def batch(name: str) -> dict[str, Tensor]:
    """Inputs for it."""
    inputs: dict[str, Tensor] = ARCHITECTURES[name][1]()
    return inputs
