"""From prompt to text: what was expected by others, and what must hold whatever the model."""

import json
import signal
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import russet
from russet import UsageError

PROMPT = "Once upon a time there was"


# ---- against outside oracles ----


def golden(stories_folder):
    return json.loads((stories_folder / "hf_golden_float32.json").read_text())


def test_stories_gives_the_expected_logits(stories, stories_folder):
    for case in golden(stories_folder):
        if "last_logits" in case:
            expected = np.array(case["last_logits"])
            logits = stories.logits(case["prompt_ids"])[-1]
            # 64-wide sums in float32, 5 layers; the file itself is rounded to 6 decimals
            assert np.abs(logits - expected).max() <= 2e-4 * np.ptp(expected) / 4


def test_stories_gives_the_expected_text(stories, stories_folder):
    for case in golden(stories_folder):
        ids = case.get("greedy_200", case.get("greedy_64"))
        prompt = case["prompt_ids"] if case["prompt"].startswith("<") else case["prompt"]
        if prompt:
            assert stories.generate_tokens(prompt, max_tokens=len(ids)) == ids
            assert stories.generate(prompt, max_tokens=len(ids)) == case["greedy_text"]


def test_the_older_config_style_gives_the_same_model(stories, stories_folder, tmp_path):
    for file in (stories_folder / "hf").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text((stories_folder / "hf" / "config.v4style.json").read_text())
    older = russet.load(tmp_path)
    assert older.config == stories.config
    assert older.generate_tokens("Once", max_tokens=50) == stories.generate_tokens("Once", max_tokens=50)


def test_score_and_penalty_equal_transformers(stories, stories_folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories_folder / "hf", dtype=torch.float32).eval()
    ids = stories.tokenizer.encode("Lily and Tom went to the park.")
    with torch.no_grad():
        log_probs = torch.log_softmax(theirs(torch.tensor([ids])).logits[0], -1)
        expected = log_probs[range(len(ids) - 1), ids[1:]].numpy()
        penalised = theirs.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False, repetition_penalty=1.3)[
            0, len(ids) :
        ].tolist()
    assert np.abs(np.array(stories.score("Lily and Tom went to the park.")) - expected).max() < 1e-4
    assert stories.generate_tokens(ids, max_tokens=60, repetition_penalty=1.3) == penalised


# ---- properties ----


def spread_bound(logits):
    # The products of prefill and of decode sum in different orders: float32 rounding, the bound used everywhere.
    return 2e-4 * float(np.ptp(logits))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_chunking_of_a_prompt_gives_the_same_logits(demo, cuts):
    ids = demo.tokenizer.encode(
        "It was on a dreary night of November that I beheld the accomplishment of my toils. " * 3
    )
    whole = demo.session().forward(ids, all_logits=True)
    session, rows, at = demo.session(), [], 0
    for cut in [*cuts, len(ids)]:
        if chunk := ids[at : at + cut]:
            rows.append(session.forward(chunk, all_logits=True))
            at += len(chunk)
    assert np.abs(np.concatenate(rows) - whole).max() <= spread_bound(whole)


def test_token_by_token_equals_prefill(demo):
    ids = demo.tokenizer.encode(PROMPT * 5)
    session = demo.session()
    rows = np.concatenate([session.forward([id]) for id in ids])
    whole = demo.logits(ids)
    assert np.abs(rows - whole).max() <= spread_bound(whole)


def test_a_ragged_batch_equals_each_sequence_alone(demo):
    prompts = [demo.tokenizer.encode(t) for t in ("I", PROMPT, "The sea was calm and the " * 8, "She said that", "No")]
    sessions = [demo.session() for _ in prompts]
    batched = [[] for _ in prompts]
    parts = list(zip(sessions, prompts, strict=True))
    for _ in range(20):
        logits = demo.backend.forward(parts)
        tokens = logits.argmax(axis=1).tolist()
        for generated, token in zip(batched, tokens, strict=True):
            generated.append(token)
        parts = [(s, [t]) for s, t in zip(sessions, tokens, strict=True)]
    alone = [demo.generate_tokens(p, max_tokens=20, temperature=0, ignore_eos=True) for p in prompts]
    assert batched == alone


def test_rewind_then_replay_gives_the_same_bits(demo):
    ids = demo.tokenizer.encode(PROMPT)
    session = demo.session()
    first = session.forward(ids)
    session.forward([5, 6, 7])
    session.rewind(len(ids) - 1)
    again = session.forward(ids[-1:])
    assert np.abs(first - again).max() <= spread_bound(first)
    session.rewind(len(ids) - 1)
    assert np.array_equal(session.forward(ids[-1:]), again)


