"""What ``recommend`` chooses from the sizes of a folder, and which runs it makes next: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from retrieval_bench.config import RunConfig
from retrieval_bench.evaluation.statistics import SEEDS
from retrieval_bench.experiments.benchmarks import EMOJI, PHOTOS
from retrieval_bench.experiments.experiment import Row, row

FROZEN, STANDARD = "frozen", "standard"
COMPARED: dict[str, tuple[float, dict[str, str | int]]] = {
    FROZEN: (0.1, {}),
    STANDARD: (1.0, {}),
    "last_k": (0.7, {"options.last_k.k": 3}),
    "lp_ft": (1.0, {}),
    "wise_ft": (1.3, {"options.wise_ft.alpha": "0.5"}),
    "layer_pruning": (0.9, {"options.layer_pruning.drop": "last:1"}),
}
"""Strategies in the order in which they are tried: about what one costs beside standard fine-tuning, and its options.
In the Reality Check nothing was above standard; the others are cheaper, or keep more of the pretrained network."""
PROXIES, PAIRS = "proxy_anchor", "multi_similarity"
MOST_IMAGES = {"cpu": 200, "cuda": 2000}
"""Images that are compared on, per minute that is given."""
SMALL = 100
"""Pixels; smaller pictures are treated as drawings: shown nearly whole, and not mirrored."""
BACKWARD = 3.5
"""Time to train on an image over the time to embed one, until the first training is measured."""
STANDARD_SHARE = 0.5
"""Share of the time that standard fine-tuning of all folds, and once of everything, may take."""


def choose_config(sizes: Sequence[int], side: int, device: str = "cpu") -> RunConfig:
    """A configuration that suits images of one's own, on folds of all their classes.

    Proxies need several images of each class, and epochs, to settle; where most classes have fewer than four images,
    the loss compares pairs, with two images of each class in a batch. Small sets are shown more often.

    Args:
        sizes: images of each class, at least four classes.
        side: median of the images' shorter sides, pixels.
        device: cpu or cuda.
    """
    images, folds, has_pairs = sum(sizes), min(4, len(sizes) // 2), median(sizes) < 4
    batch, training = 64 if images >= 2000 else 32, len(sizes) - -(-len(sizes) // folds)
    like, usual = (EMOJI, 72) if side < SMALL else (PHOTOS, 224 if device == "cuda" else 112)
    return RunConfig(data=PHOTOS).changed(
        data__dataset="table",
        data__split="kfold",
        data__folds=folds,
        data__image_size=min(usual, max(32, side // 8 * 8)),
        data__crop_scale=like.crop_scale,
        data__flip=like.flip,
        loss__loss=PAIRS if has_pairs else PROXIES,
        train__batch_size=min(batch, 2 * training) if has_pairs else batch,
        train__samples_per_class=2 if has_pairs else 0,
        train__epochs=min(12, max(4, round(20_000 / images))),
        train__fused=True,
    )


def fitting_epochs(config: RunConfig, images: int, all_images: int, embedding: float, seconds: float) -> int:
    """Epochs, from 2 to those of `config`, with which standard fine-tuning keeps to its share of `seconds`.

    Args:
        config: as :func:`choose_config` gives it.
        images: that are compared on.
        all_images: that the winner is trained on in the end.
        embedding: seconds to embed an image.
        seconds: for everything.
    """
    passes = images * (config.data.folds - 1) + all_images
    return int(min(config.train.epochs, max(2, STANDARD_SHARE * seconds / (BACKWARD * embedding * passes))))


def compared_rows(config: RunConfig, fold: int) -> list[Row]:
    """The rows on one fold. Frozen features are the same whatever the epochs, so their runs have the same names."""
    rows = [row(config, name, {"strategy": name, "data.fold": fold, **own}) for name, (_, own) in COMPARED.items()]
    rows[0] = row(rows[0].config, FROZEN, {"train.epochs": 2})
    return [entry for entry in rows if entry.name != "lp_ft" or config.loss.loss == PROXIES]


def next_runs(
    names: Sequence[str], folds: int, done: Mapping[str, Mapping[int, float]], seconds: float
) -> list[tuple[str, int]]:
    """The runs to make next, as row and fold; none when the comparison is over.

    First frozen features on all folds and one run of standard fine-tuning, which show how long the others will take.
    Then row by row, all folds of each, as long as they fit: only whole rows can be compared. Standard fine-tuning is
    made on three folds, if more do not fit.

    Args:
        names: rows that can be run, in order, frozen features first.
        folds: how many.
        done: seconds that recorded runs took, by row and fold.
        seconds: that are left.
    """
    if missing := [fold for fold in range(folds) if fold not in done.get(FROZEN, {})]:
        return [(FROZEN, fold) for fold in missing]
    first, *_ = [*names[1:2], FROZEN]
    if not done.get(first):
        return [(first, 0)]
    unit = fmean(done[first].values()) / COMPARED[first][0]
    for name in names[1:]:
        recorded = done.get(name, {})
        each = fmean(recorded.values()) if recorded else COMPARED[name][0] * unit
        for count in (folds, min(SEEDS, folds)) if name == first else (folds,):
            missing = [fold for fold in range(count) if fold not in recorded]
            if missing and each * len(missing) <= seconds:
                return [(name, fold) for fold in missing]
    return []
