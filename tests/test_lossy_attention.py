"""What a smaller cache and attention in 8 bits cost the built-in model: bounds that a regression would break."""

import pytest

import russet
from russet.errors import UsageError
from russet.perplexity import compare


@pytest.fixture(scope="module")
def text(demo):
    return demo.generate("It was", max_tokens=480, temperature=0.8, seed=1, ignore_eos=True)


@pytest.fixture(scope="module")
def exact():
    return russet.load(kv_dtype="float32")


# About four times what was measured on this text: nats of KL, mean over its tokens.
@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"kv_dtype": "float16"}, 5e-7),
        ({"kv_dtype": "bfloat16"}, 3e-5),
        ({"kv_dtype": "int8"}, 2e-4),
        ({"kv_dtype": "float16/int8"}, 5e-5),
        ({"kv_dtype": "int8/int4"}, 1e-2),
        ({"kv_dtype": "float16", "attention": "sage"}, 2e-4),
        ({"kv_dtype": "float16", "attention": "int8"}, 4e-4),
        ({"kv_dtype": "int8", "attention": "sage"}, 2e-4),
        ({"kv_dtype": "int8", "attention": "int8"}, 3e-4),
        ({"kv_dtype": "float32", "kv_budget": 0.5}, 0.04),
        ({"kv_dtype": "float32", "kv_window": 256}, 0.05),
    ],
    ids=str,
)
def test_what_a_setting_costs(options, bound, exact, text):
    lost = compare(russet.load(**options), exact, text)
    assert 0 < lost.kl_mean < bound


def test_what_is_off_costs_nothing(exact, text):
    same = compare(russet.load(kv_dtype="float32", kv_budget=1.0, kv_window=512, attention="exact"), exact, text)
    assert same.kl_max == 0
    assert same.top1_agreement == 1


@pytest.mark.parametrize("backend", ["mlx", "metal-sim"])
@pytest.mark.parametrize("option", [{"kv_budget": 0.5}, {"kv_window": 100}, {"attention": "sage"}], ids=str)
def test_other_backends_refuse_them(backend, option):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    name = next(iter(option))
    with pytest.raises(UsageError, match=f"{name}: the CPU alone has it, got {name}=.* with backend='m"):
        russet.load(backend=backend, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kv_budget": 0.0}, "kv_budget: expected more than 0 and at most 1, got 0.0"),
        ({"kv_window": 0}, "kv_window: expected at least 1 token, got 0"),
        ({"attention": "int4"}, "attention: expected exact, sage or int8, got 'int4'"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(UsageError, match=message):
        russet.load(**option)


def test_generation_goes_on_behind_what_was_given_back(demo):
    """A chat that outgrows the budget again and again: tokens come, and the cache stays within it."""
    model = russet.load(kv_budget=0.4)
    tokens = model.generate_tokens("It was", max_tokens=500, ignore_eos=True, temperature=0.8, seed=3)
    assert len(tokens) == 500
    assert tokens[:150] == demo.generate_tokens("It was", max_tokens=150, ignore_eos=True, temperature=0.8, seed=3)
