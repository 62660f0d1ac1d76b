"""Embedders go to the Hub and come back, through huggingface_hub itself and a small server in the place of the Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

from retrieval_bench import load_embedder
from retrieval_bench.cli import main
from retrieval_bench.deploy.export import hub_metadata
from retrieval_bench.deploy.onnx_graph import Graph
from retrieval_bench.errors import UserError
from retrieval_bench.records import ResultsFolder
from tests.training.helpers import random_images

TOKEN, COMMIT = "hf_of_alice", "c" * 40


class Hub:
    """Repositories by name, each with the bytes of its files."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.fetched: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of an answer, as the Hub's API gives them."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        allowed = handler.headers.get("Authorization") == f"Bearer {TOKEN}"
        path = handler.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'alice'}/{asked['name']}"
            if not allowed or not repo.startswith("alice/"):
                return 403, {"error": "not yours"}, {}
            known = {"url": f"https://huggingface.co/{repo}", "name": repo}
            if repo in self.repos:
                return 409, known, {}
            self.repos[repo] = {}
            hidden = asked.get("private") or asked.get("visibility") == "private"
            self.private |= {repo} if hidden else set()
            return 200, known, {}
        if path == "/api/validate-yaml":
            assert ModelCard(json.loads(body)["content"]).data.to_dict()["pipeline_tag"] == "image-feature-extraction"
            return 200, {"errors": [], "warnings": []}, {}
        words = path.removeprefix("/api/models").strip("/").split("/")
        repo, action, rest = "/".join(words[:2]), (words[2:3] or ["revision"])[0], words[3:]
        if repo not in self.repos or (repo in self.private and not allowed):
            return 404 if allowed else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        files = self.repos[repo]
        if action == "preupload":
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return 200, {"files": modes}, {}
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files |= {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            url = f"https://huggingface.co/{repo}/commit/{COMMIT}"
            return 200, {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}, {}
        if rest[:1] and rest[0] not in ("main", "v1", COMMIT):
            return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
        if action == "revision":
            siblings = [{"rfilename": name} for name in files]
            return 200, {"id": repo, "sha": COMMIT, "siblings": siblings, "private": repo in self.private}, {}
        if action == "tree":
            return 200, [self._entry(name, content) for name, content in files.items()], {}
        self.fetched.append(rest[1])
        tag = hashlib.sha256(files[rest[1]]).hexdigest()
        return 200, files[rest[1]], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that huggingface_hub takes for the Hub, with an empty cache and Alice's token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            status, content, headers = hub.answer(self, self.command)
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    server.shutdown()
    server.server_close()


def push(results: Path, *words: str) -> int:
    return main(["push", "synthetic-standard", *words, "--results", str(results)])


def test_there_and_back(results: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A private repository; of what lies in it only JSON and safetensors are fetched; the vectors are the run's."""
    assert push(results, "alice/birds", "--private", "--license", "apache-2.0") == 0
    assert capsys.readouterr().out.endswith("alice/birds: README.md, embedder.json, embedder.safetensors\n")
    assert hub.private == {"alice/birds"}
    assert set(hub.repos["alice/birds"]) == {"README.md", "embedder.json", "embedder.safetensors"}
    hub.repos["alice/birds"]["embedder.pkl"] = hub.repos["alice/birds"]["pytorch_model.bin"] = b"code"
    images = random_images(2, side=32)
    expected = load_embedder("synthetic-standard", results)(images)
    for name in ("hf:alice/birds", "hf:alice/birds@v1"):
        assert torch.equal(load_embedder(name)(images), expected)
    assert set(hub.fetched) == {"embedder.json", "embedder.safetensors"}


def test_an_exported_folder_is_uploaded_as_it_is_and_nothing_beside_it(
    exported: Path, hub: Hub, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures that lie beside stay; `embed` takes the name on the Hub."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    next(pictures.rglob("deep/*.png")).rename(folder / "picture.png")
    assert main(["push", str(folder), "alice/all", "--onnx"]) == 0
    assert hub.repos["alice/all"] == {file.name: file.read_bytes() for file in exported.iterdir()}
    gallery = str(tmp_path / "g.npz")
    assert main(["embed", str(folder), str(pictures), "-o", gallery]) == 0
    assert main(["embed", "hf:alice/all", str(pictures), "-o", gallery, "--add"]) == 0
    assert "holds all images" in capsys.readouterr().out
    assert main(["push", str(folder), "alice/all", "--private"]) == 2
    assert "alice/all: is there already, and everybody can see it" in capsys.readouterr().err
    (folder / "embedder.onnx").unlink()
    assert main(["push", str(folder), "alice/all", "--onnx"]) == 2
    (folder / "README.md").unlink()
    assert main(["push", str(folder), "alice/all"]) == 2
    assert "has no README.md; push takes the id of a run, or an exported folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("alice/birds", None, "alice/birds: uploading needs a token that may write there; `hf auth login`"),
        ("bob/birds", TOKEN, "bob/birds: the Hub refuses your token for this"),
        ("alice/birds", "hf_other", "alice/birds: the Hub refuses your token for this"),
        ("alice/bi rds", TOKEN, "alice/bi rds: not the name of a repository"),
    ],
)
def test_uploads_that_are_refused(
    repo: str,
    token: str | None,
    message: str,
    results: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert push(results, repo) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not hub.repos


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:alice/none", "hf:alice/none: no such repository, or a private one that your token does not open"),
        ("hf:alice/hidden", "hf:alice/hidden: no such repository, or a private one that your token does not open"),
        ("hf:alice/birds@v7", "hf:alice/birds@v7: the repository has no such revision"),
        (
            "hf:alice/birds",
            "hf:alice/birds: not an exported folder, which holds embedder.json and embedder.safetensors",
        ),
        ("hf:a b", "hf:a b: not the name of a repository"),
    ],
)
def test_downloads_that_are_refused(name: str, message: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_bob")
    hub.repos = {"alice/birds": {"pytorch_model.bin": b"code"}, "alice/hidden": {}}
    hub.private = {"alice/hidden"}
    with pytest.raises(UserError) as raised:
        load_embedder(name)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert not hub.fetched


def test_without_connection_or_package(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="hf:alice/birds: the Hub cannot be reached"):
        load_embedder("hf:alice/birds")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'must be installed first: pip install "retrieval_bench\[hub\]"'):
        load_embedder("hf:alice/birds")


def test_the_head_of_the_card_is_what_the_hub_reads(exported: Path, results: Path) -> None:
    card = ModelCard((exported / "README.md").read_text())
    record, data = ResultsFolder(results).find("synthetic-standard")[0], card.data.to_dict()
    assert data["license"] == "other"
    assert data["pipeline_tag"] == "image-feature-extraction"
    assert data["library_name"] == "retrieval_bench"
    assert data["datasets"] == ["synthetic"]
    assert {"image-retrieval", "standard", "onnx"} <= set(data["tags"])
    (results_of_card,) = data["model-index"][0]["results"]
    measured = {metric["type"]: metric["value"] for metric in results_of_card["metrics"]}
    assert measured == {name: value for name, value in record.metrics.items() if isinstance(value, float)}
    assert data["model-index"][0]["name"] == record.id
    assert "base_model" not in data, "its weights were drawn at random"
    assert "](data:" not in card.text
    assert "![" not in card.text


@pytest.mark.parametrize(
    ("backbone", "weights", "base"),
    [
        ("resnet50.tv_in1k", "imagenet", "timm/resnet50.tv_in1k"),
        ("resnet50.tv_in1k", "sha256:ab", None),
        ("torchvision/resnet50", "imagenet", None),
        ("efficientnet_lite0", "imagenet", None),  # pip brings other weights than the Hub
    ],
)
def test_the_network_that_was_tuned_is_named_where_the_hub_has_it(
    backbone: str, weights: str, base: str | None, results: Path
) -> None:
    record = ResultsFolder(results).find("synthetic-standard")[0]
    sections = {
        "model": {**record.config["model"], "backbone": backbone},
        "data": {"dataset": "folder", "split": "kfold"},
    }
    record = replace(record, config={**record.config, **sections}, labels={**record.labels, "weights": weights})
    metadata = hub_metadata(record, "mit", Graph(missing="not asked for"))
    assert metadata.get("base_model") == base
    assert "datasets" not in metadata, "images of one's own have no name on the Hub"
    assert "license_name" not in metadata
    assert "onnx" not in metadata["tags"]
