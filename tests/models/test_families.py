"""A small network of each family of timm, without memory for weights: its blocks, and whether the last one can go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import STEM, TAIL, Backbone
from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.layer_pruning import LayerPruning

FAST = """cait_xxs24_224 coat_tiny densenet121 efficientformer_l1 efficientvim_m1 hrnet_w18_small pit_ti_224
test_convnext test_efficientnet test_resnet test_vit vgg11 visformer_tiny volo_d1_224 xcit_nano_12_p8_224""".split()
SMALLEST = """beit_base_patch16_224 halonet_h1 test_byobnet convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240
csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 dla46x_c dpn48b
edgenext_xx_small efficientformerv2_s0 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0
fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224
sam2_hiera_tiny iformer_t inception_next_atto ens_adv_inception_resnet_v2 adv_inception_v3 inception_v4 lcnetv2_small
levit_128s lowformer_b0 test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 lcnet_035 mobilenetv5_base
mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge jx_nest_tiny nextvit_small test_nfnet
pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224 vitamin_small_224
ese_vovnet19b_slim_dw legacy_xception xception41p""".split()
LISTED = {timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in [*FAST, *SMALLEST]}
SMALLEST += [timm.list_models(module=module)[0] for module in timm.list_modules() if module not in LISTED]
NAMES = [*FAST, "vit_srelpos_small_patch16_224", "vgg11_bn", "torchvision/vgg11_bn", "torchvision/resnet18"]
NAMES += [pytest.param(name, marks=pytest.mark.slow) for name in SMALLEST]


@pytest.fixture(autouse=True)
def without_memory() -> Iterator[None]:
    with torch.device("meta"):
        yield


def tensors(output: Any) -> list[Tensor]:
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [output] if isinstance(output, Tensor) else [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_share_out_the_network_in_order_and_the_last_one_can_go_or_one_line_says_not(name: str) -> None:
    default = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    side = default.input_size[-1] if default else 224  # what it is made for
    backbone = build_backbone(ModelConfig(backbone=name, weights="none"), side)
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    owned = {block.name: set(backbone._named_parameters(block)) for block in backbone.blocks}
    names = {parameter for parameter, _ in backbone.net.named_parameters()}
    assert set().union(*owned.values()) == names
    assert sum(map(len, owned.values())) == len(names)
    if backbone.body:
        check_order(backbone, images, owned)
    try:
        LayerPruning(LayerPruning.Options(drop="last:1")).prepare(Embedder(backbone), images)
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert "cannot be cut there" in message or not backbone.body
        return
    gone = names - {parameter for parameter, _ in backbone.net.named_parameters()}
    last = owned[[block for block in owned if block not in (STEM, TAIL)][-1]]
    assert gone in (last, last | owned.get(TAIL, set()))


def check_order(backbone: Backbone, images: Tensor, owned: dict[str, set[str]]) -> None:
    """Blocks are called in their order, none inside another; they use all of the stem and nothing of the tail."""
    body = [block.name for block in backbone.body]
    assert not [path for path in body for other in body if path.startswith(f"{other}.")]
    called: list[str] = []
    outputs: list[Tensor] = []
    handles = [
        backbone.net.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: called.append(path))
        for path in body
    ]
    last = backbone.net.get_submodule(body[-1])
    handles.append(last.register_forward_hook(lambda *seen: outputs.extend(tensors(seen[-1]))))
    backbone(images)
    for handle in handles:
        handle.remove()
    assert list(dict.fromkeys(called)) == body
    parameters = {name: value for name, value in backbone.net.named_parameters() if value.requires_grad}
    outside = [name for name in parameters if name in owned[STEM] | owned.get(TAIL, set())]
    sums = [output.float().sum() for output in outputs if output.requires_grad]
    gradients = torch.autograd.grad(sums, [parameters[name] for name in outside], allow_unused=True)
    used = {name for name, gradient in zip(outside, gradients, strict=True) if gradient is not None}
    assert used == owned[STEM] & parameters.keys()