def test_logits_of_a_prompt_longer_than_a_chunk(stories):
    ids = stories.tokenizer.encode("Lily saw a cat. " * 200)[:512]
    logits = stories.logits(ids)
    session = stories.session()
    session.forward(ids[:300])
    assert logits.shape == (512, stories.config.vocab_size)
    assert np.abs(session.forward(ids[300:], all_logits=True) - logits[300:]).max() <= spread_bound(logits)


def test_the_same_seed_gives_the_same_text(demo):
    texts = [demo.generate(PROMPT, max_tokens=40, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_cache_the_text_is_the_same(demo):
    kept = demo.generate_tokens(PROMPT, max_tokens=30, temperature=0)
    assert demo.generate_tokens(PROMPT, max_tokens=30, temperature=0, use_cache=False) == kept


def test_a_shared_beginning_is_not_computed_again(demo):
    demo.clear_cache()
    first = list(demo.stream(PROMPT, max_tokens=8, temperature=0))
    again = list(demo.stream(PROMPT, max_tokens=8, temperature=0))
    assert first[0].cached_tokens == 0
    assert again[0].cached_tokens == again[0].prompt_tokens - 1
    assert [p.token for p in first] == [p.token for p in again]
    assert demo.cache_bytes() > 0
    demo.clear_cache()
    assert demo.cache_bytes() == 0


def test_pieces_join_to_the_text_and_count(demo):
    pieces = list(demo.stream(PROMPT, max_tokens=12, temperature=0, ignore_eos=True))
    assert [p.generated_tokens for p in pieces] == list(range(1, 13))
    assert [p.finish_reason for p in pieces] == [None] * 11 + ["length"]
    ids = demo.tokenizer.encode(PROMPT)
    whole = demo.tokenizer.decode([*ids, *(p.token for p in pieces)], skip_special_tokens=True)
    assert PROMPT + "".join(p.text for p in pieces) == whole
    assert pieces[-1].tokens_per_s > 0
    assert pieces[0].first_token_s > 0


# ---- endings ----


def test_eos_ends_and_ignore_eos_goes_on(stories):
    free = stories.generate_tokens("Once", max_tokens=10)
    stories.tokenizer.eos_token_ids, kept = (free[4],), stories.tokenizer.eos_token_ids
    try:
        pieces = list(stories.stream("Once", max_tokens=10))
        assert [p.token for p in pieces] == free[:5]
        assert pieces[-1].finish_reason == "stop"
        assert stories.generate_tokens("Once", max_tokens=10, ignore_eos=True) == free
    finally:
        stories.tokenizer.eos_token_ids = kept


def test_a_stop_string_ends_before_it(stories):
    text = stories.generate("Once upon a time", max_tokens=60)
    assert " named Lily" in text
    pieces = list(stories.stream("Once upon a time", max_tokens=60, stop=["named Li", "never"]))
    assert "".join(p.text for p in pieces) == text[: text.index("named Li")]
    assert pieces[-1].finish_reason == "stop"


def test_a_full_context_ends_with_length(stories_folder):
    model = russet.load(stories_folder / "hf", n_ctx=20)
    pieces = list(model.stream("Once upon a time", max_tokens=None))
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].prompt_tokens + pieces[-1].generated_tokens == 20
    exactly_full = list(model.stream([5] * 20, max_tokens=3))
    assert [(p.token, p.finish_reason) for p in exactly_full] == [(None, "length")]


def test_zero_tokens_is_a_prompt_without_an_answer(demo):
    assert demo.generate(PROMPT, max_tokens=0) == ""


# ---- interruption ----


def test_leaving_the_loop_leaves_the_model_usable(demo):
    expected = demo.generate(PROMPT, max_tokens=20, temperature=0)
    for _ in demo.stream(PROMPT, max_tokens=20, temperature=0):
        break
    assert demo.generate(PROMPT, max_tokens=20, temperature=0) == expected


def test_two_streams_at_once_do_not_disturb_each_other(demo):
    expected = [demo.generate_tokens(p, max_tokens=15, temperature=0) for p in (PROMPT, "The sea")]
    pairs = zip(
        demo.stream(PROMPT, max_tokens=15, temperature=0),
        demo.stream("The sea", max_tokens=15, temperature=0),
        strict=True,
    )
    assert [list(tokens) for tokens in zip(*((a.token, b.token) for a, b in pairs), strict=True)] == expected


def test_threads_share_a_model(demo):
    expected = demo.generate_tokens(PROMPT, max_tokens=25, temperature=0)
    results = [None] * 4

    def run(i):
        results[i] = demo.generate_tokens(PROMPT, max_tokens=25, temperature=0)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_ctrl_c_stops_within_one_token(demo):
    expected = demo.generate(PROMPT, max_tokens=20, temperature=0)
    seen = []

    def generate_and_interrupt():
        for piece in demo.stream(PROMPT, max_tokens=400, temperature=0, ignore_eos=True):
            seen.append(piece.token)
            if len(seen) == 5:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        generate_and_interrupt()
    assert len(seen) == 5
    assert demo.generate(PROMPT, max_tokens=20, temperature=0) == expected


def test_an_exception_in_the_users_loop_leaves_the_model_usable(demo):
    def fail_on_the_first_piece():
        for _ in demo.stream(PROMPT, max_tokens=20):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_on_the_first_piece()
    assert len(demo.generate_tokens(PROMPT, max_tokens=5, ignore_eos=True)) == 5


# ---- bad input ----


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], UsageError, "prompt: expected at least one token, got none"),
        ([1, 512], UsageError, "token ids go from 0 to 511, got 512"),
        ([-1], UsageError, "token ids go from 0 to 511, got -1"),
        ([1.5], UsageError, "prompt: expected text, token ids or a list of messages"),
        (7, UsageError, "prompt: expected text, token ids or a list of messages"),
        ([5] * 600, russet.ContextFull, "the prompt's 600 tokens do not fit n_ctx=512"),
        ([{"role": "user", "content": "hi"}], russet.TemplateError, "chat template"),
    ],
)
def test_a_prompt_without_meaning_is_refused(stories, prompt, error, message):
    for call in (stories.stream, stories.generate, stories.logits):
        with pytest.raises(error) as caught:
            call(prompt)
        assert message in str(caught.value)


