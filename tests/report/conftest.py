"""A results folder with real records of several kinds, a hostile one, and details of two runs."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.details import Details, write_details
from retrieval_bench.records import ResultsFolder, read_record, write_record
from retrieval_bench.report.page import write_report
from tests.board_records import details_of

COMMITTED = Path(__file__).parents[2] / "results" / "runs"
KINDS = ("standard", "autolr", "spottune", "frozen", "layer_pruning", "channel_pruning")
HOSTILE = '<script>alert("x")</script>&<b>'


def webp(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "WEBP")
    return out.getvalue()


def hand_made(seed: int = 0) -> Details:
    """Details of a small test of three classes, every image with a thumbnail."""
    draws = np.random.default_rng(seed)
    images = np.arange(12, dtype=np.int32)
    labels = np.repeat(np.arange(3), 4)
    neighbours = np.array([draws.permutation(np.delete(images, image))[:6] for image in images])
    is_right = labels[neighbours] == labels[:, None]
    ranks = np.where(is_right.any(1), is_right.argmax(1) + 1, 9)
    pictures = [webp(colour) for colour in ("red", "green", "blue", "white", "black", "grey") for _ in range(2)]
    return replace(
        details_of(ranks.tolist(), labels.tolist(), neighbours.tolist()),
        paths=np.array([f"{HOSTILE}/{image}.png" for image in images]),
        class_names=np.array([f"{HOSTILE} {label}" for label in range(3)]),
        map=draws.normal(size=(12, 2)).astype(np.float32),
        thumbnails=images,
        thumbnail_ends=np.cumsum([len(picture) for picture in pictures]).astype(np.int64),
        thumbnail_bytes=np.frombuffer(b"".join(pictures), dtype=np.uint8),
    )


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> ResultsFolder:
    """The folder; nobody changes it."""
    results = ResultsFolder(tmp_path_factory.mktemp("results"))
    results.runs.mkdir()
    for kind in KINDS:
        for path in sorted(COMMITTED.glob(f"emoji-{kind}-*-s[012]-cpu.json"))[:2]:
            shutil.copy(path, results.runs)
    first = read_record(min(results.runs.glob("emoji-standard-*.json")))
    hostile = replace(first, id="hostile", config_hash="hostile", command=HOSTILE, labels={"strategy": HOSTILE})
    hostile.config["data"]["image_size"] = 96
    write_record(results.record("hostile"), hostile)
    for number, name in enumerate([first.id, "hostile"]):
        write_details(hand_made(number), results.details(name))
    return results


@pytest.fixture(scope="session")
def page(filled: ResultsFolder) -> Path:
    """The report of the folder."""
    path = filled.root.parent / "report.html"
    write_report(filled, path, f"A report {HOSTILE}", 15)
    return path
