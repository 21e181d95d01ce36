"""Perplexity and comparisons: against transformers, brute force, and sums by hand."""

from __future__ import annotations

import io
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import russet
from russet import cli
from russet.model import DEMO
from russet.perplexity import _windows, compare, perplexity

TEXT = (
    "It was on a dreary night of November that I beheld the accomplishment of my toils. With an anxiety that almost "
    "amounted to agony, I collected the instruments of life around me, that I might infuse a spark of being into the "
    "lifeless thing that lay at my feet. It was already one in the morning; the rain pattered dismally on the panes."
)


def log_softmax(logits) -> list[float]:
    """By hand, summed exactly."""
    values = [float(x) for x in logits]
    top = max(values)
    log_sum = math.log(math.fsum(math.exp(x - top) for x in values))
    return [x - top - log_sum for x in values]


def spread_bound(logits) -> float:
    # The products of one row and of many sum in different orders: float32 rounding, the bound used everywhere.
    return 2e-4 * float(np.ptp(logits))


# ---- what is scored ----


@given(st.integers(2, 300), st.integers(2, 40), st.data())
def test_windows_score_every_token_once_with_the_context_promised(n_tokens, n_ctx, data):
    stride = data.draw(st.integers(1, n_ctx))
    positions = data.draw(st.none() | st.integers(1, 300))
    windows = list(_windows(n_tokens, n_ctx, stride, positions))
    scored = [(at, at - begin) for begin, first, end in windows for at in range(first, end)]
    not_scored = {0} if stride < n_ctx else set(range(0, n_tokens, stride))
    expected = [at for at in range(n_tokens) if at not in not_scored][:positions]
    assert [at for at, _ in scored] == expected
    for at, context in scored:
        assert min(at, n_ctx - stride, n_ctx - 1) <= context < n_ctx or context == at
        assert context >= 1


def brute_force(model, ids, n_ctx, stride) -> list[float]:
    """Each token alone: from the first window that holds it, by the last row of what comes before."""
    nats = []
    for at in range(1, len(ids)):
        begin = next(begin for begin in range(0, len(ids), stride) if at < begin + n_ctx)
        logits = model.logits(ids[begin:at])[-1]
        nats.append(-log_softmax(logits)[ids[at]])
    return nats


@pytest.mark.parametrize(("n_ctx", "stride"), [(16, 8), (16, 3), (9, 1), (200, 100)])
def test_sliding_windows_match_brute_force(demo, n_ctx, stride):
    ids = demo.tokenizer.encode(TEXT)[:60]
    nats = brute_force(demo, ids, n_ctx, stride)
    measured = perplexity(demo, ids, n_ctx=n_ctx, stride=stride)
    bound = spread_bound(demo.logits(ids))
    assert measured.n_scored == len(nats) == 59
    assert measured.nats_per_token == pytest.approx(np.mean(nats), abs=bound)
    assert measured.nats_per_token_error == pytest.approx(np.std(nats, ddof=1) / math.sqrt(59), abs=bound)
    assert measured.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=2 * bound)
    assert measured.perplexity_error == pytest.approx(measured.perplexity * measured.nats_per_token_error)