def test_an_empty_text_is_refused_where_the_tokenizer_adds_no_bos(demo):
    with pytest.raises(UsageError, match="adds no BOS"):
        demo.generate("")


def test_an_empty_text_is_bos_where_the_tokenizer_adds_it(stories, stories_folder):
    assert stories.generate("", max_tokens=64) == golden(stories_folder)[0]["greedy_text"]


def test_an_unknown_keyword_is_refused_with_the_nearest(demo):
    with pytest.raises(UsageError, match="did you mean 'max_tokens'"):
        demo.stream(PROMPT, max_token=3)


def test_an_unknown_backend_is_refused(stories_folder):
    with pytest.raises(russet.BackendError, match="expected auto, cpu, mlx, metal, metal-sim, got 'cuda'"):
        russet.load(stories_folder / "hf", backend="cuda")


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_senseless_number_of_threads_is_refused(stories_folder, threads):
    with pytest.raises(UsageError, match="threads: expected 1 to 1024"):
        russet.load(stories_folder / "hf", threads=threads)


@pytest.mark.parametrize(("threads", "prefill_threads"), [(1, 2), (2, 1), (3, None)])
def test_prompts_may_have_threads_of_their_own(stories_folder, threads, prefill_threads):
    model, one = (
        russet.load(stories_folder / "hf", quantize="int8", threads=n, prefill_threads=many)
        for n, many in ((threads, prefill_threads), (1, 1))
    )
    assert model.backend._cpu.n_threads == threads
    assert model.backend._cpu.n_prefill_threads == (prefill_threads or threads)
    prompt = list(range(1, 101))
    np.testing.assert_array_equal(model.logits(prompt), one.logits(prompt))
    assert model.generate_tokens(prompt, max_tokens=20) == one.generate_tokens(prompt, max_tokens=20)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_senseless_number_of_prefill_threads_is_refused(stories_folder, threads):
    with pytest.raises(UsageError, match="threads: expected 1 to 1024"):
        russet.load(stories_folder / "hf", prefill_threads=threads)


def test_a_model_that_does_not_fit_is_refused_with_the_sum(stories_folder):
    with pytest.raises(russet.NotEnoughMemory, match=r"weights 1.04 MB \+ cache .* but 1.00 MB may be used"):
        russet.load(stories_folder / "hf", max_memory="1MB")


def test_a_damaged_weight_is_named(stories_folder, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    for file in (stories_folder / "hf").iterdir():
        (tmp_path / file.name).symlink_to(file)
    tensors = safetensors.load_file(stories_folder / "hf" / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
    (tmp_path / "model.safetensors").unlink()
    safetensors.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = russet.load(tmp_path)
    for options in ({}, {"temperature": 1.0}):
        with pytest.raises(russet.NumericalError, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds NaN"):
            model.generate("Once", max_tokens=3, **options)
