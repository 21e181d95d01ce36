"""The Mac's GPU: what it says of itself, and what is said where there is none."""

import platform

import pytest

from russet import BackendError, _core


@pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac may have one")
def test_elsewhere_than_on_a_mac_there_is_none():
    with pytest.raises(BackendError, match=r'metal: .*no Mac.*backend="cpu"'):
        _core.MetalDevice.apple([])


@pytest.mark.skipif(platform.system() != "Darwin", reason="needs a Mac")
def test_a_gpu_says_what_it_is_and_what_it_holds():
    try:
        info = _core.MetalDevice.apple([]).info
    except BackendError as error:  # a virtual machine, an Intel Mac
        pytest.skip(str(error))
    assert info["name"].startswith("Apple")
    assert not info["simulated"]
    assert info["working_set"] > 1e9
    assert info["max_map_bytes"] > 1e9