def test_transformers_gives_the_same_perplexity(stories, stories_folder):
    """The loop of transformers' documentation, whose labels of -100 are not scored."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories_folder / "hf", dtype=torch.float32).eval()
    text = "Once upon a time, Lily and Tom went to the park. They saw a big dog. The dog was very happy to play! " * 3
    ids = torch.tensor([stories.tokenizer.encode(text)])
    n_ctx, stride = 64, 24
    total, n_scored, scored = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + n_ctx, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - scored)] = -100
        n_valid = int((labels[:, 1:] != -100).sum())  # the first has nothing before it
        with torch.no_grad():
            total += float(theirs(ids[:, begin:end], labels=labels).loss) * n_valid
        n_scored, scored = n_scored + n_valid, end
        if end == ids.shape[1]:
            break
    measured = perplexity(stories, text, n_ctx=n_ctx, stride=stride)
    assert (measured.n_tokens, measured.n_scored) == (ids.shape[1], n_scored)
    assert measured.nats_per_token == pytest.approx(total / n_scored, abs=1e-4)  # as score() is compared


def test_positions_are_the_first_of_the_text(demo):
    ids = demo.tokenizer.encode(TEXT)
    some = perplexity(demo, ids, n_ctx=24, stride=8, positions=40)
    nats = brute_force(demo, ids[:41], 24, 8)
    assert (some.n_tokens, some.n_scored) == (len(ids), 40)
    assert some.nats_per_token == pytest.approx(np.mean(nats), abs=spread_bound(demo.logits(ids)))


def test_one_window_is_what_score_gives(demo):
    measured = perplexity(demo, TEXT)
    scores = demo.score(TEXT)
    assert measured.n_scored == len(scores)
    assert measured.nats_per_token == pytest.approx(-np.mean(scores), abs=spread_bound(demo.logits(TEXT)))


def test_bits_per_byte_spread_all_nats_over_the_scored_text(demo):
    text = "Café: naïve déjà vu, 日本語 and so on. " * 8
    ids = demo.tokenizer.encode(text)
    measured = perplexity(demo, text, n_ctx=32, stride=16)
    first = len(demo.tokenizer.decode(ids[:1], skip_special_tokens=True).encode())
    n_bytes = len(text.encode()) - first
    bits = measured.nats_per_token * measured.n_scored / math.log(2)
    # Where a window's edge cuts a character, what remains is decoded as a replacement of three bytes.
    assert measured.bits_per_byte == pytest.approx(bits / n_bytes, rel=2 / n_bytes)


# ---- two models ----


@pytest.fixture(scope="module")
def int4():
    return russet.load(DEMO, quantize="int4")


def test_comparison_matches_sums_by_hand(demo, int4):
    ids = demo.tokenizer.encode(TEXT)[:50]
    n_ctx, stride = 20, 10
    kls, agrees, nats, nats_against = [], [], [], []
    for at in range(1, len(ids)):
        begin = next(begin for begin in range(0, len(ids), stride) if at < begin + n_ctx)
        p = log_softmax(demo.logits(ids[begin:at])[-1])
        q = log_softmax(int4.logits(ids[begin:at])[-1])
        kls.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
        agrees.append(p.index(max(p)) == q.index(max(q)))
        nats.append(-q[ids[at]])
        nats_against.append(-p[ids[at]])
    c = compare(int4, demo, ids, n_ctx=n_ctx, stride=stride)
    n, log_ratios = len(kls), np.array(nats) - np.array(nats_against)

    def close(expected):
        # Up to 32 tokens give the same bits in any company (docs/design.md), so only sums in double differ.
        return pytest.approx(expected, rel=1e-9, abs=1e-12)

    assert c.model.n_scored == c.against.n_scored == n
    assert c.kl_mean == close(np.mean(kls))
    assert c.kl_mean_error == close(np.std(kls, ddof=1) / math.sqrt(n))
    assert c.kl_max == close(max(kls))
    assert c.kl_p99 == close(np.quantile(kls, 0.99))
    assert c.top1_agreement == np.mean(agrees)
    assert c.top1_agreement_error == close(math.sqrt(np.mean(agrees) * (1 - np.mean(agrees)) / n))
    assert c.model.nats_per_token == close(np.mean(nats))
    assert c.against.nats_per_token == close(np.mean(nats_against))
    assert c.relative_difference == close(c.model.perplexity / c.against.perplexity - 1)
    assert c.relative_difference_error == close(math.exp(log_ratios.mean()) * log_ratios.std(ddof=1) / math.sqrt(n))
    assert 0 < np.mean(agrees) < 1  # or the comparison would say little


def test_a_model_loses_nothing_against_itself(demo):
    c = compare(demo, demo, TEXT, n_ctx=32)
    assert (c.kl_mean, c.kl_max, c.relative_difference, c.top1_agreement) == (0, 0, 0, 1)
    assert c.model == c.against == perplexity(demo, TEXT, n_ctx=32)


def test_log_probabilities_are_taken_in_double(demo, monkeypatch):
    """A token as good as certain: in float32 its probability is 1 and its logarithm 0."""
    session = type(demo.session())
    forward, far = session.forward, 30.0
    rows = np.zeros((1, demo.config.vocab_size), np.float32)
    rows[0, 0] = far

    def flat(self, tokens, **options):
        forward(self, tokens, **options)
        return np.repeat(rows, len(tokens), axis=0)

    monkeypatch.setattr(session, "forward", flat)
    measured = perplexity(demo, [1, 0, 0, 0])
    rest = (demo.config.vocab_size - 1) * math.exp(-far)
    assert measured.nats_per_token == pytest.approx(math.log1p(rest), rel=1e-3)
    assert measured.nats_per_token < 1e-9


# ---- errors ----


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "text: expected at least 3 tokens, the first of which is not scored, got "),
        ([5, 6], {}, "text: expected at least 3 tokens, the first of which is not scored, got 2"),
        (TEXT, {"n_ctx": 1}, "n_ctx: expected at least 2 tokens, got 1"),
        (TEXT, {"n_ctx": 8, "stride": 9}, "stride: expected 1 to n_ctx=8, got 9"),
        (TEXT, {"stride": 0}, "stride: expected 1 to n_ctx="),
        (TEXT, {"positions": 1}, "positions: expected at least 2, for an error to be known, got 1"),
        ([5, 10**6, 7, 8], {}, "token"),
    ],
)
def test_what_has_no_meaning_is_refused(demo, text, options, message):
    with pytest.raises(russet.UsageError, match=message):
        perplexity(demo, text, **options)


def test_a_window_larger_than_the_context_is_refused():
    small = russet.load(DEMO, n_ctx=16)
    with pytest.raises(russet.ContextFull, match="windows of 17 tokens do not fit n_ctx=16"):
        perplexity(small, TEXT, n_ctx=17)
    assert perplexity(small, TEXT).n_ctx == 16
    assert compare(small, russet.load(DEMO), TEXT).model.n_ctx == 16


def test_models_of_different_vocabularies_are_not_compared(demo, stories):
    with pytest.raises(russet.UsageError, match="expected models of one vocabulary, got"):
        compare(demo, stories, TEXT)


def test_nan_is_named(demo, monkeypatch):
    session = type(demo.session())
    forward = session.forward

    def damaged(self, tokens, **options):
        logits = forward(self, tokens, **options)
        if self.n_tokens >= 10:
            logits[-1, 3] = math.nan
        return logits

    monkeypatch.setattr(session, "forward", damaged)
    with pytest.raises(russet.NumericalError, match="token 10 of the text: expected finite logits"):
        perplexity(demo, demo.tokenizer.encode(TEXT)[:11])


# ---- the command ----


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs `russet perplexity` in this process, where book.txt is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(TEXT, "utf-8")

    def run(*argv: object, stdin: bytes = b"", typed: bool = False):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: typed)
        code = cli.main(["perplexity", "-m", str(DEMO), *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_json_is_what_the_library_gives(run, demo):
    expected = perplexity(demo, TEXT, n_ctx=32, stride=8, positions=40)
    flags = ("-c", 32, "--stride", 8, "--positions", 40, "--json")
    for argv, stdin in ((["book.txt"], b""), (["-"], TEXT.encode()), ([], b"\xef\xbb\xbf" + TEXT.encode())):
        code, out, err = run(*argv, *flags, stdin=stdin)
        report = json.loads(out)
        assert (code, err) == (0, "")
        assert report["perplexity"] == pytest.approx(expected.perplexity)
        assert (report["n_scored"], report["n_ctx"], report["stride"]) == (40, 32, 8)


def test_rows_for_people(run):
    code, out, _ = run("book.txt", "--positions", -1)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["text", "windows", "perplexity", "per", "per"]


def test_against_is_another_setting_of_the_same_model(run, demo, int4):
    expected = compare(int4, demo, TEXT, n_ctx=32)
    code, out, _ = run("book.txt", "-c", 32, "--quantize", "int4", "--against", "quantize=none,threads=1", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["settings"] == {"quantize": None, "threads": 1}
    assert report["kl_mean"] == pytest.approx(expected.kl_mean)
    code, out, _ = run("book.txt", "--against", "threads=1")
    assert code == 0
    assert "with threads=1" in out
    assert "100.00%" in out


@pytest.mark.parametrize(
    ("argv", "stdin", "message"),
    [
        (["nowhere.txt"], b"", "nowhere.txt: no such file; pass a text file, or - for stdin"),
        (["."], b"", ".: expected a text file, got a folder; a model goes after --model"),
        ([], b"", "stdin: expected a text, got an empty one"),
        ([], b"caf\xe9", "stdin: expected utf-8 text, got the byte 0xe9; convert it first"),
        (["latin.txt"], b"", "latin.txt: expected UTF-8 text, got the byte 0xe9 at 3; convert it first"),
        (["book.txt", "--against", "threads"], b"", "expected key=value[,key=value], got 'threads'"),
        (["book.txt", "--against", "thread=1"], b"", "thread: no such option; did you mean threads?"),
        (["book.txt", "--positions", 0], b"", "positions: expected at least 2, for an error to be known, got 0"),
    ],
)
def test_a_wrong_command_line_gives_2_and_one_line(run, tmp_path, argv, stdin, message):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    code, out, err = run(*argv, stdin=stdin)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_terminal_without_a_file_is_not_waited_for(run):
    assert run(typed=True) == (2, "", "russet: no text; pass a file, or the text on stdin\n")
