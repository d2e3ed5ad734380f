"""Diffusion models of diffusers, from configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from architectures.architecture import Architecture


def _diffusers(name: str, inputs: Any, title: str | None = None, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        import diffusers

        return getattr(diffusers, name)(**settings)

    return Architecture(f"diffusers: {title or name}", "diffusers", build, inputs)


def _noisy(batch: int) -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(batch, 3, 16, 16), "timestep": torch.randint(0, 1000, (batch,))}


def _conditioned(batch: int) -> dict[str, torch.Tensor]:
    return {
        "sample": torch.randn(batch, 4, 16, 16),
        "timestep": torch.randint(0, 1000, (batch,)),
        "encoder_hidden_states": torch.randn(batch, 5, 16),
    }


_UNET = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}

ARCHITECTURES = [
    _diffusers(
        "UNet2DModel",
        _noisy,
        **_UNET,
        sample_size=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ),
    _diffusers(
        "UNet2DConditionModel",
        _conditioned,
        **_UNET,
        sample_size=16,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ),
    _diffusers(
        "AutoencoderKL",
        lambda batch: {"sample": torch.randn(batch, 3, 32, 32)},
        **_UNET,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    ),
    _diffusers(
        "VQModel",
        lambda batch: {"sample": torch.randn(batch, 3, 32, 32)},
        **_UNET,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
    ),
    _diffusers(
        "AutoencoderTiny",
        lambda batch: {"sample": torch.rand(batch, 3, 32, 32)},
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ),
    _diffusers(
        "DiTTransformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 4, 8, 8),
            "timestep": torch.randint(0, 1000, (batch,)),
            "class_labels": torch.randint(0, 10, (batch,)),
        },
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=10,
    ),
    _diffusers(
        "PixArtTransformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 4, 8, 8),
            "timestep": torch.randint(0, 1000, (batch,)),
            "encoder_hidden_states": torch.randn(batch, 5, 16),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        sample_size=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=16,
    ),
    _diffusers(
        "SD3Transformer2DModel",
        lambda batch: {
            "hidden_states": torch.randn(batch, 4, 8, 8),
            "timestep": torch.randint(0, 1000, (batch,)),
            "encoder_hidden_states": torch.randn(batch, 5, 32),
            "pooled_projections": torch.randn(batch, 16),
        },
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
    ),
    _diffusers(
        "Transformer2DModel",
        lambda batch: {"hidden_states": torch.randn(batch, 16, 8, 8)},
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        num_layers=2,
        norm_num_groups=8,
    ),
    _diffusers(
        "UNet1DModel",
        lambda batch: {"sample": torch.randn(batch, 6, 16), "timestep": torch.randint(0, 99, (batch,))},
        sample_size=16,
        in_channels=6,
        out_channels=6,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownResnetBlock1D",) * 2,
        up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D",
        out_block_type="OutConv1DBlock",
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        act_fn="swish",
        layers_per_block=1,
        extra_in_channels=0,
        downsample_each_block=False,
    ),
]
