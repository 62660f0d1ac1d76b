"""The ResNets of CIFAR-10 (He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2).

A 3x3 convolution to 16 channels, three stages of n basic blocks with 16, 32 and 64 channels, pooling: 6n + 2 layers.
Where the size changes, shortcuts are 1x1 convolutions with a norm (option B of the paper); its own CIFAR networks pad
with zeros (option A), which saves 2,752 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models.resnet import BasicBlock
from torch import nn

DEPTHS = {"cifar_resnet20": 20, "cifar_resnet56": 56}
STAGES = (16, 32, 64)


def cifar_resnet(name: str, pooling: str = "avg") -> nn.Module:
    """The network of that name with random weights (He's normal distribution for convolutions, fan out): normalised
    float images (B, 3, H, W) to features (B, 64) with mean pooling."""
    width = STAGES[0]
    stem = {"conv1": nn.Conv2d(3, width, 3, padding=1, bias=False), "bn1": nn.BatchNorm2d(width), "act1": nn.ReLU()}
    net = nn.Sequential(OrderedDict[str, nn.Module](stem))
    for number, planes in enumerate(STAGES, start=1):
        blocks = []
        for index in range((DEPTHS[name] - 2) // 6):
            stride = 2 if index == 0 and number > 1 else 1
            shortcut = None
            if stride == 2:
                shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
            block: Any = BasicBlock  # timm annotates the class as an instance
            blocks.append(block(width, planes, stride, shortcut))
            width = planes
        net.add_module(f"layer{number}", nn.Sequential(*blocks))
    net.add_module("pool", SelectAdaptivePool2d(pool_type=pooling, flatten=True))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
