"""The figure of SpotTune's routes, from the facts in records: rates per block, per class and per epoch, and images with their routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.figures.canvas import (
    FAINT,
    SMALL,
    TEXT,
    WIDTH,
    Picture,
    dress,
    heat_map,
    legend_above,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from retrieval_bench.experiments.study import Record

SHOWN_CLASSES = 40
SHOWN_IMAGES = 12
PAGE_CLASSES = 20
"""Classes in a figure for a page."""


def draw(
    records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]
) -> list[str]:
    """Writes a PNG about the first record that has routes, beside the mean rates of all settings in `others`, and a second one with images
    and their routes; without such a record, nothing."""
    found = [
        (f"{name}, seed {made[0]['seed']}", made[0]) for name, made in records.items() if made and is_routed(made[0])
    ]
    if not found:
        return []
    name, record = found[0]
    learned, tested = record["facts"]["spottune"], record["facts"]["routes"]
    figure = new_figure((15, 9.6))
    axes = figure.subplot_mosaic(
        [["classes", "epochs"], ["classes", "sets"], ["classes", "entropy"]], width_ratios=(1, 1.1)
    )
    _classes(axes["classes"], tested)
    _epochs(axes["epochs"], learned, tested)
    _data_sets(axes["sets"], others)
    _entropy(axes["entropy"], learned)
    distinct = _distinct(tested)
    save_figure(figure, path, f"{name}: {distinct}\n{heading}")
    pictures = path.with_name(f"{path.stem}-images.png")
    figure = new_figure((15, 2.6))
    _examples(figure, tested["examples"], images)
    save_figure(
        figure,
        pictures,
        "test images with few, some and many tuned blocks; below each its route, first block left, yellow where tuned",
    )
    return [
        f"{distinct}. Images with their routes are in `{pictures.name}` where the study was run: they belong to the data set.",
        "",
    ]


def _classes(axes: Any, tested: dict[str, Any], most: int = SHOWN_CLASSES) -> None:
    """Share of tuned blocks, a row per class, the mean of all test images on top."""
    chosen = dict(list(tested["rate_by_class"].items())[:most])
    heat_map(
        axes, _rates([tested["rate"], *chosen.values()]), ["all test images", *(name[:28] for name in chosen)], "share"
    )
    _words(axes, "share of test images for which a block is tuned, by class")


def _epochs(axes: Any, learned: dict[str, Any], tested: dict[str, Any]) -> None:
    """The same over the training images of each epoch, most probable blocks, the test images below."""
    rates = _rates([*learned["argmax_rate_per_epoch"], tested["rate"]])
    heat_map(axes, rates, [*(f"epoch {epoch}" for epoch in range(1, len(rates))), "test"])
    _words(axes, "the same over the training (policy in training mode) and at test")


def _data_sets(axes: Any, records: Sequence[Record]) -> None:
    """The same for each setting that SpotTune was tested in, the newest record of each."""
    routed = sorted(filter(is_routed, records), key=lambda record: str(record.get("finished", "")))
    newest = {_setting(record): record for record in routed}
    if newest:
        heat_map(axes, _rates([record["facts"]["routes"]["rate"] for record in newest.values()]), list(newest))
    _words(axes, "the same by data set and setting")


def _rates(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Float (rows, blocks), NaN where a network has fewer blocks."""
    width = max(map(len, rows))
    return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows], dtype=float)


def _words(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=TEXT)
    axes.set_xlabel("block", fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)


def _setting(record: Record) -> str:
    data, model, train = (record["config"][section] for section in ("data", "model", "train"))
    size = f"{data['image_size']} px, {train['epochs']} epochs" + (
        f", {data['classes']} classes" if data["classes"] else ""
    )
    return f"{data['dataset']} {data['split']},\n{model['backbone']}, {size}"


def routes(record: Record, title: str = "") -> Picture:
    """The share of tuned blocks by class, by epoch and at test, and the entropy of the policy.

    Args:
        record: of a run with SpotTune, see :func:`is_routed`.
        title: of the picture.
    """
    learned, tested = record["facts"]["spottune"], record["facts"]["routes"]
    rows = (1 + min(PAGE_CLASSES, len(tested["rate_by_class"])), len(learned["argmax_rate_per_epoch"]) + 1)
    heights = (0.8 + 0.14 * rows[0], 0.8 + 0.14 * rows[1], 1.9)
    figure = new_figure((WIDTH, sum(heights)))
    classes, epochs, entropy = figure.subplots(3, 1, height_ratios=heights)
    _classes(classes, tested, PAGE_CLASSES)
    _epochs(epochs, learned, tested)
    _entropy(entropy, learned)
    dress(entropy, ylabel="entropy, bits")
    legend_above(entropy)
    text = (
        f"{_distinct(tested)}; on average {np.nanmean(_rates([tested['rate']])):.0%} of the blocks are tuned at test."
    )
    return Picture(title or "Routes of SpotTune", text, figure)


def _distinct(tested: dict[str, Any]) -> str:
    return (
        f"{tested['distinct']:,} distinct routes of {tested['images']:,} test images, {tested['entropy_bits']:.2f} bits"
    )


def is_routed(record: Record) -> bool:
    """Whether a record has learned routes."""
    return "routes" in record["facts"] and "argmax_rate_per_epoch" in record["facts"].get("spottune", {})


def _entropy(axes: Any, learned: dict[str, Any]) -> None:
    """Mean entropy of a decision per epoch, and of the blocks with the lowest and highest one."""
    entropy = np.array(learned["entropy_per_epoch"])
    epochs = np.arange(1, len(entropy) + 1)
    axes.fill_between(epochs, entropy.min(1), entropy.max(1), color=FAINT, lw=0, label="lowest and highest block")
    axes.plot(epochs, entropy.mean(1), "o-", ms=4, label="mean over blocks")
    axes.set(
        xlabel="epoch", ylabel="bits", ylim=(0, 1.05), title="entropy of the policy's decisions on training images"
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7, loc="lower left")


def _examples(figure: Any, examples: dict[str, str], images: ImageTable) -> None:
    """Test images from few to many tuned blocks, each above its route, a square per block: filled where tuned."""
    places = np.linspace(0, len(examples) - 1, min(SHOWN_IMAGES, len(examples))).round().astype(int)
    ordered = sorted(examples.items(), key=lambda example: example[1].count("1"))
    chosen = [ordered[place] for place in places]
    axes = figure.subplots(2, len(chosen), height_ratios=(9, 1), squeeze=False)
    for (path, route), (above, below) in zip(chosen, axes.T, strict=True):
        bits = np.array([[int(digit) for digit in route]])
        above.imshow(_picture(path, images))
        above.set_title(f"{route.count('1')} tuned", fontsize=7)
        below.imshow(bits, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])


def _picture(path: str, images: ImageTable) -> np.ndarray:
    """uint8 (H, W, 3) of the image at most 160 pixels wide and high; grey where it cannot be read any more."""
    from retrieval_bench.data.reading import read_image

    try:
        picture = read_image(images.root / path)
    except UserError:
        return np.full((64, 64, 3), 200, dtype=np.uint8)
    picture.thumbnail((160, 160))
    return np.asarray(picture)
