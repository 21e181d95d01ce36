"""The thread pool: callers that take turns, forks, errors in the middle."""

import multiprocessing
import os
import threading

import numpy as np
import pytest

from random_model import random_config, random_weights
from russet import _core
from russet.backends.cpu import CpuBackend
from russet.errors import UsageError

TOKENS = list(range(12))


def backend(threads=2):
    config = random_config(dim=64, ffn_dim=300)
    return CpuBackend(config, random_weights(config), threads=threads)


def greedy(cpu, n=25):
    session, tokens = cpu.session(100), list(TOKENS)
    for _ in range(n):
        tokens.append(int(session.forward(tokens[session.n_tokens :])[0].argmax()))
    return tokens


def run_in_threads(n, work):
    failures = []

    def caught(i):
        try:
            work(i)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=caught, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    assert not failures, failures


def test_python_threads_may_share_a_backend():
    cpu = backend()
    expected = greedy(cpu)
    run_in_threads(6, lambda i: np.testing.assert_array_equal(greedy(cpu), expected))


def test_python_threads_may_have_backends_of_different_sizes():
    expected = greedy(backend(1))
    backends = [backend(threads) for threads in (1, 2, 3, 5)]
    run_in_threads(8, lambda i: np.testing.assert_array_equal(greedy(backends[i % 4]), expected))


def test_python_threads_may_share_a_session():
    # Whose tokens come first is open, but every call continues where the one before it ended.
    cpu = backend()
    session = cpu.session(200)
    run_in_threads(4, lambda i: [session.forward([7]) for _ in range(25)])
    assert session.n_tokens == 100
    alone = cpu.session(200)
    for _ in range(100):
        alone.forward([7])
    np.testing.assert_array_equal(session.forward([3]), alone.forward([3]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes():
    cpu = backend(3)
    expected = greedy(cpu)

    def child():
        same = greedy(cpu) == expected and greedy(backend(4)) == expected
        os._exit(0 if same else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=60)
    if process.is_alive():
        process.kill()
        pytest.fail("the child hangs")
    assert process.exitcode == 0
    assert greedy(cpu) == expected  # and so does its parent, still


def test_an_error_leaves_the_pool_usable():
    cpu = backend(3)
    expected = greedy(cpu)

    def fail_and_go_on(i):
        session = cpu.session(100)
        for _ in range(20):
            with pytest.raises(UsageError, match="token id 1000"):
                session.forward([1, 1000])
            assert session.n_tokens == 0
        assert greedy(cpu) == expected

    run_in_threads(4, fail_and_go_on)


@pytest.mark.parametrize("n_threads", [0, -1, 1025])
def test_thread_counts_are_checked(n_threads):
    with pytest.raises(UsageError, match="threads: expected 1 to 1024"):
        _core.Cpu(_core.Config(), n_threads)
