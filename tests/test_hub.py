"""Hub ids, proved against a hub of our own on the loopback interface.

huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported, so every look-up runs in a
process of its own. Nothing here talks to any other machine.
"""

import fcntl
import hashlib
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from russet.checkpoint import open_checkpoint
from russet.errors import CheckpointError, HubError
from russet.hub import resolve

INDEX = "model.safetensors.index.json"
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the discard port: nobody answers
TEXTS = {"config.json": b'{"a": 1}', "tokenizer.json": b"{}", "chat_template.jinja": b"{{ 1 }}"}
UNWANTED = {
    "README.md": b"#",
    "pytorch_model.bin": b"pickle",
    "model.fp16.safetensors": b"other",
    "consolidated.safetensors": b"other",
    "onnx/model.safetensors": b"other",
    "modeling_llama.py": b"print()",
}


def weights(seed=0, n=1000):
    return safetensors.numpy.save({"x": np.random.default_rng(seed).random(n)})


def two_shards():
    names = {f"x{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    files = {file: safetensors.numpy.save({name: np.ones(9)}) for name, file in names.items()}
    return {**files, INDEX: json.dumps({"weight_map": names}).encode()}


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that a download needs."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.commits = {}  # (id, commit) -> {file: bytes}
        self.branches = {}  # (id, branch) -> commit
        self.refusals = {}  # id -> (status, X-Error-Code)
        self.private = {}  # id -> token
        self.cut = {}  # file -> no byte from this one on is ever sent
        self.log = []  # (method, path, Range header)

    def push(self, model, files, branch="main"):
        commit = hashlib.sha1(repr((model, files)).encode()).hexdigest()
        self.commits[model, commit] = files
        self.branches[model, branch] = commit
        return commit

    def n_requests(self):
        """How many since the last call."""
        n, self.log = len(self.log), []
        return n


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        self.server.log.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        if api := re.fullmatch("/api/models/(.+?)/(revision|tree)/([^/]+)", path):
            model, what, revision = api.groups()
            if found := self.find(model, revision):
                commit, files = found
                tree = [
                    {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
                    for name, raw in files.items()
                ]
                siblings = [{"rfilename": name} for name in files]
                answer = tree if what == "tree" else {"id": model, "sha": commit, "siblings": siblings}
                self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        elif file := re.fullmatch("/(.+?)/resolve/([^/]+)/(.+)", path):
            model, revision, name = file.groups()
            if found := self.find(model, revision):
                self.send_file(*found, name)
        else:
            self.answer(400)

    do_HEAD = do_GET

    def find(self, model, revision):
        """(commit, files); None after answering that there are none."""
        commit = self.server.branches.get((model, revision), revision)
        token = self.server.private.get(model)
        if model in self.server.refusals:
            status, code = self.server.refusals[model]
            self.answer(status, headers={"X-Error-Code": code} if code else {})
        elif token and self.headers.get("Authorization") != f"Bearer {token}":
            self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        elif (model, commit) in self.server.commits:
            return commit, self.server.commits[model, commit]
        elif any(model == known for known, _ in self.server.commits):
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        return None

    def send_file(self, commit, files, name):
        if name not in files:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        raw = files[name]
        headers = {
            "ETag": f'"{hashlib.sha1(raw).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        begin = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin = int(asked[1])
            headers["Content-Range"] = f"bytes {begin}-{len(raw) - 1}/{len(raw)}"
        end = max(begin, self.server.cut.get(name, len(raw)))
        self.answer(206 if asked else 200, raw[begin:], headers, n_sent=end - begin)

    def answer(self, status, body=b"", headers=None, n_sent=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:n_sent])
            self.close_connection = n_sent is not None and n_sent < len(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


RESOLVE = """
import json, sys, time
time.sleep = lambda seconds: None  # between the library's own attempts
from russet.errors import HubError
from russet.hub import resolve
answers = []
for model, options in json.loads(sys.argv[1]):
    try:
        answers.append([str(resolve(model, **options)), None])
    except HubError as error:
        answers.append([None, str(error)])
print(json.dumps(answers))
"""

FETCH_CONFIG = """
import huggingface_hub
huggingface_hub.hf_hub_download("org/name", "config.json")
"""


@pytest.fixture
def python(hub, tmp_path):
    """python(script, *argv) runs a fresh process that knows this hub, and a cache in tmp_path."""
    env = {key: value for key, value in os.environ.items() if not re.match("(?i)HF_|.*_proxy$", key)}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}

    def python(script, *argv, more_env=(), stderr=subprocess.PIPE):
        run = subprocess.run(
            [sys.executable, "-c", script, *argv],
            env=env | dict(more_env),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        return run

    return python


@pytest.fixture
def ask_all(python):
    """ask_all([(model, options), ...]) -> what resolve() gives for each, all in one fresh process."""

    def ask_all(calls, **settings):
        run = python(RESOLVE, json.dumps(calls), **settings)
        return [
            SimpleNamespace(folder=folder and Path(folder), error=error, stderr=run.stderr)
            for folder, error in json.loads(run.stdout)
        ]

    return ask_all


@pytest.fixture
def ask(ask_all):
    """ask(model, **options) -> the folder or the error that resolve() gives in a fresh process."""

    def ask(model, more_env=(), stderr=subprocess.PIPE, **options):
        return ask_all([(model, options)], more_env=more_env, stderr=stderr)[0]

    return ask


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_call_downloads_and_the_second_asks_nobody(hub, ask, ask_all):
    good = TEXTS | {
        "model.safetensors": weights(),
        "generation_config.json": b"{}",
        "chat_templates/a.jinja": b"a",
    }
    commit = hub.push("org/name", good | UNWANTED)
    first = ask("org/name")
    assert first.folder.name == commit
    assert files_in(first.folder) == good
    assert not any(name in path for _, path, _ in hub.log for name in UNWANTED)
    assert first.stderr == b""  # no progress bar where stderr is no terminal
    assert hub.n_requests() > 0

    again = ask_all(
        [
            ("org/name", options)
            for options in ({}, {"revision": "main"}, {"revision": commit}, {"local_files_only": True})
        ]
    )
    again.append(ask("org/name", more_env={"HF_HUB_OFFLINE": "1"}))
    assert [found.folder for found in again] == [first.folder] * 5
    assert hub.n_requests() == 0
    assert open_checkpoint(first.folder).tensors["x"].shape == (1000,)


def test_an_old_id_without_an_organisation(hub, ask):
    commit = hub.push("name", TEXTS | {"model.safetensors": weights()})
    assert ask("name").folder.name == commit


def test_shards_come_by_the_index(hub, ask):
    good = TEXTS | two_shards()
    hub.push("org/name", good | UNWANTED)
    folder = ask("org/name").folder
    assert files_in(folder) == good
    assert open_checkpoint(folder).tensors.keys() == {"x1", "x2"}


def test_a_progress_bar_on_a_terminal(hub, ask):
    hub.push("org/name", TEXTS | {"model.safetensors": weights()})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    shown = []

    def watch():
        try:
            while chunk := os.read(ours, 65536):
                shown.append(chunk)
        except OSError:  # the other end is closed
            pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert ask("org/name", stderr=theirs).folder
    finally:
        os.close(theirs)
        watcher.join()
        os.close(ours)
    assert re.search(b"Fetching .*100%", b"".join(shown))


def test_revisions(hub, ask_all):
    old = hub.push("org/name", TEXTS | {"model.safetensors": weights(1)})
    new = hub.push("org/name", TEXTS | {"model.safetensors": weights(2)})
    side = hub.push("org/name", TEXTS | {"model.safetensors": weights(3)}, branch="side")
    calls = [("org/name", {"revision": revision}) for revision in (None, "side", old)]
    for _ in range(2):
        folders = [found.folder for found in ask_all(calls)]
        assert [folder.name for folder in folders] == [new, side, old]
        for folder, seed in zip(folders, (2, 3, 1), strict=True):
            assert (folder / "model.safetensors").read_bytes() == weights(seed)
        n_requests = hub.n_requests()
    assert n_requests == 0
    (unknown,) = ask_all([("org/name", {"revision": "none"})])
    assert unknown.error == (f"org/name: no branch, tag or commit 'none'; {hub.url}/org/name/tree/main lists them")


def test_a_branch_stays_where_it_was_until_config_json_is_fetched_anew(hub, ask, python):
    old = hub.push("org/name", TEXTS | {"model.safetensors": weights(1)})
    assert ask("org/name").folder.name == old
    new = hub.push("org/name", TEXTS | {"model.safetensors": weights(2)})
    assert ask("org/name").folder.name == old
    python(FETCH_CONFIG)
    assert ask("org/name").folder.name == new
    assert files_in(ask("org/name").folder)["model.safetensors"] == weights(2)


def test_a_cache_that_lacks_a_file_is_completed(hub, ask):
    good = TEXTS | two_shards()
    hub.push("org/name", good)
    folder = ask("org/name").folder
    lost = "model-00002-of-00002.safetensors"
    (folder / lost).resolve().unlink()  # the link stays, its target is gone
    hub.n_requests()
    for options in ({"local_files_only": True}, {"more_env": {"HF_HUB_OFFLINE": "1"}}):
        assert ask("org/name", **options).error == (
            f"org/name: the download is incomplete, no {lost}; "
            "allow the network once (local_files_only=False, HF_HUB_OFFLINE=0)"
        )
    assert hub.n_requests() == 0
    assert ask("org/name").folder == folder
    assert files_in(folder) == good
    assert {path for method, path, _ in hub.log if method == "GET" and "resolve" in path} == {
        f"/org/name/resolve/{folder.name}/{lost}"
    }


def test_weights_without_a_tokenizer_are_looked_up_again(hub, ask):
    """Another program may have cached the weights alone."""
    hub.push("org/name", {"config.json": b"{}", "model.safetensors": weights()})
    folder = ask("org/name").folder
    hub.n_requests()
    assert ask("org/name").folder == folder
    assert hub.n_requests() > 0
    assert ask("org/name", local_files_only=True).folder == folder
    assert ask("org/name", more_env=NOWHERE).folder == folder


def test_an_interrupted_download_says_so_and_is_taken_up_again(hub, ask):
    shards = two_shards()
    lost = "model-00002-of-00002.safetensors"
    shards[lost] = safetensors.numpy.save({"x2": np.ones(2_500_000)})  # the library writes 10 MB at a time
    hub.push("org/name", TEXTS | shards)
    hub.cut[lost] = 15_000_000
    assert re.fullmatch(
        r"org/name: the download broke off \(.+\); run it again: complete files are kept",
        ask("org/name").error,
    )
    assert f"the download is incomplete, no {lost};" in ask("org/name", local_files_only=True).error
    n_before = len(hub.log)
    del hub.cut[lost]
    folder = ask("org/name").folder
    assert files_in(folder) == TEXTS | shards
    again = [path for method, path, _ in hub.log[n_before:] if method == "GET" and "/resolve/" in path]
    assert again == [f"/org/name/resolve/{folder.name}/{lost}"]
    # Old versions of the library go on from the middle of a file in the next run, new ones in the same run.
    begins = [int(asked[6:-1]) for _, _, asked in hub.log if asked]
    assert begins
    assert all(0 < begin <= 15_000_000 for begin in begins)


def test_an_interruption_among_the_small_files_is_not_taken_for_complete(hub, ask):
    good = TEXTS | {"model.safetensors": weights()}
    hub.push("org/name", good)
    hub.cut["tokenizer.json"] = 1
    assert "broke off" in ask("org/name").error
    hub.cut.clear()
    assert files_in(ask("org/name").folder) == good


def test_an_id_that_does_not_exist(hub, ask):
    assert ask("org/nmae").error == (
        f"org/nmae: no such folder here, no such model on {hub.url}; "
        "correct it or, if it is private, log in with `hf auth login` or set HF_TOKEN"
    )


def test_a_private_model_needs_a_token(hub, ask):
    hub.push("org/name", TEXTS | {"model.safetensors": weights()})
    hub.private["org/name"] = "hf_secret"
    for more_env in ({}, {"HF_TOKEN": "hf_wrong"}):
        error = ask("org/name", more_env=more_env).error
        assert "if it is private, log in" in error
        assert "hf_wrong" not in error
    assert ask("org/name", more_env={"HF_TOKEN": "hf_secret"}).folder


def test_a_hub_that_refuses(hub, ask_all):
    cases = {
        "org/a": (401, "GatedRepo", "the model is gated; accept its terms on {hub}/org/a, then log in with"),
        "org/b": (403, "GatedRepo", "the model is gated; accept its terms on {hub}/org/b, then log in with"),
        "org/c": (401, "RepoNotFound", "no such folder here, no such model on {hub}; correct it or"),
        "org/d": (403, None, "{hub} refuses access (403); log in with"),
        "org/e": (500, None, "not in the cache, and {hub} cannot be reached (HfHubHTTPError: "),
    }
    hub.refusals = {model: (status, code) for model, (status, code, _) in cases.items()}
    answers = ask_all([(model, {}) for model in cases])
    for (model, (_, _, says)), answer in zip(cases.items(), answers, strict=True):
        assert answer.error.startswith(f"{model}: {says.format(hub=hub.url)}")
        assert "; " in answer.error
        assert "\n" not in answer.error


def test_gated_files_of_a_visible_model(hub, ask):
    """The hub lists the files of a gated model to everybody, and refuses the files."""
    hub.push("org/name", TEXTS | {"model.safetensors": weights()})
    sent = Handler.send_file
    Handler.send_file = lambda self, *_: self.answer(403, headers={"X-Error-Code": "GatedRepo"})
    try:
        assert "the model is gated; accept its terms" in ask("org/name").error
    finally:
        Handler.send_file = sent


def test_a_repository_without_what_it_takes(hub, ask_all):
    cases = {
        "org/bin": (TEXTS | UNWANTED, "model.safetensors"),
        "org/gguf": ({"model-q8_0.gguf": b"GGUF"}, "config.json"),
        "org/no-config": ({"tokenizer.json": b"{}", "model.safetensors": weights()}, "config.json"),
        "org/no-shards": (TEXTS | {INDEX: two_shards()[INDEX]}, "model-00001-of-00002.safetensors"),
        "org/empty": ({".gitattributes": b"*.bin"}, "config.json"),
    }
    for model, (files, _) in cases.items():
        hub.push(model, files)
    answers = ask_all([(model, {}) for model in cases])
    assert [answer.error for answer in answers] == [
        f"{model}: expected a config.json and safetensors weights, got a repository without {lacks}; "
        "choose another (.bin, .pth and .gguf files are not read)"
        for model, (_, lacks) in cases.items()
    ]


def test_no_network(hub, ask):
    error = ask("org/name", more_env=NOWHERE).error
    assert re.fullmatch(
        r"org/name: not in the cache, and http://127.0.0.1:9 cannot be reached \(.+\); check the network",
        error,
    )


def test_the_network_goes_away_between_the_text_and_the_weights(hub, ask, python):
    hub.push("org/name", TEXTS | {"model.safetensors": weights()})
    python(FETCH_CONFIG)
    error = ask("org/name", more_env=NOWHERE).error
    assert "cannot be reached" in error


@pytest.mark.parametrize("options", [{"local_files_only": True}, {"more_env": {"HF_HUB_OFFLINE": "1"}}])
def test_offline_and_not_cached(hub, ask, tmp_path, options):
    hub.push("org/name", TEXTS | {"model.safetensors": weights()})
    assert ask("org/name", **options).error == (
        f"org/name: not in the cache {tmp_path / 'hf/hub'}; "
        "allow the network once (local_files_only=False, HF_HUB_OFFLINE=0)"
    )
    assert hub.n_requests() == 0


@pytest.mark.parametrize("model", ["", "a b", "-org/name", "org/na--me", "org/name.git", "x" * 300, "a\0b", "org/"])
def test_a_malformed_id(model):
    with pytest.raises(HubError, match="expected a folder, or a hub id like org/name, got neither"):
        resolve(model, local_files_only=True)


def test_a_path_that_exists_is_never_an_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("org/name", "org", "./org", Path("org/name"), "~/org/name", "~", ".", str(tmp_path)):
        assert resolve(model).is_dir()
    assert resolve("~/org") == tmp_path / "org"


@pytest.mark.parametrize(
    "model",
    ["./x", "../x", "/none/x", "~/none", "~nobody-of-that-name/x", "a/b/c", "org/name/", "a\\b", Path("x")],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(model):
    with pytest.raises(CheckpointError, match="no such folder; pass a model's folder, or a hub id") as caught:
        resolve(model)
    assert type(caught.value) is CheckpointError
