"""A host that embeds CPython can load, stream and get plain values back: embed_host.c, compiled and run."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import russet

HOST = Path(__file__).with_name("embed_host.c")


def libpython_flags() -> list[str]:
    """What links a program to this interpreter's libpython, shared or static; skips where there is none."""
    config = sysconfig.get_config_vars()
    folders = [Path(config[name]) for name in ("LIBDIR", "LIBPL")]
    name = f"python{config['LDVERSION']}"
    built = [folder / f"lib{name}{end}" for end in (".so", ".dylib", ".a") for folder in folders]
    library = next((path for path in built if path.exists()), None)
    if library is None:
        pytest.skip(f"no lib{name} in {' or '.join(map(str, folders))}")
    flags = [f"-L{library.parent}", f"-l{name}", f"-Wl,-rpath,{library.parent}"]
    exported = config["LINKFORSHARED"].split() if library.suffix == ".a" else []  # _core finds Python in the program
    return [*flags, *config["LIBS"].split(), *config["SYSLIBS"].split(), *exported]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        pytest.skip(f"no Python.h in {include}")
    program = tmp_path_factory.mktemp("embed") / "embed_host"
    command = [compiler, "-Wall", f"-I{include}", str(HOST), "-o", str(program), *libpython_flags(), "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def test_a_host_streams_and_gets_plain_values(host):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONHOME"] = sys.base_prefix
    command = [host, sysconfig.get_path("platlib")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    streamed, _, rest = done.stdout.partition("\nlogits: ")
    model = russet.load()
    assert streamed == "streamed:" + model.generate("Once upon a time", max_tokens=20, temperature=0)
    logits, refused, _ = rest.split("\n")
    assert logits == f"20 x {model.config.vocab_size}"
    assert refused == "refused: temperature: expected 0 or more, got -1.0"
