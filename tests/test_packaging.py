"""What an installed russet is made of, and that importing it is cheap."""

import json
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import russet
from russet import metal_source

SHADERS = Path(__file__).parents[1] / "metal"

#: What `import russet` leaves for the functions that need it, or never takes.
LATE = (
    "torch",
    "transformers",
    "mlx",
    "tokenizers",
    "sentencepiece",
    "jinja2",
    "huggingface_hub",
    "rich",
    "matplotlib",
    "asyncio",
)

IMPORT = f"""
import json, sys, time
start = time.process_time()
import russet
seconds = time.process_time() - start
print(json.dumps([seconds, [name for name in {LATE} if name in sys.modules]]))
"""


def test_version_is_the_same_everywhere():
    assert metadata.version("russet") == russet.__version__


def test_types_and_demo_model_are_installed():
    files = resources.files("russet")
    assert files.joinpath("py.typed").is_file()
    assert files.joinpath("_core.pyi").is_file()
    demo = {file.name: len(file.read_bytes()) for file in files.joinpath("demo").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(demo)
    assert sum(demo.values()) <= 4_000_000


def test_shaders_and_what_they_include_are_installed():
    def texts(folder):
        files = [path for path in folder.rglob("*") if path.suffix in (".metal", ".h")]
        return {path.relative_to(folder): path.read_text() for path in files}

    assert Path("args.h") in texts(SHADERS)
    assert texts(metal_source.metal_folder()) == texts(SHADERS)


def test_every_public_name_is_there():
    assert [name for name in russet.__all__ if not hasattr(russet, name)] == []


def test_the_command_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="russet")
    assert callable(script.load())


def test_import_takes_less_than_300_ms():
    def fresh() -> tuple[float, list[str]]:
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        seconds, late = json.loads(done.stdout)
        return seconds, late

    runs = [fresh() for _ in range(5)]
    assert runs[0][1] == []
    # Processor time, which other programs cannot lengthen by taking turns with this one.
    assert min(seconds for seconds, _ in runs) < 0.3
