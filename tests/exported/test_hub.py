"""Exported directories on a server on this machine, which speaks like the hub."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from interp.errors import UserError
from interp.exported import from_hub, load_exported, push_to_hub
from interp.heads import HeadSet, found_on
from interp.interventions import ExpertConstraint, Intervention
from interp.models import HookedModel, model_info

REPO = "somebody/three-heads"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: the files of each by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def say(self, content: Any, code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.server.repos[repo].items())).encode()).hexdigest()

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            content = json.loads(body)
            repo = f"{content.get('organization') or 'somebody'}/{content['name']}"
            self.server.repos.setdefault(repo, {})
            self.say({"url": f"{self.server.address}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.say({"files": files})
        elif match := re.match(r"/api/models/(.+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repos[match[1]][entry["value"]["path"]] = content
            commit = self.commit(match[1])
            address = f"{self.server.address}/{match[1]}/commit/{commit}"
            self.say({"success": True, "commitOid": commit, "commitUrl": address})
        else:
            self.say({"error": self.path}, 404)

    def do_GET(self) -> None:
        if match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            files = self.server.repos[match[1]].items()
            self.say(
                [
                    {
                        **{"type": "file", "path": name, "size": len(content)},
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in files
                ]
            )
        elif match := re.match(r"/api/models/([^/]+/[^/]+)", self.path):
            if match[1] not in self.server.repos:
                self.say({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": name} for name in self.server.repos[match[1]]]
            self.say({"id": match[1], "sha": self.commit(match[1]), "siblings": siblings})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            content = self.server.repos[match[1]][match[2]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.say(content, ETag=etag, X_Repo_Commit=self.commit(match[1]))
        else:
            self.say({"error": self.path}, 404)

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_there_and_back(exported: Path, hub: Hub, tmp_path: Path) -> None:
    (exported / "private.env").write_text("mine", encoding="utf-8")
    address = push_to_hub(exported, REPO, endpoint=hub.address, token="hf_secret")
    assert address.startswith(f"{hub.address}/{REPO}/commit/")
    assert hub.tokens == {"Bearer hf_secret"}
    there = hub.repos[REPO]
    assert {"README.md", "export.json", "detector/detector.safetensors"} <= set(there)
    assert "private.env" not in there  # the export did not write it
    hub.repos[REPO]["evil.py"] = b"raise SystemExit"
    folder = from_hub(REPO, endpoint=hub.address, cache_dir=tmp_path / "cache")
    assert not (folder / "evil.py").exists()
    for name in ("README.md", "intervention.yaml"):
        assert (folder / name).read_bytes() == (exported / name).read_bytes()
    model, _ = load_exported(folder, device="cpu")
    assert model.attached.is_attached


def test_heads_alone_there_and_back(
    tiny_llama: HookedModel,
    tiny_gpt2: HookedModel,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = HeadSet(((1, 2), (2, 0)), "attention", "2 largest | by <b>hand</b>")
    options: Any = {"endpoint": hub.address, "cache_dir": tmp_path / "cache"}
    saved = Intervention.of(found_on(chosen, tiny_llama)).save(tmp_path / "heads.yaml")
    push_to_hub(saved, REPO, endpoint=hub.address, token="hf_secret")
    assert set(hub.repos[REPO]) == {"README.md", "intervention.yaml"}
    card = hub.repos[REPO]["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "faithlens"
    assert model_info(tiny_llama).fingerprint in card
    assert "<b>" not in card
    assert "detector" not in card
    file = from_hub(REPO, **options)
    found = Intervention.load(file, model=tiny_llama)
    assert found == Intervention.of(chosen)
    with pytest.raises(UserError, match="these heads were found on the model"):
        Intervention.load(file, model=tiny_gpt2)
    monkeypatch.setattr("interp.exported.load.from_hub", partial(from_hub, **options))
    with pytest.raises(UserError, match=r"holds heads and no model: give interp\.from_hub"):
        load_exported(REPO)
    hub.repos[REPO]["intervention.yaml"] = b"version: 1\nheads: 3\n"
    with pytest.raises(UserError, match="heads must be a list"):
        from_hub(REPO, **options)


def test_heads_of_no_one_model_are_not_pushed(
    tiny_llama: HookedModel, tiny_gpt2: HookedModel, hub: Hub, tmp_path: Path
) -> None:
    heads = HeadSet(((1, 2),), "attention")
    experts = ExpertConstraint([(0, "attn.q", 0)], "off")
    of_two = Intervention.of(found_on(heads, tiny_llama)) | Intervention.of(
        found_on(HeadSet(((1, 2),), "output"), tiny_gpt2)
    )
    file = Intervention.of(heads).save(tmp_path / "heads.yaml")
    for what in (heads, Intervention.of(experts), of_two, file):
        with pytest.raises(UserError, match=r"which one model they are of.*found_on"):
            push_to_hub(what, REPO, endpoint=hub.address)
    assert not hub.repos


def test_what_was_changed_there_is_refused(exported: Path, hub: Hub, tmp_path: Path) -> None:
    push_to_hub(exported, REPO, endpoint=hub.address, token="hf_secret")
    hub.repos[REPO]["intervention.yaml"] = b"version: 1\n"
    with pytest.raises(UserError, match=r"intervention.yaml was changed after the export"):
        from_hub(REPO, endpoint=hub.address, cache_dir=tmp_path / "cache")
    (exported / "README.md").write_text("better", encoding="utf-8")
    with pytest.raises(UserError, match=r"README.md was changed after the export"):
        push_to_hub(exported, REPO, endpoint=hub.address)


def test_names_and_servers_that_are_none(exported: Path, hub: Hub, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    options: Any = {"endpoint": hub.address, "cache_dir": tmp_path / "cache"}
    for call, message in (
        (lambda: from_hub("no name", **options), "is no name of a repository"),
        (lambda: from_hub("nobody/nothing", **options), "the hub has no repository"),
        (lambda: push_to_hub(exported, "heads"), "is no name of a repository"),
        (lambda: push_to_hub(exported, REPO, endpoint=nowhere), "cannot upload to"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
