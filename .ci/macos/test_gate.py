"""gate.py lets a sound wheel through, and stops one for each fault. Run after build_wheel, with whose SDK it links."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHADERS = HERE.parents[1] / "metal"
SDK = HERE.parents[1] / "build/macos/sdk"

TAG = "cp311-cp311-macosx_14_0_arm64"
SOUND = """
void cblas_sgemm(void), cblas_sgemv(void), Py_IncRef(void);
void objc_lookUpClass(void), objc_msgSend(void), sel_registerName(void), MTLCreateSystemDefaultDevice(void);
void PyInit__core(void) {
  cblas_sgemm(), cblas_sgemv(), Py_IncRef();
  objc_lookUpClass(), objc_msgSend(), sel_registerName(), MTLCreateSystemDefaultDevice();
}
"""
LINKED = ("-bundle", "-undefined", "dynamic_lookup", "-framework", "Accelerate", "-framework", "Metal", "-lobjc")


@pytest.fixture
def verdict(tmp_path):
    """Builds a wheel with a core of this C text, and returns the gate's exit code and the lines that say FAIL."""

    def verdict(
        source: str = SOUND,
        macos: str = "14.0",
        options: tuple[str, ...] = LINKED,
        tag: str = TAG,
        cores: tuple[str, ...] = ("_core.cpython-311-darwin.so",),
        change_shader=lambda text: text,
    ) -> tuple[int, list[str]]:
        core = tmp_path / "core.so"
        command = ["clang-19", f"--target=arm64-apple-macos{macos}", "-isysroot", SDK, "-fuse-ld=lld"]
        command += ["-mlinker-version=1000", "-x", "c", "-", "-o", core, *options]
        subprocess.run(command, input=source, text=True, check=True)
        path = tmp_path / f"russet-0.1.0-{tag}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name in cores:
                wheel.write(core, f"russet/{name}")
            for shader in SHADERS.rglob("*"):
                if shader.suffix in (".metal", ".h"):
                    text = shader.read_text()
                    if shader.name == "args.h":
                        text = change_shader(text)
                    if text is not None:
                        wheel.writestr(f"russet/metal/{shader.relative_to(SHADERS)}", text)
        done = subprocess.run([sys.executable, HERE / "gate.py", path], capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, re.findall("FAIL +(.*)", done.stdout)

    return verdict


def test_a_sound_wheel_passes(verdict):
    assert verdict() == (0, [])


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            {"source": SOUND + "void planted(void); void call(void) { planted(); }"},
            "symbols: bound to nothing: _planted",
        ),
        ({"source": SOUND.replace(", cblas_sgemv()", "")}, "blas: not imported from Accelerate: _cblas_sgemv"),
        (
            {"source": SOUND.replace(", MTLCreateSystemDefaultDevice()", "")},
            "metal: not imported from Metal: _MTLCreateSystemDefaultDevice",
        ),
        ({"source": SOUND.replace("objc_msgSend(), ", "")}, "objc: not imported from libobjc: _objc_msgSend"),
        ({"change_shader": lambda text: None}, "shaders: not in russet/metal: args.h"),
        ({"change_shader": lambda text: text + " "}, "shaders: with another text in russet/metal: args.h"),
        ({"cores": ()}, "core: expected one russet/_core.*.so, got none"),
        (
            {"cores": ("_core.darwin.so", "_core.linux.so")},
            "core: expected one russet/_core.*.so, got _core.darwin.so, _core.linux.so",
        ),
        ({"macos": "15.0"}, "oldest_macos: expected 14.0, got 15.0"),
        (
            {"tag": "cp311-cp311-linux_x86_64"},
            "tag: expected that of a CPython and macosx_14_0_arm64, got cp311-cp311-linux_x86_64",
        ),
        (
            {"options": (*LINKED, f"-L{SDK}/mlx/lib", "-Wl,-needed-lmlx")},
            "libraries: macOS does not come with: @rpath/libmlx.dylib",
        ),
        (
            {"source": SOUND + "int main(void) { return 0; }", "options": LINKED[1:]},
            "machine: expected a Mach-O bundle or library for arm64, got Mach-O 64-bit arm64 executable",
        ),
    ],
)
def test_each_fault_is_named_and_nothing_else_is(verdict, fault, line):
    code, lines = verdict(**fault)
    assert code == 1
    assert lines == [line]
