"""A results folder with real records of several kinds, a hostile one, and details of two runs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.details import Details, details_path, write_details
from retrieval_bench.records import record_path, write_record

COMMITTED = Path(__file__).parents[2] / "results" / "runs"
KINDS = (
    "emoji-standard-",
    "emoji-autolr-",
    "emoji-spottune-",
    "emoji-frozen-",
    "emoji-layer_pruning-",
    "emoji-channel_pruning-",
)
HOSTILE = '<script>alert("x")</script>&<b>'


def webp(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "WEBP")
    return out.getvalue()


def hand_made(classes: int = 3, each: int = 4, seed: int = 0) -> Details:
    """Details of a small test, every image with a thumbnail."""
    draws = np.random.default_rng(seed)
    count = classes * each
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    others = np.array(
        [[other for other in draws.permutation(count) if other != row][:6] for row in range(count)], dtype=np.int32
    )
    positive = labels[others] == labels[:, None]
    ranks = np.where(positive.any(1), positive.argmax(1) + 1, 9).astype(np.int32)
    pictures = [webp(colour) for colour in ("red", "green", "blue", "white", "black", "grey") for _ in range(2)][:count]
    return Details(
        paths=np.array([f"{HOSTILE}/{row}.png" for row in range(count)]),
        labels=labels,
        class_names=np.array([f"{HOSTILE} {label}" for label in range(classes)]),
        queries=np.arange(count, dtype=np.int32),
        first_rank=ranks,
        map_at_r=draws.random(count).astype(np.float32),
        listed=np.arange(count, dtype=np.int32),
        neighbours=others,
        similarity=np.sort(draws.random((count, 6)).astype(np.float16))[:, ::-1],
        mapped=np.arange(count, dtype=np.int32),
        map=draws.normal(size=(count, 2)).astype(np.float32),
        thumbnails=np.arange(count, dtype=np.int32),
        thumbnail_ends=np.cumsum([len(picture) for picture in pictures]).astype(np.int64),
        thumbnail_bytes=np.frombuffer(b"".join(pictures), dtype=np.uint8),
    )


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; nobody changes it."""
    results = tmp_path_factory.mktemp("results")
    (results / "runs").mkdir()
    for kind in KINDS:
        for path in sorted(COMMITTED.glob(f"{kind}*-s[012]-cpu.json"))[:2]:
            shutil.copy(path, results / "runs")
    paths = sorted((results / "runs").glob("emoji-standard-*.json"))
    other: dict[str, Any] = json.loads(paths[0].read_text(encoding="utf-8"))
    other |= {"id": "hostile", "config_hash": "hostile", "command": HOSTILE}
    other["labels"]["strategy"] = HOSTILE
    other["config"]["data"]["image_size"] = 96
    write_record(record_path(results, "hostile"), other)
    for number, name in enumerate([paths[0].stem, "hostile"]):
        write_details(hand_made(seed=number), details_path(results, name))
    return results


@pytest.fixture(scope="session")
def page(filled: Path) -> Path:
    """The report of the folder."""
    from retrieval_bench.report.page import write_report

    path = filled.parent / "report.html"
    write_report(filled, path, f"A report {HOSTILE}", 15)
    return path
