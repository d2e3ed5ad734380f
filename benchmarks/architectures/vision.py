"""Image classifiers and backbones of timm and torchvision, vision models of transformers and PyTorch alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from architectures.architecture import Architecture, images


def _timm(name: str, size: int = 32, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        import timm

        if name[0].isupper():
            return getattr(timm.models, name)(num_classes=10, **settings)
        return timm.create_model(name, pretrained=False, num_classes=10, **settings)

    return Architecture(f"timm: {name}", "timm", build, images(size))


# Settings of torchvision's networks that their own functions fix.
_SMALL = {
    "swin_t": ("SwinTransformer", {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                                   "window_size": [4, 4]}),
    "vit_b_16": ("VisionTransformer", {"patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32,
                                       "mlp_dim": 64}),
}  # fmt: skip


def _torchvision(name: str, size: int = 64, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        from torchvision import models

        if name in _SMALL:
            kind, small = _SMALL[name]
            return getattr(models, kind)(**small, **settings, num_classes=10)
        more = {"weights_backbone": None} if "lraspp" in name or "deeplab" in name else {}
        return models.get_model(name, weights=None, num_classes=10, **more, **settings)

    return Architecture(f"torchvision: {name}", "torchvision", build, images(size))


# timm's own networks for tests, which are as small as their families can be.
_TESTS = [
    "test_byobnet", "test_coatnet", "test_convnext", "test_convnext2", "test_convnext3", "test_efficientnet",
    "test_efficientnet_evos", "test_efficientnet_gn", "test_efficientnet_ln", "test_mambaout", "test_nfnet",
    "test_resnet",
]  # fmt: skip

ARCHITECTURES = [
    *(_timm(name) for name in _TESTS if name != "test_coatnet"),
    _timm("test_coatnet", img_size=64, size=64),
    _timm("test_maxvit", img_size=64, size=64),
    *(_timm(name, img_size=32) for name in ("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos")),
    _timm("mobilenetv3_small_050", size=64),
    _timm("mobilenetv4_conv_small_050", size=64),
    _timm("efficientnet_lite0", size=64),
    _timm("lcnet_035", size=64),
    _timm("tinynet_e", size=64),
    _timm("ghostnet_050", size=64),
    _timm("ghostnetv2_100", size=64),
    _timm("repvgg_a0", size=64),
    _timm("repghostnet_050", size=64),
    _timm("fastvit_t8", size=64),
    _timm("mobileone_s0", size=64),
    _timm("hardcorenas_a", size=64),
    _timm("mixnet_s", size=64),
    _timm("rexnet_100", size=64, width_mult=0.35),
    _timm("regnetx_002", size=64),
    _timm("regnety_002", size=64),
    _timm("resnet10t", size=64, channels=(8, 16, 24, 32)),
    _timm("resnest14d", size=64, base_width=16),
    _timm("res2net50_14w_8s", size=64, layers=(1, 1, 1, 1)),
    _timm("darknet17", size=64),
    _timm("ese_vovnet19b_slim_dw", size=64),
    _timm("dla46x_c", size=64),
    _timm("hrnet_w18_small", size=64),
    _timm("densenet121", size=64, growth_rate=8, block_config=(2, 2, 2, 2)),
    _timm("dpn48b", size=64),
    _timm("convnext_atto", depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)),
    _timm("convnextv2_atto", depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)),
    _timm("convmixer_1024_20_ks9_p14", size=56, dim=32, depth=3),
    _timm("inception_next_atto", size=64, depths=(1, 1, 1, 1)),
    _timm("poolformer_s12", size=64, layers=(1, 1, 1, 1), embed_dims=(16, 24, 32, 48)),
    _timm("caformer_s18", size=64, depths=(1, 1, 1, 1), dims=(16, 32, 64, 96)),
    _timm("edgenext_xx_small", size=64),
    _timm("efficientformer_l1", size=224, depths=(1, 1, 1, 1), embed_dims=(16, 24, 32, 48)),
    _timm("efficientvit_b0", size=64),
    _timm("efficientvit_m0", size=224),
    _timm("mobilevit_xxs", size=64),
    _timm("mobilevitv2_050", size=64),
    _timm("levit_128s", size=224),
    _timm("deit_tiny_distilled_patch16_224", img_size=64, size=64, embed_dim=48, depth=2),
    _timm("eva02_tiny_patch14_224", img_size=56, size=56, embed_dim=48, depth=2, num_heads=3),
    _timm("beit_base_patch16_224", img_size=64, size=64, embed_dim=48, depth=2, num_heads=3),
    _timm("cait_xxs24_224", img_size=64, size=64, embed_dim=48, depth=2, num_heads=3),
    _timm("xcit_nano_12_p16_224", img_size=64, size=64, embed_dim=32, depth=2, num_heads=4),
    _timm(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        size=64,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
    ),
    _timm("pvt_v2_b0", size=64),
    _timm("twins_svt_small", size=224, embed_dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
    _timm("crossvit_tiny_240", size=240),
    _timm("tnt_s_legacy_patch16_224", size=224, depth=2),
    _timm("visformer_tiny", size=224),
    _timm("MlpMixer", size=64, img_size=64, patch_size=16, num_blocks=2, embed_dim=48),
    _timm("starnet_s050", size=64),
    _torchvision("squeezenet1_1"),
    _torchvision("resnet18"),
    _torchvision("mobilenet_v2", width_mult=0.35),
    _torchvision("mobilenet_v3_small"),
    _torchvision("mnasnet0_5"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("googlenet", aux_logits=False, init_weights=False),
    _torchvision("regnet_y_400mf"),
    _torchvision("swin_t", size=32),
    _torchvision("vit_b_16", size=32, image_size=32),
    _torchvision("lraspp_mobilenet_v3_large"),
    _torchvision("deeplabv3_mobilenet_v3_large"),
]
