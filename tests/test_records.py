"""Files among the records that are none: each is named on one line and skipped, and no table fails because of one."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.cli import main
from retrieval_bench.leaderboard import leaderboard, render
from retrieval_bench.records import ResultsFolder, read_record, write_record
from tests.board_records import of, record, save
from tests.data.data_checks import refused

HALF_A_PAIR = '"\\ud800"'


def without(*path: str) -> str:
    values = record("x", 0, 0.5).to_json()
    inside = values
    for name in path[:-1]:
        inside = inside[name]
    del inside[path[-1]]
    return json.dumps(values)


def with_value(value: Any, *path: str) -> str:
    return json.dumps(put(record("x", 0, 0.5).to_json(), path, value))


def put(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """`value` with `new` at `path`."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


BROKEN = {
    "truncated": (json.dumps(record("x", 0, 0.5).to_json())[:100], ""),
    "empty": ("", "Expecting value"),
    "two-records": (2 * json.dumps(record("x", 0, 0.5).to_json()), "Extra data"),
    "list": ("[]", "schema 1"),
    "number": ("3", "schema 1"),
    "other-schema": (json.dumps({"schema": 99}), "schema 1"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep-inside": ('{"a":' * 50_000, "nested too deeply"),
    **{
        f"no-{name}": (without(name), f"'{name}'")
        for name in ("config", "metrics", "cost", "labels", "environment", "data", "seed")
    },
    "text-config": (with_value("standard", "config"), "'config'"),
    "text-seed": (with_value("zero", "seed"), "'seed'"),
    "bool-seed": (with_value(True, "seed"), "'seed'"),
    "real-seed": (with_value(0.5, "seed"), "'seed'"),
    "number-hash": (with_value(7, "config_hash"), "'config_hash'"),
    "no-recall": (with_value({}, "metrics"), "no recall_at_K"),
    "null-recall": (with_value({"recall_at_1": None}, "metrics"), "no recall_at_K"),
    "recall-at-x": (
        with_value({"recall_at_x": 0.5, "recall_at_0": 0.5, "recall_at_01": 0.5}, "metrics"),
        "no recall_at_K",
    ),
    "recall-above-1": (with_value(1.01, "metrics", "recall_at_1"), "recall_at_1 is 1.01, no fraction"),
    "recall-below-0": (with_value(-0.5, "metrics", "recall_at_10"), "recall_at_10"),
    "recall-text": (with_value("0.5", "metrics", "recall_at_1"), "recall_at_1"),
    "recall-nan": (with_value(float("nan"), "metrics", "recall_at_1"), "recall_at_1"),
    "recall-bool": (with_value(True, "metrics", "recall_at_1"), "recall_at_1"),
    "queries-huge": (with_value(10**400, "metrics", "queries"), "queries is a huge number"),
    "cost-infinite": (with_value(float("inf"), "cost", "macs"), "macs"),
    "cost-large": (with_value(1e300, "cost", "macs"), "macs"),
    "cost-text": (with_value("many", "cost", "macs"), "macs"),
    "no-data-set": (without("config", "data", "dataset"), "no data set"),
    "no-strategy": (without("labels", "strategy"), "no strategy"),
    "text-size": (with_value("large", "config", "data", "image_size"), "'image_size'"),
    "list-backbone": (with_value(["a"], "config", "model", "backbone"), "'backbone'"),
    "dict-device": (with_value({}, "environment", "device"), "'device'"),
    "no-model": (with_value([], "config", "model"), "'model'"),
    "half-a-pair": (with_value("HERE", "config", "loss", "loss").replace('"HERE"', HALF_A_PAIR), "surrogates"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named_with_the_reason_on_one_line_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, reason = BROKEN[name]
    save(tmp_path, record("standard", 0, 0.5))
    path = tmp_path / "runs" / f"{name}.json"
    path.write_text(text)
    assert [entry.strategy for entry in ResultsFolder(tmp_path).read_records()] == ["standard"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipped {path}: ")
    assert reason in line
    assert len(line) < len(str(path)) + 180
    with refused(path, reason):
        ResultsFolder(tmp_path).find(str(path))


def test_what_is_no_file_of_text_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, record("standard", 0, 0.5))
    runs = tmp_path / "runs"
    (runs / "binary.json").write_bytes(b"\xff\xfe\x00")
    (runs / "folder.json").mkdir()
    (runs / "link.json").symlink_to(runs / "nowhere")
    names = ["binary.json", "folder.json", "link.json"]
    if os.geteuid():
        (runs / "secret.json").write_text(json.dumps(record("x", 0, 0.5).to_json()))
        (runs / "secret.json").chmod(0)
        names.append("secret.json")
    (runs / "notes.txt").write_text("not a record, and not taken for one")
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"skipped {runs / name}" for name in names]
    for name in names:
        with refused(name):
            ResultsFolder(tmp_path).find(str(runs / name))


def test_nan_becomes_null_in_a_record(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", record("x", 0, 0.5, info={"rates": [1.0, float("nan")], "k": float("inf")}))
    assert json.loads((tmp_path / "r.json").read_text())["facts"] == {"rates": [1.0, None], "k": None}


def paths(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of every part of a record, itself first."""
    inside = value.items() if isinstance(value, dict) else ()
    return [above, *(path for name, part in inside for path in paths(part, (*above, name)))]


RESERVED = tuple(
    "recall_at_3 recall_at_1_ci95 significance p_value seeds kind dataset backbone image_size device options".split()
)
TEXTS = st.one_of(st.sampled_from(["", "kfold", "a|b\n", "[red]", "\ud800"]), st.text(max_size=5))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), TEXTS)
JSON = st.recursive(
    SCALARS,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3), st.dictionaries(st.one_of(st.sampled_from(RESERVED), TEXTS), inside, max_size=3)
    ),
    max_leaves=6,
)
VALID = record("valid", 0, 0.5).to_json()


@given(path=st.sampled_from(paths(VALID)), value=JSON)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_whatever_a_part_of_a_record_is_the_table_is_made(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any
) -> None:
    results = save(tmp_path_factory.mktemp("fuzz"), *of("standard", 0.5, 0.6))
    results.record("odd").write_text(json.dumps(put(VALID, path, value)))
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval_bench.records.logger.info", lines.append)
        records = results.read_records()
    assert len(records) + len(lines) == 3
    assert all("odd.json: " in line and len(line.splitlines()) == 1 for line in lines)
    table = leaderboard(records)
    assert "standard" in table["strategy"].tolist()
    for form in ("csv", "markdown", "json"):
        assert render(table, form).encode()


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    entry = record("x", 0, 0.5, info={"x": [1.5]}, eval_modes={"sample": {"recall_at_1": 0.4}}, training={"a": 1})
    write_record(tmp_path / "r.json", entry)
    assert read_record(tmp_path / "r.json") == entry
    assert {"facts", "variants"} <= json.loads((tmp_path / "r.json").read_text()).keys()
