"""The command line as a user meets it: what is printed where, exit codes, Ctrl-C, pipes and terminals."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

import russet
from conftest import SHARED_DATA
from russet import cli
from russet.model import DEMO

STORIES = SHARED_DATA / "weights" / "stories260K" / "hf"
FOLDER = STORIES if STORIES.is_dir() else DEMO
PROMPT = "Once upon a time"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Minutes: the demo was made for 512 tokens. Seeded, because some draws end up repeating a line break for ever.
ENDLESS = ("--ignore-eos", "--seed", "1", "--n-ctx", "100000", "--max-tokens", "90000")
RUSSET = [sys.executable, "-m", "russet"]


@pytest.fixture(autouse=True)
def buffered_output(monkeypatch):
    """As users have it: what is not flushed is not seen."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command in this process; stdin is a pipe, or somebody who types."""

    def run(*argv: object, stdin: str | bytes = "", typed: str | None = None) -> Ended:
        data = stdin if isinstance(stdin, bytes) else (typed or stdin).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: typed is not None)
        code = cli.main([str(word) for word in argv])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def model() -> russet.Model:
    return russet.load(FOLDER)


@pytest.fixture
def prompts(monkeypatch) -> list:
    """What every stream() was asked for: (prompt, options), in order."""
    asked, stream = [], russet.Model.stream

    def recorded(self, prompt, *, progress=None, **options):
        asked.append((prompt, options))
        return stream(self, prompt, progress=progress, **options)

    monkeypatch.setattr(russet.Model, "stream", recorded)
    return asked


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory) -> Path:
    """The same model, with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(FOLDER, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def start(*argv: object, **options) -> subprocess.Popen:
    command = [*RUSSET, *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# ---- generate ----


def test_generate_prints_the_text_and_nothing_else(run, model):
    expected = model.generate(PROMPT, max_tokens=20)
    assert run("generate", "-m", FOLDER, "-n", 20, "--ignore-chat-template", PROMPT) == (0, expected + "\n", "")


@pytest.mark.parametrize(
    ("argv", "stdin"),
    [
        ([PROMPT], "not this"),
        (["--prompt", PROMPT], "not this"),
        (["-p", PROMPT], "not this"),
        (["-p", "-"], PROMPT + "\n"),
        (["-"], PROMPT),
        ([], PROMPT + "\n"),
        ([], PROMPT + "\n\n"),
        ([], PROMPT + "\r\n"),
    ],
)
def test_where_the_prompt_comes_from(run, prompts, argv, stdin):
    assert run("generate", "-m", FOLDER, "-n", 1, "--ignore-chat-template", *argv, stdin=stdin).code == 0
    assert prompts[0][0] == PROMPT + ("\n" if stdin.endswith("\n\n") else "")


def test_flags_that_are_not_given_leave_the_models_defaults(run, prompts):
    run("generate", "-m", FOLDER, "-n", 1, PROMPT)
    assert prompts[0][1] == {"max_tokens": 1}


GENERATE_FLAGS = {
    ("--max-tokens", "3"): {"max_tokens": 3},
    ("-n", "3"): {"max_tokens": 3},
    ("-n", "-1", "--stop", "a"): {"max_tokens": None, "stop": ["a"]},
    ("-n", "0"): {"max_tokens": 0},
    ("--temp", "0.5"): {"temperature": 0.5},
    ("--temperature", "0.5"): {"temperature": 0.5},
    ("--top-p", "0.9"): {"top_p": 0.9},
    ("--top-k", "5"): {"top_k": 5},
    ("--min-p", "0.1"): {"min_p": 0.1},
    ("--repetition-penalty", "1.2"): {"repetition_penalty": 1.2},
    ("--min-tokens", "2"): {"min_tokens": 2},
    ("--typical-p", "0.9"): {"typical_p": 0.9},
    ("--top-n-sigma", "1.5"): {"top_n_sigma": 1.5},
    ("--xtc-probability", "0.5", "--xtc-threshold", "0.2"): {"xtc_probability": 0.5, "xtc_threshold": 0.2},
    ("--mirostat-tau", "5", "--mirostat-eta", "0.2"): {"mirostat_tau": 5.0, "mirostat_eta": 0.2},
    ("--presence-penalty", "0.5", "--frequency-penalty", "-1"): {"presence_penalty": 0.5, "frequency_penalty": -1.0},
    ("--penalty-window", "64"): {"penalty_window": 64},
    ("--dry-multiplier", "0.8", "--dry-base", "2"): {"dry_multiplier": 0.8, "dry_base": 2.0},
    ("--dry-allowed-length", "3", "--dry-window", "9"): {"dry_allowed_length": 3, "dry_window": 9},
    ("--dry-breaker", ".", "--dry-breaker", "!"): {"dry_breakers": [".", "!"]},
    ("--logit-bias", "5=-1.5", "--logit-bias", "7=-inf"): {"logit_bias": [(5, -1.5), (7, -math.inf)]},
    ("--sequence-bias", "5,7=-1.5", "--sequence-bias", "3=2"): {"sequence_bias": [([5, 7], -1.5), ([3], 2.0)]},
    ("--bad-word", "the"): {"bad_words": ["the"]},
    ("--no-repeat-ngram-size", "2"): {"no_repeat_ngram_size": 2},
    ("--samplers", "top_k,temperature"): {"samplers": ["top_k", "temperature"]},
    ("--seed", "7"): {"seed": 7},
    ("-s", "7"): {"seed": 7},
    ("--stop", "a", "--stop", "the"): {"stop": ["a", "the"]},
    ("--stop-token-ids", "5,7"): {"stop_token_ids": [5, 7]},
    ("--ignore-eos",): {"ignore_eos": True},
    ("--timeout", "99.5"): {"timeout": 99.5},
    ("--no-cache",): {"use_cache": False},
}


@pytest.mark.parametrize("flags", GENERATE_FLAGS, ids=" ".join)
def test_generation_flags_reach_the_model(run, prompts, flags):
    limit = () if {"-n", "--max-tokens"} & {*flags} else ("-n", "2")
    assert run("generate", "-m", FOLDER, PROMPT, *flags, *limit).code == 0
    assert prompts[0][1] == GENERATE_FLAGS[flags] | ({"max_tokens": 2} if limit else {})


LOAD_FLAGS = {
    (): {},
    ("--n-ctx", "64"): {"n_ctx": 64},
    ("-c", "64"): {"n_ctx": 64},
    ("--threads", "1"): {"threads": 1},
    ("-t", "1"): {"threads": 1},
    ("--max-memory", "1GB"): {"max_memory": "1GB"},
    ("--backend", "cpu"): {"backend": "cpu"},
    ("--no-strict",): {"strict": False},
}


@pytest.mark.parametrize("flags", LOAD_FLAGS, ids=" ".join)
def test_model_flags_reach_load(run, monkeypatch, flags):
    asked, load = [], russet.load
    monkeypatch.setattr(
        russet, "load", lambda model, **options: asked.append((model, options)) or load(model, **options)
    )
    assert run("generate", "-m", FOLDER, "-n", 1, PROMPT, *flags).code == 0
    assert asked == [(FOLDER, LOAD_FLAGS[flags])]


def test_source_flags_reach_the_hub(run, monkeypatch):
    asked = []
    monkeypatch.setattr(cli.flags, "resolve", lambda model, **options: asked.append((model, options)) or FOLDER)
    assert run("generate", "-m", "org/name", "-n", 1, "--revision", "v1", "--local-files-only", PROMPT).code == 0
    assert asked == [("org/name", {"revision": "v1", "local_files_only": True})]


def test_json_is_one_report_of_text_and_speeds(run, model):
    code, out, err = run("generate", "-m", FOLDER, "-n", 20, "--ignore-chat-template", "--json", PROMPT)
    report = json.loads(out)
    pieces = list(model.stream(PROMPT, max_tokens=20))
    assert (code, err) == (0, "")
    assert report["model"] == str(FOLDER)
    assert report["text"] == "".join(piece.text for piece in pieces)
    assert report["finish_reason"] == "length"
    assert (report["prompt_tokens"], report["cached_tokens"]) == (pieces[-1].prompt_tokens, 0)
    assert report["generated_tokens"] == 20
    assert report["prompt_tokens_per_s"] * report["first_token_s"] == pytest.approx(report["prompt_tokens"])
    assert report["gb_per_s"] == pytest.approx(model.weight_bytes * report["tokens_per_s"] / 1e9)


def test_several_texts_are_told_apart(run, model):
    drawn = ("generate", "-m", FOLDER, "-n", 8, "--ignore-chat-template", "--temp", 1, "-s", 5, PROMPT)
    several = ("--num-return-sequences", 3)
    texts = model.generate_many(PROMPT, n=3, max_tokens=8, temperature=1.0, seed=5)
    code, out, err = run(*drawn, *several)
    assert (code, err) == (0, "")
    assert out == "".join(f"--- {i + 1} of 3, seed {5 + i}\n{text.text}\n" for i, text in enumerate(texts))
    report = json.loads(run(*drawn, *several, "--json").out)
    assert [one["text"] for one in report] == [text.text for text in texts]
    assert [one["tokens"] for one in report] == [text.tokens for text in texts]
    assert set(report[0]) == {"text", "tokens", "finish_reason", "logprob", "seed"}
    assert "3 texts, 24 tokens in " in run(*drawn, *several, "--verbose").err


def test_beams_are_searched_for(run, model):
    searched = ("generate", "-m", FOLDER, "-n", 8, "--ignore-chat-template", "--num-beams", 3, PROMPT)
    texts = model.beam_search(PROMPT, num_beams=3, num_return_sequences=3, max_tokens=8)
    assert run(*searched) == (0, texts[0].text + "\n", "")
    lines = run(*searched, "--num-return-sequences", 2).out.splitlines()
    assert lines[0] == f"--- 1 of 2, score {texts[0].score:.4f}"
    flags = ("--length-penalty", 0, "--early-stopping", "true", "--json")
    (best,) = json.loads(run(*searched, *flags).out)
    expected = model.beam_search(PROMPT, num_beams=3, max_tokens=8, length_penalty=0.0, early_stopping=True)
    assert (best["text"], best["score"]) == (expected[0].text, expected[0].score)


def test_a_timeout_keeps_what_came(run, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("russet.limits.monotonic", lambda: next(ticks))
    argv = ("generate", "-m", FOLDER, "-n", 50, "--temp", 0, "--ignore-eos", "--ignore-chat-template", "--json", PROMPT)
    report = json.loads(run(*argv, "--timeout", 10).out)
    assert report["finish_reason"] == "timeout"
    assert 0 < report["generated_tokens"] < 10
    assert json.loads(run(*argv).out)["text"].startswith(report["text"])
    code, out, _ = run(*argv, "--timeout", 0.5)
    report = json.loads(out)
    assert (code, report["text"], report["finish_reason"]) == (0, "", "timeout")
    assert (report["generated_tokens"], report["prompt_tokens_per_s"]) == (0, 0)


THINKS = "{% if thinking is not false %}{% set t = '<think>' %}{% endif %}{{ messages[-1].content }}{{ t }}" + (
    "{# </think> #}"
)


@pytest.fixture(scope="session")
def thinking_folder(tmp_path_factory) -> Path:
    """The same model, whose template has it think: for ever, as it knows no closing tag."""
    folder = tmp_path_factory.mktemp("models") / "thinks"
    shutil.copytree(FOLDER, folder)
    (folder / "chat_template.jinja").write_text(THINKS)
    return folder


def test_thoughts_go_to_stderr_and_are_no_text(run, model, thinking_folder):
    argv = ("generate", "-m", thinking_folder, "-n", 12, PROMPT)
    thought = json.loads(run(*argv, "--json").out)
    assert (thought["text"], thought["finish_reason"]) == ("", "length")
    assert len(thought["thought"]) > 10
    assert run(*argv) == (0, "", thought["thought"] + "\n")
    said = json.loads(run(*argv, "--json", "--no-thinking").out)
    assert (said["text"], said["thought"]) == (model.generate(PROMPT, max_tokens=12), "")


@pytest.fixture
def thoughtful(monkeypatch):
    """Every answer has a thought before it."""
    stream = russet.Model.stream

    def thinking(self, prompt, **options):
        first = True
        for piece in stream(self, prompt, **options):
            yield replace(piece, text="", thought="Hm. ", finish_reason=None) if first else piece
            first = False

    monkeypatch.setattr(russet.Model, "stream", thinking)


def test_an_answer_begins_after_its_thoughts(run, thoughtful):
    argv = ("generate", "-m", FOLDER, "-n", 5, "--ignore-chat-template", PROMPT)
    report = json.loads(run(*argv, "--json").out)
    assert (report["thought"], bool(report["text"])) == ("Hm. ", True)
    assert run(*argv) == (0, report["text"] + "\n", "Hm. \n\n")


def test_verbose_ends_with_speeds_on_stderr(run, model):
    _, out, err = run("generate", "-m", FOLDER, "-n", 5, "--ignore-chat-template", "--verbose", PROMPT)
    assert out == model.generate(PROMPT, max_tokens=5) + "\n"
    n_tokens = len(model.tokenizer.encode(PROMPT))
    assert err.startswith(f"russet: prompt {n_tokens} tokens, 0 of them cached (new text), first token after 0.")
    assert "generated 5 tokens" in err
    assert err.count("\n") == 1


def test_a_prompt_cache_is_taken_up_and_written(run, tmp_path):
    path = tmp_path / "texts"
    command = ("generate", "-m", FOLDER, "-n", 5, "--temp", 0, "--json", "--prompt-cache", path, PROMPT)
    first, second = (json.loads(run(*command).out) for _ in range(2))
    assert (first["cached_tokens"], first["cache_miss"]) == (0, "new text")
    assert (second["cached_tokens"], second["cache_miss"]) == (second["prompt_tokens"] - 1, None)
    assert second["text"] == first["text"]
    code, out, err = run(*command[:-3], "--kv-dtype", "int8", *command[-3:])
    assert (code, out) == (1, "")
    assert "kv_dtype: expected 'int8', got 'float" in err


@pytest.mark.parametrize("flags", [["--prompt-lookup"], ["--draft-model", FOLDER], ["-md", FOLDER]])
def test_drafts_change_nothing_but_the_counts(run, flags):
    command = ("generate", "-m", FOLDER, "-n", 40, "--temp", 0, "--ignore-eos", PROMPT)
    plain = json.loads(run(*command, "--json").out)
    drafted = json.loads(run(*command, "--json", *flags, "--num-draft-tokens", 5).out)
    assert drafted["text"] == plain["text"]
    assert (plain["accepted_tokens"], plain["drafted_tokens"]) == (0, 0)
    assert 0 <= drafted["accepted_tokens"] <= drafted["drafted_tokens"]
    if "--prompt-lookup" not in flags:  # the model itself drafts: all that is drafted is right
        assert drafted["accepted_tokens"] == drafted["drafted_tokens"] > 0
        err = run(*command, "--verbose", *flags).err
        assert re.search(r"generated 40 tokens, \d+ of \d+ drafted accepted, ", err)


def test_a_full_context_may_shift(run):
    command = ("generate", "-m", FOLDER, "-n", 60, "-c", 40, "--temp", 0, "--ignore-eos", "--json", PROMPT)
    ended = json.loads(run(*command).out)
    assert ended["prompt_tokens"] + ended["generated_tokens"] == 40
    shifted = json.loads(run(*command, "--context-overflow", "shift", "--n-sinks", 2).out)
    assert shifted["generated_tokens"] == 60
    assert shifted["text"].startswith(ended["text"])


@pytest.mark.parametrize("system", [[], ["--system-prompt", "Be kind."]])
def test_a_chat_template_is_used(run, prompts, chat_folder, system):
    run("generate", "-m", chat_folder, "-n", 1, "Hi", *system)
    messages = [user("Hi")]
    if system:
        messages.insert(0, {"role": "system", "content": "Be kind."})
    assert prompts[0][0] == messages


def test_a_chat_template_can_be_ignored(run, prompts, chat_folder):
    run("generate", "-m", chat_folder, "-n", 1, "Hi", "--ignore-chat-template")
    assert prompts[0][0] == "Hi"


def test_without_a_model_the_demo_answers_and_says_so(run):
    for _ in range(2):
        code, out, err = run("generate", "-n", 8, "--seed", 1, "--ignore-eos", PROMPT)
        assert code == 0
        assert len(out.split()) > 2
        assert err.startswith("russet: no model given: using the built-in demo")
        assert err.count("\n") == 1


def test_notices_are_lines_like_others(run, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"num_beams": 4}')
    code, _, err = run("generate", "-m", tmp_path / "model", "-n", 1, PROMPT)
    assert code == 0
    assert err.startswith("russet: ")
    assert "num_beams" in err
    assert "Warning" not in err
    assert logging.getLogger("russet").handlers == []  # and nothing of that stays behind


def test_an_empty_answer_is_nothing_at_all(run):
    assert run("generate", "-m", FOLDER, "-n", 0, PROMPT) == (0, "", "")


@pytest.fixture
def ctrl_c_after(monkeypatch):
    """Ctrl-C comes after so many tokens of every answer."""
    stream = russet.Model.stream

    def set_up(n_tokens: int) -> None:
        def interrupted(self, prompt, **options):
            yield from islice(stream(self, prompt, **options), n_tokens)
            raise KeyboardInterrupt

        monkeypatch.setattr(russet.Model, "stream", interrupted)

    return set_up


def test_ctrl_c_keeps_what_came(run, model, ctrl_c_after):
    expected = model.generate(PROMPT, max_tokens=9)
    ctrl_c_after(9)
    argv = ("generate", "-m", FOLDER, "-n", 50, "--ignore-chat-template", PROMPT)
    assert run(*argv) == (130, expected + "\n", "")
    code, out, _ = run(*argv, "--json")
    report = json.loads(out)
    assert (code, report["text"], report["finish_reason"]) == (130, expected, "interrupted")
    assert report["generated_tokens"] == 9
    assert "generated 9 tokens" in run(*argv, "--verbose").err


def test_ctrl_c_before_the_first_token(run, ctrl_c_after):
    ctrl_c_after(0)
    argv = ("generate", "-m", FOLDER, PROMPT)
    assert run(*argv, "--verbose") == (130, "", "")
    code, out, _ = run(*argv, "--json")
    assert (code, json.loads(out)["finish_reason"]) == (130, "interrupted")


def test_ctrl_c_ends_a_chat_that_is_piped(run, prompts, ctrl_c_after):
    ctrl_c_after(3)
    code, out, _ = run("chat", "-m", FOLDER, stdin="Hi\nHi again\n")
    assert code == 130
    assert out.endswith("\n")
    assert len(prompts) == 1


# ---- errors ----

USAGE = [
    ([], "expected a command"),
    (["genrate"], "genrate: no such command; did you mean generate?"),
    (["zzz"], "zzz: no such command; there are generate, chat, quantize, bench, perplexity, "),
    (["--debug"], "required: COMMAND"),
    (["generate", "--max-token", "5", "hi"], "--max-token: no such flag; did you mean --max-tokens?"),
    (["generate", "--max-token=5", "hi"], "--max-token: no such flag; did you mean --max-tokens?"),
    (["generate", "--top-p"], "expected one argument"),
    (["generate", "-n", "many", "hi"], "expected an integer, got 'many'"),
    (["generate", "once", "upon"], "upon: one word too many; put a prompt in quotes"),
    (["generate", "a", "--prompt", "b"], "expected one prompt, got two"),
    (["generate", "--top-p", "2", "hi"], "top_p: expected more than 0 and at most 1, got 2.0"),
    (["generate", "--seed", "-1", "hi"], "seed: expected"),
    (["generate", "--num-beams", "0", "hi"], "num_beams: expected an integer from 1 on, got 0"),
    (["generate", "--num-beams", "2", "--num-return-sequences", "3", "hi"], "num_return_sequences: expected at most"),
    (["generate", "--length-penalty", "2", "hi"], "give --num-beams as well"),
    (["generate", "-m", FOLDER, "--num-return-sequences", "0", "hi"], "n: expected an integer from 1 on, got 0"),
    (["generate", "-m", FOLDER, "--num-beams", "2", "--temp", "1", "hi"], "temperature: beam search draws nothing"),
    (["generate", "--timeout", "0", "hi"], "timeout: expected a number of seconds above 0, or None, got 0.0"),
    (["generate", "--stop-token-ids", "5,x", "hi"], "expected ID,ID,.. as in 2 or 7,13, got '5,x'"),
    (["generate", "-m", FOLDER, "--ignore-chat-template", "--no-thinking", "hi"], "--no-thinking: without a chat"),
    (["chat", "-m", FOLDER, "--ignore-chat-template", "--thinking"], "--no-thinking: without a chat template"),
    (["generate", "--samplers", "top_k,topp", "hi"], "samplers: no step is called 'topp'; did you mean 'top_p'?"),
    (["generate", "--samplers", "xtc,xtc", "hi"], "samplers: 'xtc' is there twice"),
    (["generate", "--logit-bias", "5", "hi"], "--logit-bias: expected ID=X, as in 42=-1.5, got '5'"),
    (["generate", "--sequence-bias", "5,=1", "hi"], "--sequence-bias: expected ID,..=X, as in 42,7=-1.5, got '5,=1'"),
    (["generate", "-m", FOLDER, "--n-ctx", "0", "hi"], "n_ctx: expected at least 1 token, got 0"),
    (["generate", "-m", FOLDER, "--threads", "0", "hi"], "threads: expected 1 to 1024, got 0"),
    (["generate", "-m", FOLDER, "--max-memory", "lots", "hi"], "max_memory: expected bytes or a size"),
    (["generate", "-m", FOLDER, "--ignore-chat-template", "--system-prompt", "x", "hi"], "--system-prompt: "),
    (["chat", "-m", FOLDER, "--ignore-chat-template", "--system-prompt", "x"], "--system-prompt: "),
    (["chat", "hi"], "hi: one word too many"),
    (["inspect", "--jsno"], "--jsno: no such flag; did you mean --json?"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), USAGE, ids=[" ".join(map(str, argv))[:40] for argv, _ in USAGE])
def test_a_wrong_command_line_gives_2_and_one_line(run, argv, message):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    *help_lines, line = err.splitlines()
    assert line.startswith("russet: ")
    assert message in line
    assert bool(help_lines) == (not argv)  # all the help where nothing was asked


def broken_file(folder: Path) -> str:
    os.truncate(folder / "model.safetensors", 1000)
    return "model.safetensors: expected"


def no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "expected config.json, got no such file"


def config_not_json(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json: expected JSON"


def unknown_family(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "lama"}')
    return "the nearest is 'llama'"


def no_tokenizer(folder: Path) -> str:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return "no tokenizer; expected tokenizer.json or tokenizer.model"


@pytest.mark.parametrize("spoil", [broken_file, no_config, config_not_json, unknown_family, no_tokenizer])
@pytest.mark.parametrize("command", [("generate", "hi"), ("chat",)], ids=["generate", "chat"])
def test_a_broken_model_gives_1_and_one_line(run, tmp_path, spoil, command):
    shutil.copytree(FOLDER, tmp_path / "model")
    message = spoil(tmp_path / "model")
    code, out, err = run(*command, "-m", tmp_path / "model")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("russet: ")
    assert message in err


def test_a_missing_folder_gives_1_and_one_line(run):
    for command in (["generate", "hi", "-m"], ["chat", "-m"], ["inspect"]):
        code, out, err = run(*command, "./nowhere")
        assert (code, out) == (1, "")
        assert err == "russet: ./nowhere: no such folder; pass a model's folder, or a hub id like org/name\n"


def test_a_prompt_longer_than_the_context_gives_1(run):
    code, out, err = run("generate", "-m", FOLDER, "-c", 4, PROMPT * 5)
    assert (code, out) == (1, "")
    assert "do not fit n_ctx=4" in err


def test_a_model_that_does_not_fit_shows_the_sum(run):
    code, _, err = run("generate", "-m", FOLDER, "--max-memory", "1MB", PROMPT)
    assert code == 1
    assert "weights" in err
    assert "may be used" in err


def test_stdin_that_is_no_text_gives_2(run):
    code, _, err = run("generate", "-m", FOLDER, stdin=b"caf\xe9")
    assert (code, err) == (2, "russet: stdin: expected utf-8 text, got the byte 0xe9; convert it first\n")
    code, _, err = run("chat", "-m", FOLDER, stdin=b"caf\xe9\n")
    assert code == 2
    assert "got the byte 0xe9" in err


def test_debug_shows_where_an_error_comes_from(run):
    code, _, err = run("generate", "-m", "./nowhere", "--debug", "hi")
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("russet: ./nowhere: no such folder")


def test_what_nobody_expected_asks_for_a_report(run, monkeypatch):
    monkeypatch.setattr(russet.Model, "stream", lambda *_, **__: 1 / 0)
    code, out, err = run("generate", "-m", FOLDER, "hi")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError" in err
    assert "please report it" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "russet: out of memory; try a smaller --n-ctx, or a smaller model\n"),
        (OSError(28, "No space left on device"), "russet: [Errno 28] No space left on device\n"),
        (russet.TemplateError("one\ntwo"), "russet: one two\n"),
    ],
)
def test_what_a_machine_can_lack_gives_1_and_one_line(run, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(russet.Model, "stream", fail)
    assert run("generate", "-m", FOLDER, "hi") == (1, "", message)


# ---- help ----


def test_version_is_fast_and_plain():
    """No package is imported that only some commands need."""
    program = "import sys; from russet import cli\ntry: cli.main(['--version'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    version, modules = done.stdout.splitlines()
    assert version == f"russet {russet.__version__}"
    heavy = {"rich", "jinja2", "tokenizers", "sentencepiece", "huggingface_hub", "readline"}
    assert not heavy & {*modules.split()}


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids=lambda words: "".join(words) or "-")
def test_help_has_examples_and_fits_a_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert "examples:\n  russet " in out
    assert max(map(len, out.splitlines())) <= 80
    if not command:
        assert all(f"\n    {name} " in out for name in cli.COMMANDS)


# ---- chat, piped ----


def test_chat_keeps_what_was_said(run, prompts, chat_folder):
    code, out, err = run("chat", "-m", chat_folder, "-n", 6, "--verbose", stdin="Hi\nAnd you?\n")
    (first, options), (second, _) = prompts
    assert (code, options) == (0, {"max_tokens": 6})
    assert first == [user("Hi")]
    answer = second[1]["content"]
    assert second == [*first, {"role": "assistant", "content": answer}, user("And you?")]
    assert out.startswith(answer + "\n")
    assert "> " not in out
    first, second = n_cached(err)
    assert first == 0
    assert second > 5  # the first message and most of its answer are not computed again


def n_cached(err: str) -> list[int]:
    """Of the lines of --verbose."""
    return [int(line.split()[4]) for line in err.splitlines() if " cached" in line]


def test_chat_keeps_thoughts_apart(run, prompts, chat_folder, thoughtful):
    assert run("chat", "-m", chat_folder, "-n", 6, stdin="Hi\nAnd you?\n").code == 0
    answer = prompts[1][0][1]
    assert (answer["role"], answer["reasoning_content"]) == ("assistant", "Hm. ")
    assert answer["content"]
    assert "Hm. " not in answer["content"]


def test_a_message_that_was_only_thought_about_is_not_kept(run, prompts, thinking_folder):
    code, out, err = run("chat", "-m", thinking_folder, "-n", 3, stdin="Hi\nHo\n")
    assert (code, out) == (0, "")
    assert [prompt for prompt, _ in prompts] == [[user("Hi")], [user("Ho")]]
    assert err.count("stopped before there was an answer; the message is not kept") == 2


def test_an_answer_goes_on_whatever_was_said_about_thinking(run, prompts, chat_folder):
    (folder := chat_folder.with_name("switch")).mkdir(exist_ok=True)
    shutil.copytree(chat_folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE + "{% if enable_thinking %}</think>{% endif %}")
    assert run("chat", "-m", folder, "-n", 4, "--no-thinking", typed="Hi\n\n").code == 0
    assert [options["thinking"] for _, options in prompts] == [False, None]


def test_reset_forgets_the_cache_too(run, chat_folder):
    err = run("chat", "-m", chat_folder, "-n", 2, "--verbose", stdin="Hi\n/reset\nHi\n").err
    assert n_cached(err) == [0, 0]


def test_chat_gives_the_text_of_generate(run, model, chat_folder):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    expected = russet.load(chat_folder).generate(messages, max_tokens=8)
    _, out, _ = run("chat", "-m", chat_folder, "-n", 8, "--system-prompt", "Be kind.", stdin="Hi\n")
    assert out == expected + "\n"


def test_chat_commands(run, prompts, chat_folder):
    script = "One\n/system You are\\\nan owl.\nTwo\n/reset\n/system\nThree\n/rest\n/help\n  \n/quit\nFour\n"
    code, _, err = run("chat", "-m", chat_folder, "-n", 2, stdin=script)
    one, two, three = (prompt for prompt, _ in prompts)
    assert code == 0
    assert [m["role"] for m in one] == ["user"]
    assert [m["role"] for m in two] == ["system", "user", "assistant", "user"]
    assert two[0]["content"] == "You are\nan owl."
    assert three == [user("Three")]
    assert "/rest: no such command; did you mean /reset?" in err
    assert "Ctrl-C stops an answer" in err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("one\\\ntwo\\\nthree\n", "one\ntwo\nthree"),
        ('"""\none\n\n  two\\\n"""\n', "one\n\n  two\\"),
        ('"""\none\ntwo', "one\ntwo"),
        ("one\\", "one\n"),
        ("/usr/bin is a folder\n", "/usr/bin is a folder"),
        ("no line break", "no line break"),
    ],
)
def test_messages_of_several_lines(run, prompts, chat_folder, typed, message):
    assert run("chat", "-m", chat_folder, "-n", 1, stdin=typed).code == 0
    assert prompts[0][0][-1]["content"] == message


