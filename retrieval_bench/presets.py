"""Presets: the backbones that people start from today, each with flags of ``run`` that suit it.

``--preset NAME`` puts the flags of a line below before those that are given, which win; the record is of the flags
alone. The rates are of AdamW. Those of ResNet-50 are Proxy-Anchor's (Kim et al., CVPR 2020), those of ConvNeXt its
authors' for fine-tuning (Liu et al., CVPR 2022), those of CLIP the ones of WiSE-FT (Wortsman et al., CVPR 2022); the
others are of the same order and were not tuned here: starting points for a search. Sizes are those of the pretraining,
but for DINOv2's 518 pixels, which cost six times as much as 224 (16 patches of 14 pixels a side). Small convolutions
train in float32 everywhere; the others ask the device (``--precision auto``).
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_bench.errors import UserError, unknown

LARGE = "--image-size 224 --precision auto"
PRESETS = {
    "efficientnet_lite0": "--backbone efficientnet_lite0 --image-size 224 --lr 3e-4 --weight-decay 1e-4",
    "resnet50": "--backbone resnet50.tv_in1k --image-size 224 --lr 1e-4 --weight-decay 1e-4",
    "convnext_tiny": f"--backbone convnext_tiny.fb_in22k {LARGE} --lr 5e-5 --weight-decay 1e-8 --drop-path 0.1",
    "vit_s16_dino": f"--backbone vit_small_patch16_224.dino {LARGE} --lr 1e-5 --weight-decay 1e-2",
    "vit_s14_dinov2": f"--backbone vit_small_patch14_dinov2.lvd142m {LARGE} --lr 1e-5 --weight-decay 1e-2",
    "vit_b16_clip": f"--backbone vit_base_patch16_clip_quickgelu_224.openai {LARGE} --lr 1e-5 --weight-decay 0.1",
    "vit_b16_siglip": f"--backbone vit_base_patch16_siglip_224.webli {LARGE} --lr 1e-5 --weight-decay 0.1",
}


def expand_preset(words: Sequence[str]) -> list[str]:
    """The words with the flags of ``--preset NAME`` in its place, but for flags that are given themselves. Raises
    :class:`UserError` for a preset without a name, of an unknown name, and for several."""
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--preset=") else [word])]
    if "--preset" not in rest:
        return list(words)
    place = rest.index("--preset")
    name = "".join(rest[place + 1 : place + 2])
    del rest[place : place + 2]
    if not name or name.startswith("-") or "--preset" in rest:
        raise UserError(f"--preset: give the name of one preset: {', '.join(PRESETS)}")
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    given = {word.partition("=")[0].replace("_", "-") for word in rest if word.startswith("--")}
    flags = PRESETS[name].split()
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [*rest[:place], *(word for pair in pairs if pair[0] not in given for word in pair), *rest[place:]]
