"""From a backbone's name and its weights to a :class:`Backbone`, and to the embedder on it.

Names of backbones, in the order they are tried:

- ``efficientnet_lite0``: timm's ``tf_efficientnet_lite0`` with weights that pip alone brings;
- ``<resnet>_caffe`` (``resnet50_caffe``): timm's ResNet with the stride of each stage in the first 1x1 convolution, as in the original
  Caffe models (He et al., CVPR 2016), inputs normalised to mean-subtracted 0..255; its weights come from a file;
- ``torchvision/<resnet>``, ``torchvision/<vgg>_bn``: torchvision's, weights ``IMAGENET1K_V1``; of a VGG the pooled convolutional features;
- anything else: timm's model of that name, with timm's default weights or those of its tag (``resnet50.tv_in1k``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.weights import efficientnet_lite0_weights, load_in_order, load_weights
from retrieval_bench.sections import ModelConfig

Statistics = tuple[float, ...]
IMAGENET: tuple[Statistics, Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE: tuple[Statistics, Statistics] = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)
LITE0: tuple[Statistics, Statistics] = ((0.498,) * 3, (0.502,) * 3)


def build_embedder(config: ModelConfig, image_size: int) -> Embedder:
    """The embedder of `config`; a linear layer draws its weights from torch's global generator."""
    return Embedder(build_backbone(config, image_size), config.embedding_dim)


def build_backbone(config: ModelConfig, image_size: int) -> Backbone:
    """The backbone of `config` with its weights, in eval mode.

    Args:
        config: names, weights, pooling and, if they differ from the usual ones, mean and std.
        image_size: side of the input, pixels (transformers with a fixed input are built for it).

    Raises:
        UserError: unknown name, weights that cannot be downloaded, read or fitted.
    """
    if config.backbone == "efficientnet_lite0":
        net, (mean, std) = _timm("tf_efficientnet_lite0", config, image_size, pretrained=False), LITE0
        if config.weights == "imagenet":
            load_in_order(net, efficientnet_lite0_weights())
    elif config.backbone.endswith("_caffe"):
        if config.weights == "imagenet":
            raise UserError(
                f"--backbone {config.backbone}: its ImageNet weights cannot be downloaded; give --weights FILE.safetensors"
            )
        net, (mean, std) = _timm(config.backbone.removesuffix("_caffe"), config, image_size, pretrained=False), CAFFE
        move_stride_first(net)
    elif config.backbone.startswith("torchvision/"):
        net, (mean, std) = _torchvision(config), IMAGENET
    else:
        net = _timm(config.backbone, config, image_size, pretrained=config.weights == "imagenet")
        mean, std = _timm_statistics(net)
    if config.weights not in ("imagenet", "none"):
        load_weights(net, Path(config.weights).expanduser())
    net.eval()
    return Backbone(net, name_blocks(net), config.mean or mean, config.std or std, _feature_dim(net, image_size))


def full_name(config: ModelConfig) -> str:
    """The backbone's name with the tag of its weights, where timm's default would otherwise choose it (``resnet50.a1_in1k``)."""
    name = config.backbone
    if (
        config.weights != "imagenet"
        or name == "efficientnet_lite0"
        or "/" in name
        or "." in name
        or name.endswith("_caffe")
    ):
        return name
    import timm

    usual = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return f"{name}.{usual.tag}" if usual is not None and usual.tag else name


def move_stride_first(net: nn.Module) -> None:
    """Moves each bottleneck's stride of 2 from its 3x3 to its first 1x1 convolution; raises :class:`UserError` if there is none."""
    moved = 0
    for module in net.modules():
        first, middle = getattr(module, "conv1", None), getattr(module, "conv2", None)
        if (
            isinstance(first, nn.Conv2d)
            and isinstance(middle, nn.Conv2d)
            and first.kernel_size == (1, 1)
            and middle.stride == (2, 2)
        ):
            first.stride, middle.stride = (2, 2), (1, 1)
            moved += 1
    if not moved:
        raise UserError(
            "only bottleneck ResNets have a _caffe variant: resnet50_caffe, resnet101_caffe, resnet152_caffe"
        )


def _timm(name: str, config: ModelConfig, image_size: int, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise unknown(
            "backbone", name, ["efficientnet_lite0", "resnet50_caffe", "torchvision/resnet50", *timm.list_models()]
        )
    options: dict[str, Any] = {} if config.pooling == "default" else {"global_pool": config.pooling}
    try:
        usual = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if usual is not None and usual.fixed_input_size:
            options["img_size"] = image_size
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm and hub clients raise dozens of types; the message must say what to do
        if not pretrained or "tag" in str(error):
            raise UserError(f"timm cannot build {name}: {first_line(error)}") from None
        raise UserError(
            f"cannot download the weights of {name} ({first_line(error)}); give --weights FILE or --weights none"
        ) from None


def _timm_statistics(net: nn.Module) -> tuple[Statistics, Statistics]:
    from timm.data.config import resolve_model_data_config

    resolved = resolve_model_data_config(net)
    return tuple(resolved["mean"]), tuple(resolved["std"])


def _torchvision(config: ModelConfig) -> nn.Module:
    import torchvision
    from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d

    name = config.backbone.removeprefix("torchvision/")
    known = [
        model
        for model in torchvision.models.list_models(module=torchvision.models)
        if re.search(r"resne|^vgg\d+_bn$", model)
    ]
    if name not in known:
        raise unknown("backbone", config.backbone, [f"torchvision/{model}" for model in known])
    try:
        net = torchvision.models.get_model(name, weights="IMAGENET1K_V1" if config.weights == "imagenet" else None)
    except OSError as error:
        raise UserError(
            f"cannot download the weights of {name} ({first_line(error)}); give --weights FILE or --weights none"
        ) from None
    setattr(net, "classifier" if name.startswith("vgg") else "fc", nn.Identity())
    if config.pooling != "default" or name.startswith("vgg"):
        net.avgpool = SelectAdaptivePool2d(pool_type=config.pooling if config.pooling != "default" else "avg")
    return net


def _feature_dim(net: nn.Module, image_size: int) -> int:
    with torch.no_grad():
        try:
            return net(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--image-size {image_size}: the backbone cannot take it ({first_line(error)})") from None