def test_chat_without_a_template_goes_on_with_the_text(run, prompts):
    argv = ("chat", "-m", FOLDER, "--ignore-chat-template", "-n", 5)
    code, out, err = run(*argv, stdin="Once upon\n/system x\nThe end\n/reset\nLily\n")
    first, second, third = (prompt for prompt, _ in prompts)
    answer = out[: second.index("\nThe end") - len(first)]
    assert code == 0
    assert (first, second, third) == ("Once upon", f"Once upon{answer}\nThe end", "Lily")
    assert "it goes on with what you type" in err
    assert "/system: without a chat template" in err


def test_a_full_context_says_what_to_do(run, chat_folder):
    code, _, err = run("chat", "-m", chat_folder, "-c", 40, "--ignore-eos", stdin="Hi\n")
    assert code == 0
    assert "russet: the context of 40 tokens is full; /reset forgets what was said\n" in err
    code, _, err = run("chat", "-m", chat_folder, "-c", 40, "--ignore-eos", stdin="Hi\nHi\nHi\n")
    assert code == 1
    assert "do not fit n_ctx=40" in err.splitlines()[-1]


# ---- chat, typed ----


def test_enter_lets_a_cut_answer_go_on(run, prompts, chat_folder):
    model = russet.load(chat_folder)
    begun = [user("Hi"), {"role": "assistant", "content": model.generate([user("Hi")], max_tokens=4)}]
    prompts.clear()
    code, out, err = run("chat", "-m", chat_folder, "-n", 4, typed="\nHi\n\nBye\n")
    (first, second, third), _ = zip(*prompts, strict=True)
    assert (code, first) == (0, [user("Hi")])
    assert second == model.tokenizer.apply_chat_template(begun, continue_final_message=True)
    more = third[1]["content"].removeprefix(begun[1]["content"])
    assert third == [user("Hi"), {"role": "assistant", "content": begun[1]["content"] + more}, user("Bye")]
    assert out.startswith(f"{begun[1]['content']}\n{more}\n")
    assert err.count("Enter lets it go on") == 3


