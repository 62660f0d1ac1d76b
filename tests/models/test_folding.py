from __future__ import annotations

import pytest
import torch
from torch import nn

from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.folding import Norm, fold_norms
from retrieval_bench.sections import ModelConfig
from tests.models.test_channels import lively
from tests.training.helpers import random_images


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "efficientnet_lite0", "efficientnet_b0"])
def test_outputs_stay_and_no_norm_is_left(name: str) -> None:
    backbone, images = lively(name, 64), random_images(3, side=64)
    norms = sum(isinstance(module, Norm) for module in backbone.modules())
    with torch.no_grad():
        expected = backbone(images)
        assert fold_norms(backbone, 64) == norms
        found = backbone(images)
    assert not any(isinstance(module, Norm) for module in backbone.modules())
    assert ((found - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all()


def test_a_norm_without_a_convolution_before_it_stays() -> None:
    backbone = build_backbone(ModelConfig(backbone="resnet10t", weights="none"), 32)
    first = backbone.net.get_submodule("bn1")
    backbone.net.set_submodule("bn1", nn.Sequential(nn.ReLU(), first))
    before = sum(isinstance(module, Norm) for module in backbone.modules())
    assert fold_norms(backbone, 32) == before - 1
    assert any(module is first for module in backbone.modules())
