"""Transformers from configuration: text, vision, speech and several modalities."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from architectures.architecture import Architecture, images, tokens

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
VISION = {key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}


def _from_config(model: str, config: str, settings: dict[str, Any], inputs: Any) -> Architecture:
    def build() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**settings)
        return getattr(transformers, model)(made)

    return Architecture(f"transformers: {model}", "transformers", build, inputs)


def _encoder(family: str, head: str = "ForSequenceClassification", **settings: Any) -> Architecture:
    return _from_config(f"{family}{head}", f"{family}Config", {**SMALL, **settings}, tokens())


def _decoder(family: str, head: str = "ForCausalLM", **settings: Any) -> Architecture:
    return _from_config(
        f"{family}{head}", f"{family}Config", {**SMALL, "use_cache": False, "pad_token_id": 0, **settings}, tokens()
    )


def _by_keyword(name: str, size: int, channels: int = 3) -> Any:
    make = images(size, channels)
    return lambda batch: {name: make(batch)[0]}


def _seq2seq(batch: int) -> Any:
    return {**tokens()(batch), "decoder_input_ids": torch.randint(3, 64, (batch, 7))}


def _pixels_and_text(batch: int) -> Any:
    return {**tokens(length=8)(batch), "pixel_values": torch.randn(batch, 3, 32, 32)}


_SMALL_T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}
_SMALL_BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32,
    "use_cache": False,
}  # fmt: skip
_SMALL_CLIP = {"text_config": {**SMALL}, "vision_config": {**VISION, "image_size": 32, "patch_size": 8},
               "projection_dim": 16}  # fmt: skip
_AUDIO = {
    **SMALL, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2,
}  # fmt: skip


def _wave(batch: int) -> Any:
    return {"input_values": torch.randn(batch, 400)}


ARCHITECTURES = [
    _encoder("Bert"),
    _encoder("Bert", "ForTokenClassification"),
    _encoder("Bert", "ForMaskedLM"),
    _encoder("Roberta", max_position_embeddings=40),
    _encoder("XLMRoberta", max_position_embeddings=40),
    _encoder("Electra", embedding_size=16),
    _encoder("Albert", embedding_size=16),
    _encoder("MobileBert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    _encoder("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    _encoder("ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    _encoder("ConvBert", embedding_size=32),
    _from_config(
        "FunnelForSequenceClassification",
        "FunnelConfig",
        {
            "vocab_size": 64,
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 64,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
            "max_position_embeddings": 32,
        },
        tokens(),
    ),
    _encoder("FNet", "Model"),
    _encoder("Nystromformer", num_landmarks=4, segment_means_seq_len=12),
    _from_config(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32},
        tokens(),
    ),
    _from_config(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False},
        tokens(),
    ),
    _decoder("GPTNeoX"),
    _decoder("GPTNeo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    _decoder("OPT", ffn_dim=64, word_embed_proj_dim=32),
    _decoder("Bloom", n_layer=2, n_head=4),
    _decoder("Falcon", num_kv_heads=2),
    _decoder("Llama", num_key_value_heads=2),
    _decoder("Mistral", num_key_value_heads=2),
    _decoder("Mixtral", num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1),
    _decoder("Qwen2", num_key_value_heads=2),
    _decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    _decoder("Gemma", num_key_value_heads=2, head_dim=8),
    _decoder("Gemma2", num_key_value_heads=2, head_dim=8),
    _decoder("Phi3", num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    _decoder("Phi", num_key_value_heads=2),
    _decoder("StableLm", num_key_value_heads=2),
    _decoder("Olmo2", num_key_value_heads=2),
    _decoder("Cohere", num_key_value_heads=2),
    _decoder("Mamba", state_size=4),
    _decoder("Mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=4),
    _from_config("T5ForConditionalGeneration", "T5Config", _SMALL_T5, _seq2seq),
    _from_config("BartForConditionalGeneration", "BartConfig", _SMALL_BART, _seq2seq),
    _from_config("MarianMTModel", "MarianConfig", {**_SMALL_BART, "pad_token_id": 0}, _seq2seq),
    _from_config(
        "ViTForImageClassification",
        "ViTConfig",
        {**VISION, "image_size": 32, "patch_size": 8},
        _by_keyword("pixel_values", 32),
    ),
    _from_config(
        "DeiTForImageClassification",
        "DeiTConfig",
        {**VISION, "image_size": 32, "patch_size": 8},
        _by_keyword("pixel_values", 32),
    ),
    _from_config(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {**VISION, "image_size": 32, "patch_size": 8},
        _by_keyword("pixel_values", 32),
    ),
    _from_config(
        "BeitForImageClassification",
        "BeitConfig",
        {**VISION, "image_size": 32, "patch_size": 8},
        _by_keyword("pixel_values", 32),
    ),
    _from_config(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        {
            **VISION,
            "image_size": 32,
            "patch_size": 8,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
            # With nothing masked its loss is 0 / 0.
            "mask_ratio": 0.5,
        },
        lambda batch: {"pixel_values": torch.randn(batch, 3, 32, 32), "noise": torch.rand(batch, 16)},
    ),
    _from_config(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
        _by_keyword("pixel_values", 32),
    ),
    _from_config(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
        _by_keyword("pixel_values", 32),
    ),
    _from_config(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
            "num_labels": 3,
        },
        _by_keyword("pixel_values", 64),
    ),
    _from_config(
        "YolosForObjectDetection",
        "YolosConfig",
        {**VISION, "image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5},
        _by_keyword("pixel_values", 32),
    ),
    _from_config("CLIPModel", "CLIPConfig", _SMALL_CLIP, _pixels_and_text),
    _from_config("SiglipModel", "SiglipConfig", _SMALL_CLIP, _pixels_and_text),
    _from_config("Wav2Vec2ForCTC", "Wav2Vec2Config", _AUDIO, _wave),
    _from_config("HubertForCTC", "HubertConfig", _AUDIO, _wave),
    _from_config(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_SMALL_BART,
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        lambda batch: {
            "input_features": torch.randn(batch, 16, 40),
            "decoder_input_ids": torch.randint(3, 64, (batch, 7)),
        },
    ),
    _from_config(
        "ASTForAudioClassification",
        "ASTConfig",
        {**VISION, "max_length": 40, "num_mel_bins": 32, "patch_size": 8},
        lambda batch: {"input_values": torch.randn(batch, 40, 32)},
    ),
    _from_config(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "num_input_channels": 2,
            "context_length": 32,
            "prediction_length": 4,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 32,
            "ffn_dim": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "loss": "mse",
        },
        lambda batch: {"past_values": torch.randn(batch, 32, 2)},
    ),
    _from_config(
        "PatchTSMixerForPrediction",
        "PatchTSMixerConfig",
        {
            "num_input_channels": 2,
            "context_length": 32,
            "prediction_length": 4,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 16,
            "num_layers": 2,
            "loss": "mse",
        },
        lambda batch: {"past_values": torch.randn(batch, 32, 2)},
    ),
    _from_config(
        "DecisionTransformerModel",
        "DecisionTransformerConfig",
        {
            "state_dim": 5,
            "act_dim": 2,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "max_ep_len": 20,
            "vocab_size": 1,
            "n_positions": 64,
        },
        lambda batch: {
            "states": torch.randn(batch, 6, 5),
            "actions": torch.randn(batch, 6, 2),
            "rewards": torch.randn(batch, 6, 1),
            "returns_to_go": torch.randn(batch, 6, 1),
            "timesteps": torch.randint(0, 20, (batch, 6)),
            "attention_mask": torch.ones(batch, 6),
        },
    ),
]
