"""What several test files need: the shared data, and the models that come with it or with the package."""

import os
import signal
from pathlib import Path

import pytest

import russet

# A shell that starts the tests in the background makes them ignore Ctrl-C, and with them every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is tested is the CPU where nothing else is said, on a Mac as well.
os.environ["RUSSET_BACKEND"] = "cpu"

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def stories_folder() -> Path:
    """A real, trained model of 260,000 parameters, with what it should give."""
    folder = SHARED_DATA / "weights" / "stories260K"
    if not folder.is_dir():
        pytest.skip("shared/data/weights/stories260K is not here")
    return folder


@pytest.fixture(scope="session")
def stories(stories_folder) -> russet.Model:
    return russet.load(stories_folder / "hf")


@pytest.fixture(scope="session")
def demo() -> russet.Model:
    return russet.load()