def test_a_message_without_an_answer_is_not_kept(run, prompts, ctrl_c_after, chat_folder):
    ctrl_c_after(0)
    code, out, err = run("chat", "-m", chat_folder, typed="Hi\n\nHo\n")
    assert (code, out) == (0, "")
    assert [prompt for prompt, _ in prompts] == [[user("Hi")], [user("Ho")]]
    assert err.count("stopped before there was an answer; the message is not kept") == 2


def test_an_error_takes_the_message_back_and_goes_on(run, prompts, chat_folder):
    code, out, err = run("chat", "-m", chat_folder, "-c", 40, "-n", 2, typed=f"{PROMPT * 9}\nHi\n/quit\n")
    assert code == 0
    assert "do not fit n_ctx=40" in err
    assert "/reset forgets what was said" in err
    assert prompts[1][0] == [user("Hi")]
    assert out == russet.load(chat_folder).generate([user("Hi")], max_tokens=2) + "\n"


def test_after_an_error_the_last_answer_can_still_go_on(run, prompts, chat_folder):
    assert run("chat", "-m", chat_folder, "-c", 40, "-n", 2, typed=f"Hi\n{PROMPT * 9}\n\n").code == 0
    (first, failed, more), _ = zip(*prompts, strict=True)
    assert first == [user("Hi")]
    assert failed[-1] == user(PROMPT * 9)
    assert isinstance(more[0], int)  # ids, that end inside the first answer
    assert len(more) <= 40


