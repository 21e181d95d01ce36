"""What fits and what does not: the sum is shown before anything is allocated."""

from pathlib import Path

import pytest

from russet import NotEnoughMemory, UsageError, memory

GB = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [(5, 5), ("8GB", 8 * GB), ("7.5 GiB", int(7.5 * 2**30)), ("800M", 800_000_000), ("1000", 1000)],
)
def test_sizes_are_read(text, expected):
    assert memory.n_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1", 0, -5, "1 XB", True])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="max_memory"):
        memory.n_bytes(text)


def test_available_memory_is_what_the_system_says():
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("no /proc/meminfo on this system")
    total = int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < memory.available() <= total


def test_the_whole_context_is_taken_when_it_fits():
    fits = memory.choose_n_ctx(weight_bytes=GB, bytes_per_token=1000, max_ctx=4096, n_ctx=None, max_memory="2GB")
    assert fits == 4096


def test_as_much_context_as_fits_beside_the_weights():
    n = memory.choose_n_ctx(weight_bytes=GB, bytes_per_token=1000, max_ctx=10**6, n_ctx=None, max_memory=GB + 500_000)
    assert n == 448  # 7 blocks of 64 tokens; an eighth would end at 512


def test_a_model_that_does_not_fit_is_refused_with_the_sum():
    with pytest.raises(NotEnoughMemory) as error:
        memory.choose_n_ctx(weight_bytes=3 * GB, bytes_per_token=10**6, max_ctx=10**6, n_ctx=1000, max_memory="3.5GB")
    assert "weights 3.00 GB + cache 1.02 GB for 1,000 tokens = 4.02 GB, but 3.50 GB may be used" in str(error.value)
