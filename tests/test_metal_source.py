"""Metal sources as one text: every file once, and every line with the name of its file."""

import re

import pytest

from russet import errors, metal_sim, metal_source


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shaders" / "common").mkdir(parents=True)
    (tmp_path / "shaders" / "args.h").write_text("#pragma once\nenum { kTwo = 2 };\n")
    (tmp_path / "shaders" / "common" / "twice.h").write_text(
        '#include "args.h"\n\ninline float twice(float x) { return kTwo * x; }\n'
    )
    (tmp_path / "shaders" / "k.metal").write_text(
        '#include <metal_stdlib>\n  #  include "common/twice.h"  // twice\n#include "args.h"\n'
        "kernel void k(metal::device_is_not_a_type y) {}\n"
    )
    return tmp_path / "shaders"


def test_every_file_once_and_every_line_named(folder):
    text = metal_source.inlined(folder / "k.metal", [folder])
    assert text.splitlines() == [
        '#line 1 "shaders/k.metal"',
        "#include <metal_stdlib>",
        '#line 1 "shaders/common/twice.h"',
        '#line 1 "shaders/args.h"',
        "",
        "enum { kTwo = 2 };",
        '#line 2 "shaders/common/twice.h"',
        "",
        "inline float twice(float x) { return kTwo * x; }",
        '#line 3 "shaders/k.metal"',
        "",
        "kernel void k(metal::device_is_not_a_type y) {}",
    ]


def test_errors_name_the_file_that_was_written(folder):
    (folder / "common" / "twice.h").write_text('#include "args.h"\ninline float twice(float x) { return nonsense; }\n')
    (folder / "k.metal").write_text(
        '#include "common/twice.h"\nkernel void k(device float* y [[buffer(0)]]) { *y = 1; }\n'
    )
    try:
        with pytest.raises(metal_sim.ShaderError, match=r"shaders/common/twice.h:2:38: error: .*'nonsense'"):
            metal_sim.compile_file(folder / "k.metal", [folder])
    except errors.BackendError as error:
        pytest.skip(str(error))


def test_a_file_that_is_not_there(folder):
    (folder / "common" / "twice.h").write_text('\n#include "gone.h"\n')
    with pytest.raises(
        errors.ShaderError, match=r'shaders/common/twice.h:2: #include "gone.h": no such file in .*common'
    ):
        metal_source.inlined(folder / "k.metal", [folder])
    with pytest.raises(errors.ShaderError, match=r"absent\.metal: cannot be read: No such file"):
        metal_source.inlined(folder / "absent.metal", [folder])


@pytest.mark.parametrize("shader", metal_source.shaders(), ids=lambda path: path.stem)
def test_every_shader_stands_alone(shader):
    text = metal_source.inlined(shader)
    assert not re.search(r'^\s*#\s*include\s*"', text, re.M)
    assert text.startswith(f'#line 1 "metal/{shader.name}"')
