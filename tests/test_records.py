"""Files among the records that are none: each is named on one line and skipped, and no table fails because of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.cli import main
from retrieval_bench.leaderboard import leaderboard, render
from retrieval_bench.records import read_record, write_record
from tests.board_records import of, record, save
from tests.data.data_checks import refused

VALID = record("x", 0, 0.5).to_json()
GONE = object()


def changed(path: tuple[str, ...], new: Any, value: Any = VALID) -> Any:
    """`value` with `new` at `path`, or without what is there."""
    if not path:
        return new
    inside = changed(path[1:], new, value.get(path[0]))
    return {name: part for name, part in {**value, path[0]: inside}.items() if part is not GONE}


CHANGES = {
    "config": ("standard", "'config'"),
    "seed": (True, "'seed'"),
    "config_hash": (7, "'config_hash'"),
    "facts": ([], "'facts'"),
    "training.loss_per_epoch": (["x"], "loss_per_epoch"),
    "metrics": ({"recall_at_x": 0.5, "recall_at_0": 0.5, "recall_at_01": 0.5}, "no recall_at_K"),
    "metrics.recall_at_1": (1.01, "recall_at_1 is 1.01, no fraction"),
    "metrics.recall_at_10": (float("nan"), "recall_at_10"),
    "metrics.map_at_r": (True, "map_at_r"),
    "metrics.queries": (10**400, "queries is a huge number"),
    "cost.macs": ("many", "macs"),
    "cost.parameters": (float("inf"), "parameters"),
    "config.data.dataset": (GONE, "'config.data.dataset'"),
    "labels.strategy": (GONE, "'labels.strategy'"),
    "config.data.image_size": ("large", "'config.data.image_size'"),
    "config.model": ([], "'config.model'"),
    "environment.device": ({}, "'environment.device'"),
    "config.loss.loss": ("\ud800", "surrogates"),
}
BROKEN = {
    "truncated": (json.dumps(VALID)[:100], ""),
    "empty": ("", "Expecting value"),
    "list": ("[]", "schema 1"),
    "deep": ('{"a":' * 50_000, "nested too deeply"),
    **{f"no {name}": (json.dumps(changed((name,), GONE)), f"'{name}'") for name in ("metrics", "cost", "labels", "id")},
    **{f"odd {name}": (json.dumps(changed(tuple(name.split(".")), new)), why) for name, (new, why) in CHANGES.items()},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named_with_the_reason_on_one_line_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, reason = BROKEN[name]
    results = save(tmp_path, record("standard", 0, 0.5))
    path = results.record(name)
    path.write_text(text)
    assert [entry.strategy for entry in results.read_records()] == ["standard"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"skipped {path}: ")
    assert reason in line
    assert len(line) < len(str(path)) + 180
    with refused(path, reason):
        results.find(str(path))


def test_what_is_no_file_of_text_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = save(tmp_path, record("standard", 0, 0.5)).runs
    (runs / "binary.json").write_bytes(b"\xff\xfe\x00")
    (runs / "folder.json").mkdir()
    (runs / "link.json").symlink_to(runs / "nowhere")
    names = ["binary.json", "folder.json", "link.json"]
    if os.geteuid():
        (runs / "secret.json").touch(mode=0)
        names.append("secret.json")
    (runs / "notes.txt").write_text("not a record, and not taken for one")
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"skipped {runs / name}" for name in names]


def test_a_record_is_read_as_it_was_written_and_nan_becomes_null(tmp_path: Path) -> None:
    entry = record("x", 0, 0.5, info={"x": [1.5]}, eval_modes={"sample": {"recall_at_1": 0.4}}, training={"a": 1})
    write_record(tmp_path / "r.json", entry)
    assert read_record(tmp_path / "r.json") == entry
    assert {"facts", "variants"} <= json.loads((tmp_path / "r.json").read_text()).keys()
    write_record(tmp_path / "r.json", record("x", 0, 0.5, info={"lrs": [1.0, float("nan")], "k": float("inf")}))
    assert json.loads((tmp_path / "r.json").read_text())["facts"] == {"lrs": [1.0, None], "k": None}


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


@given(path=st.sampled_from(paths(VALID)), value=JSON)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_whatever_a_part_of_a_record_is_the_table_is_made(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any
) -> None:
    results = save(tmp_path_factory.mktemp("fuzz"), *of("standard", 0.5, 0.6))
    results.record("odd").write_text(json.dumps(changed(path, value)))
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