def test_the_prompt_is_no_part_of_the_answers(run, chat_folder):
    answers = run("chat", "-m", chat_folder, "-n", 3, stdin="Hi\n").out
    code, out, err = run("chat", "-m", chat_folder, "-n", 3, typed="Hi\n")
    assert (code, out) == (0, answers)
    assert err.count("> ") == 2


# ---- doctor ----


def test_doctor_says_what_is_in_use(run):
    code, out, err = run("doctor", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["version"] == russet.__version__
    assert report["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert report["threads"] >= 1
    assert set(report["features"]) <= {"neon", "dotprod", "i8mm", "avx2", "avx512", "vnni", "amx"}
    assert {"matvec", "matmul", "attention"} <= report["kernels"].keys()
    assert report["total_bytes"] >= report["available_bytes"] > 0
    available = {b["name"]: b["available"] for b in report["backends"]}
    assert list(available) == ["cpu", "metal", "metal-sim", "mlx"]
    assert available["cpu"]
    assert all(b["reason"] for b in report["backends"])
    assert all(report["packages"].values())
    text = run("doctor").out
    for value in (report["chip"], report["matmul"], report["system"], report["hub_cache"]):
        assert value in text


def test_doctor_heeds_the_environment():
    environment = os.environ | {"RUSSET_ISA": "scalar", "RUSSET_THREADS": "3", "HF_TOKEN": "secret"}
    done = subprocess.run([*RUSSET, "doctor", "--json"], capture_output=True, text=True, env=environment)
    report = json.loads(done.stdout)
    assert (report["threads"], report["features"]) == (3, [])
    assert report["kernels"]["attention"] == "ref"
    assert report["environment"]["RUSSET_ISA"] == "scalar"
    assert "secret" not in done.stdout


def test_doctor_finds_a_missing_package(run, monkeypatch):
    monkeypatch.setattr("russet.doctor._PACKAGES", ("numpy", "no-such-package"))
    assert "no-such-package MISSING" in run("doctor").out


# ---- real processes: signals, pipes, terminals ----


def test_ctrl_c_keeps_the_text_and_gives_130():
    child = start("generate", PROMPT, *ENDLESS)
    first = child.stdout.read(20)  # it streams: there is text long before the end, and not in large blocks
    buffered = child.stdout.peek()  # communicate() does not see it
    assert len(buffered) < 2000
    child.send_signal(signal.SIGINT)
    rest, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert len(first) == 20
    assert (buffered + rest).endswith(b"\n")
    assert b"Traceback" not in err


def test_a_timeout_ends_the_text_by_itself():
    child = start("generate", PROMPT, *ENDLESS, "--timeout", 1)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert len(out) > 20
    assert b"Traceback" not in err


def test_a_closed_pipe_ends_it_quietly():
    child = start("generate", PROMPT, *ENDLESS)
    assert child.stdout.read(5)
    child.stdout.close()
    assert child.wait(60) == 141
    assert child.stderr.read().decode().splitlines()[1:] == []  # the demo's notice alone


def test_a_terminal_without_utf_8_shows_what_it_can(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "模型")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*RUSSET, "inspect", tmp_path / "模型"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"/??" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*RUSSET, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "russet: [Errno 28] No space left on device\n")


def test_a_piped_prompt():
    child = start("generate", "-m", FOLDER, "-n", 3, stdin=subprocess.PIPE)
    out, err = child.communicate(PROMPT.encode(), timeout=60)
    assert (child.returncode, err) == (0, b"")
    assert out


class Terminal:
    """A command that runs in a terminal of its own, and somebody who types."""

    def __init__(self, *argv: object, kind: str = "dumb") -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child of fork() runs another program at once
            self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": kind, "COLUMNS": "100", "LINES": "30"}
            os.execv(sys.executable, [*RUSSET, *map(str, argv)])
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> str:
        """What is shown from here on, up to and with the text."""
        deadline = time.monotonic() + 60
        while text not in self.shown:
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"expected {text!r}, got {self.shown!r}"
            self.shown += os.read(self._fd, 4096).decode(errors="replace")
        end = self.shown.index(text) + len(text)
        before, self.shown = self.shown[:end], self.shown[end:]
        return before

    def interrupt(self, until: str) -> None:
        """Ctrl-C, and wait for what it brings.

        A Ctrl-C in the instant between a prompt and the wait for input is lost in Python's readline, which waits in a
        select() that the signal came too early for. So it is pressed again after a while, as a person would.
        """
        for _ in range(10):
            self.type("\x03")
            ready, _, _ = select.select([self._fd], [], [], 5)
            if ready or until in self.shown:
                break
        self.wait_for(until)

    def end(self) -> int:
        """The exit code."""
        with suppress(OSError):  # all is read
            while os.read(self._fd, 4096):
                pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    opened = []

    def open_terminal(*argv: object, **options: str) -> Terminal:
        opened.append(Terminal(*argv, **options))
        return opened[-1]

    yield open_terminal
    for each in opened:
        with suppress(OSError):
            os.kill(each.pid, signal.SIGKILL)


def test_chat_in_a_terminal(terminal):
    chat = terminal("chat", *ENDLESS)
    chat.wait_for("Ctrl-D leaves")
    chat.wait_for("> ")
    chat.type("Hello, my dear\n")
    chat.wait_for("my dear")
    chat.wait_for("e")  # of the answer
    chat.interrupt("Enter lets it go on")
    chat.wait_for("> ")
    chat.type("\n")
    chat.wait_for("e")
    chat.interrupt("Enter lets it go on")
    chat.wait_for("> ")
    chat.type('"""\n')
    chat.wait_for("... ")
    chat.type("half a message")
    chat.wait_for("half a message")
    chat.interrupt("> ")  # takes it back
    chat.type("/reset\n")
    chat.wait_for("what was said is forgotten")
    chat.wait_for("> ")
    chat.type("\x04")
    assert chat.end() == 0


def test_an_error_in_a_terminal_does_not_end_the_chat(terminal, chat_folder):
    chat = terminal("chat", "-m", chat_folder, "-c", "12", "-n", "2")
    chat.wait_for("> ")
    chat.type("far too many words for a context of twelve tokens, if you ask me\n")
    chat.wait_for("do not fit n_ctx=12")
    chat.wait_for("/reset forgets what was said")
    chat.wait_for("> ")
    chat.type("/quit\n")
    assert chat.end() == 0


def test_generate_in_a_terminal_shows_a_spinner_and_needs_a_prompt(terminal):
    generate = terminal("generate", "-m", FOLDER, "-n", "3", "hi", kind="xterm")
    generate.wait_for("loading")
    generate.wait_for("reading the prompt")
    assert generate.end() == 0
    generate = terminal("generate", "-m", FOLDER)
    generate.wait_for("no prompt; pass it as an argument, with --prompt, or on stdin")
    assert generate.end() == 2


def test_python_m_russet():
    done = subprocess.run([*RUSSET, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"russet {russet.__version__}\n")


# ---- quantize ----


def test_quantize_writes_a_folder_that_generate_takes(run, tmp_path):
    path = tmp_path / "int8"
    code, out, err = run("quantize", DEMO, path)
    assert (code, err) == (0, "")
    assert "8 bits in groups of 64: 29" in out
    assert "model.embed_tokens.weight in groups of 64: its 192 inputs make none of 128" in out
    assert run("inspect", path).out.count("8 bits in groups of 64") == 1
    loaded = run("generate", "-m", DEMO, "--quantize", "int8", "-n", 8, "-s", 1, PROMPT)
    assert run("generate", "-m", path, "-n", 8, "-s", 1, PROMPT) == loaded
    code, out, err = run("quantize", DEMO, path)
    assert (code, out) == (2, "")
    assert f"{path}: is there already" in err


def test_quantize_reports_every_matrix_as_json(run, tmp_path):
    kinds = ("--override", "*embed*=int8", "--override", "*v_proj=float")
    options = ("--bits", 4, "--group-size", 32, "--symmetric", *kinds, "--json")
    code, out, err = run("quantize", DEMO, tmp_path / "mixed", *options)
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["n_bytes"] == (tmp_path / "mixed" / "model.safetensors").stat().st_size
    matrices = {m["name"]: m for m in report["matrices"]}
    assert matrices["model.embed_tokens.weight"]["bits"] == 8
    assert matrices["model.layers.0.self_attn.v_proj.weight"]["note"] == "stays bf16"
    q_proj = matrices["model.layers.0.self_attn.q_proj.weight"]
    assert (q_proj["bits"], q_proj["group_size"], q_proj["note"]) == (4, 32, None)
    assert 0 < q_proj["error"]["rms"] < q_proj["error"]["max"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("generate", "--quantize", "int2", PROMPT), "invalid choice: 'int2'"),
        (("generate", "--group-size", 32, PROMPT), "--group-size, --symmetric and --override say how to quantise"),
        (("generate", "--quantize", "int4", "--group-size", 48, PROMPT), "group_size: expected 32, 64 or 128, got 48"),
        (("generate", "--quantize", "int4", "--override", "x", PROMPT), "--override: expected PATTERN=KIND"),
        (("quantize", DEMO, "new", "--override", "x=int4"), "'x' fits no matrix of this model"),
        (("quantize", DEMO, "new", "--bits", 6), "invalid choice: 6"),
        (("quantize", DEMO), "the following arguments are required: FOLDER"),
    ],
)
def test_quantisation_flags_without_meaning(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*flags)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_quantising_leaves_nothing(tmp_path):
    # A signal from within, so that it comes when the first tensors have been written.
    code = """
import itertools, os, signal, sys
from russet import cli, safetensors
write, count = safetensors.Writer.write, itertools.count()
def interrupted(self, name, array):
    if next(count) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    write(self, name, array)
safetensors.Writer.write = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "quantize", DEMO, tmp_path / "int8"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert not list(tmp_path.iterdir())
