"""Segmentation and detection: segmentation-models-pytorch, monai, ultralytics."""

from __future__ import annotations

from typing import Any

from torch import nn

from architectures.architecture import Architecture, images


def _segmentation(name: str, encoder: str = "resnet18", size: int = 64, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)(encoder, encoder_weights=None, classes=3, **settings)

    title = f"smp: {name}, {encoder}"
    return Architecture(title, "segmentation-models-pytorch", build, images(size))


def _monai(
    name: str, size: int = 32, image_channels: int = 1, depth: int | None = None, **settings: Any
) -> Architecture:
    def build() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(**settings)

    title = f"monai: {name}" + (" 3-d" if depth else "")
    return Architecture(title, "monai", build, images(size, image_channels, depth))


def _ultralytics(name: str, size: int = 64, width: float = 0.125, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        from ultralytics.nn import tasks
        from ultralytics.nn.tasks import guess_model_task, yaml_model_load

        definition = yaml_model_load(f"{name}.yaml")
        definition["scale"] = "n"
        kind = {
            "detect": "DetectionModel",
            "segment": "SegmentationModel",
            "classify": "ClassificationModel",
            "pose": "PoseModel",
        }[guess_model_task(definition)]
        definition["scales"] = {"n": [0.33, width, 256]}
        return getattr(tasks, kind)(definition, nc=4, verbose=False, **settings)

    return Architecture(f"ultralytics: {name}", "ultralytics", build, images(size))


_DECODER: dict[str, Any] = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}
_VOLUME: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_FLAT: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}

ARCHITECTURES = [
    _segmentation("Unet", **_DECODER),
    _segmentation("Unet", "mobilenet_v2", **_DECODER),
    _segmentation("Unet", "timm-mobilenetv3_small_minimal_100", **_DECODER),
    _segmentation("UnetPlusPlus", "mobilenet_v2", **_DECODER),
    _segmentation("MAnet", "mobilenet_v2", **_DECODER),
    _segmentation("Linknet", "mobilenet_v2", encoder_depth=3),
    _segmentation("FPN", "mobilenet_v2", decoder_pyramid_channels=32, decoder_segmentation_channels=32),
    _segmentation("PSPNet", "mobilenet_v2", encoder_depth=3, psp_out_channels=32),
    _segmentation("PAN", "mobilenet_v2", size=128, decoder_channels=16),
    _segmentation("DeepLabV3", "mobilenet_v2", decoder_channels=16),
    _segmentation("DeepLabV3Plus", "mobilenet_v2", decoder_channels=16),
    _segmentation("UPerNet", "mobilenet_v2", decoder_channels=16),
    _segmentation("Segformer", "mobilenet_v2", decoder_segmentation_channels=16),
    _monai("UNet", channels=(8, 16, 32), strides=(2, 2), **_FLAT),
    _monai("UNet", size=16, depth=16, channels=(8, 16), strides=(2,), num_res_units=1, **_VOLUME),
    _monai("BasicUNet", features=(8, 8, 16, 16, 16, 8), **_FLAT),
    _monai("AttentionUnet", channels=(8, 16, 32), strides=(2, 2), **_FLAT),
    _monai(
        "DynUNet", kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(8, 16, 32), **_FLAT
    ),
    _monai("SegResNet", init_filters=8, blocks_down=(1, 1), blocks_up=(1,), **_FLAT),
    _monai("VNet", **_FLAT),
    _monai("UNETR", img_size=32, feature_size=8, hidden_size=32, mlp_dim=64, num_heads=4, **_FLAT),
    _monai("SwinUNETR", feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), **_FLAT),
    _monai(
        "HighResNet",
        layer_params=(
            {"name": "conv_0", "n_features": 8, "kernel_size": 3},
            {"name": "res_1", "n_features": 8, "kernels": (3, 3), "repeat": 1},
            {"name": "conv_1", "n_features": 8, "kernel_size": 1},
            {"name": "conv_2", "kernel_size": 1},
        ),
        **_FLAT,
    ),
    _monai("DenseNet", init_features=8, growth_rate=4, block_config=(2, 2), **_FLAT),
    _monai(
        "MedNeXt",
        init_filters=8,
        encoder_expansion_ratio=(2,) * 4,
        decoder_expansion_ratio=(2,) * 4,
        blocks_down=(1,) * 4,
        blocks_up=(1,) * 4,
        blocks_bottleneck=1,
        bottleneck_expansion_ratio=2,
        **_FLAT,
    ),
    _monai(
        "ViT",
        in_channels=1,
        img_size=32,
        patch_size=8,
        hidden_size=32,
        mlp_dim=64,
        num_layers=2,
        num_heads=4,
        classification=True,
        spatial_dims=2,
    ),
    _monai("AutoEncoder", channels=(8, 16), strides=(2, 2), **_FLAT),
    _ultralytics("yolov8n"),
    _ultralytics("yolov8n-seg"),
    _ultralytics("yolov8n-pose"),
    _ultralytics("yolov8n-cls"),
    _ultralytics("yolo11n"),
    _ultralytics("yolo12n", width=0.25),
    _ultralytics("yolov5n"),
    _ultralytics("yolov10n"),
    _ultralytics("yolov6n"),
    _ultralytics("yolo26n"),
]
