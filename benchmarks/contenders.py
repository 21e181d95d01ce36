"""What peers.py measures: one class per program, run in a process of its own.

    python contenders.py CLASS '{"folder": "my-model", "threads": 2}'

computes what is asked for on stdin, a line of JSON each time, and answers with a line that says how long it took. Any
Python that holds the peer can run this file: beyond the standard library, a class imports only its own peer.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol


class Contender(Protocol):
    version: str
    weight_bytes: int  #: what a decode step reads of the weights

    def prefill(self, prompt: list[int]) -> float:
        """Seconds to compute a prompt from nothing, with the logits of its last token."""

    def decode(self, context: list[int], n_tokens: int) -> float:
        """Seconds to generate greedily behind a context, which is not counted itself."""


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class TokenByToken(ABC):
    """A contender whose forward pass and cache we hold in our hands.

    Contexts are kept and rewound to: there is one of each length.
    """

    def __init__(self) -> None:
        self.contexts: dict[int, Any] = {}

    @abstractmethod
    def empty(self) -> Any:
        """A cache without tokens."""

    @abstractmethod
    def append(self, cache: Any, tokens: list[int]) -> int:
        """Compute tokens; return the likeliest next one."""

    @abstractmethod
    def rewind(self, cache: Any, n_tokens: int) -> None:
        """Forget the tokens from index n_tokens on."""

    def generate(self, cache: Any, token: int, n_tokens: int) -> None:
        """Append a token, then the likeliest, until n_tokens are chosen: the program's own loop, if it has one."""
        for _ in range(n_tokens):
            token = self.append(cache, [token])

    def prefill(self, prompt: list[int]) -> float:
        cache = self.empty()
        return seconds(lambda: self.append(cache, prompt))

    def decode(self, context: list[int], n_tokens: int) -> float:
        if len(context) not in self.contexts:
            cache = self.empty()
            self.contexts[len(context)] = cache, self.append(cache, context)
        cache, token = self.contexts[len(context)]
        self.rewind(cache, len(context))
        return seconds(lambda: self.generate(cache, token, n_tokens))


class Russet(TokenByToken):
    def __init__(
        self, folder: str, threads: int, n_ctx: int, quantize: str | None = None, backend: str = "cpu"
    ) -> None:
        import russet

        super().__init__()
        self.model = russet.load(folder, backend=backend, threads=threads, n_ctx=n_ctx, quantize=quantize)
        self.version = f"russet {russet.__version__}" + f" on {self.model.backend.name}" * (backend != "cpu")
        self.weight_bytes = self.model.weight_bytes

    def empty(self) -> Any:
        return self.model.session()

    def append(self, cache: Any, tokens: list[int]) -> int:
        for begin in range(0, len(tokens), 512):  # as generate() does
            logits = cache.forward(tokens[begin : begin + 512])
        return int(logits.argmax())

    def generate(self, cache: Any, token: int, n_tokens: int) -> None:
        for n in range(1, n_tokens + 1):
            token = cache.append_greedy(token, is_last=n == n_tokens)

    def rewind(self, cache: Any, n_tokens: int) -> None:
        cache.rewind(n_tokens)


class Transformers(TokenByToken):
    def __init__(self, folder: str, threads: int, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.utils.logging import disable_progress_bar

        super().__init__()
        disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.tensor, self.cache = torch.tensor, DynamicCache
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.version = f"transformers {version('transformers')}, torch {version('torch')}"
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def empty(self) -> Any:
        return self.cache(config=self.model.config)

    def append(self, cache: Any, tokens: list[int]) -> int:
        out = self.model(self.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    def rewind(self, cache: Any, n_tokens: int) -> None:
        if too_many := cache.get_seq_length() - n_tokens:
            cache.crop(-too_many)


class Mlx(TokenByToken):
    """mlx-lm on MLX's default device: the GPU on a Mac."""

    def __init__(self, folder: str, threads: int) -> None:
        import mlx.core as mx
        from mlx_lm.generate import generate_step, generation_stream
        from mlx_lm.models import cache
        from mlx_lm.utils import load_model

        super().__init__()
        self.mx, self.cache, self.generate_step, self.stream = mx, cache, generate_step, generation_stream
        self.model, _ = load_model(Path(folder))
        self.version = f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')} on {mx.default_device()}"
        self.weight_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))

    def empty(self) -> Any:
        return self.cache.make_prompt_cache(self.model)

    def append(self, cache: Any, tokens: list[int]) -> int:
        if len(tokens) > 1:  # no logits are wanted of these
            self.model(self.mx.array([tokens[:-1]]), cache=cache)
            self.mx.eval([layer.state for layer in cache])
        return int(self.model(self.mx.array([tokens[-1:]]), cache=cache)[0, -1].argmax())

    def generate(self, cache: Any, token: int, n_tokens: int) -> None:
        for _ in self.generate_step(self.mx.array([token]), self.model, max_tokens=n_tokens, prompt_cache=cache):
            pass

    def decode(self, context: list[int], n_tokens: int) -> float:
        took = super().decode(context, n_tokens)
        self.mx.synchronize(self.stream)  # it has begun one token more, which shall not be measured with the next peer
        return took

    def rewind(self, cache: Any, n_tokens: int) -> None:
        self.cache.trim_prompt_cache(cache, cache[0].offset - n_tokens)


class LlamaCpp:
    """A process of llama-bench for each figure: it draws its own tokens and warms up by itself."""

    def __init__(self, program: str, gguf: str, threads: int) -> None:
        self.command = [program, "-m", gguf, "-t", str(threads), "-r", "1", "-o", "json"]
        report = self._run(n_prompt=1)
        self.version = f"llama.cpp {report['build_commit']}, {report['model_type']}"
        self.weight_bytes = report["model_size"]

    def prefill(self, prompt: list[int]) -> float:
        return self._run(n_prompt=len(prompt))["avg_ns"] / 1e9

    def decode(self, context: list[int], n_tokens: int) -> float:
        return self._run(n_generate=n_tokens, depth=len(context))["avg_ns"] / 1e9

    def _run(self, n_prompt: int = 0, n_generate: int = 0, depth: int = 0) -> dict[str, Any]:
        work = ["-p", str(n_prompt), "-n", str(n_generate), "-d", str(depth)]
        done = subprocess.run([*self.command, *work], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)[-1]


class OpenVino:
    """Prompts must differ from round to round: openvino-genai recognises what it has computed."""

    def __init__(self, folder: str, threads: int) -> None:
        import numpy
        import openvino
        import openvino_genai

        def inputs(tokens: list[int]) -> Any:
            ids = numpy.array([tokens], numpy.int64)
            return openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))

        def generate(tokens: list[int], n_tokens: int) -> Any:
            options = openvino_genai.GenerationConfig(
                max_new_tokens=n_tokens, ignore_eos=True, do_sample=False, apply_chat_template=False
            )
            return pipe.generate(inputs(tokens), options)

        pipe = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY")
        self.generate = generate
        self.version = f"openvino-genai {version('openvino-genai')}"
        self.weight_bytes = (Path(folder) / "openvino_model.bin").stat().st_size

    def prefill(self, prompt: list[int]) -> float:
        return seconds(lambda: self.generate(prompt, 1))

    def decode(self, context: list[int], n_tokens: int) -> float:
        metrics = self.generate(context, n_tokens + 1).perf_metrics  # the first token is the context's
        return metrics.get_tpot().mean / 1000 * n_tokens


class CTranslate2:
    def __init__(self, folder: str, threads: int) -> None:
        import ctranslate2

        self.vocabulary = json.loads((Path(folder) / "vocabulary.json").read_text())
        self.generator = ctranslate2.Generator(folder, device="cpu", inter_threads=1, intra_threads=threads)
        self.version = f"ctranslate2 {ctranslate2.__version__}, {self.generator.compute_type}"
        self.weight_bytes = (Path(folder) / "model.bin").stat().st_size

    def _token_times(self, prompt: list[int], n_tokens: int) -> list[float]:
        """When the generation began, and when each token was there."""
        times = [time.perf_counter()]
        self.generator.generate_batch(
            [[self.vocabulary[id] for id in prompt]],
            max_length=n_tokens,
            min_length=n_tokens,
            end_token=[],
            include_prompt_in_result=False,
            callback=lambda step: times.append(time.perf_counter()),
        )
        return times

    def prefill(self, prompt: list[int]) -> float:
        begin, end = self._token_times(prompt, 1)
        return end - begin

    def decode(self, context: list[int], n_tokens: int) -> float:
        times = self._token_times(context, n_tokens + 1)
        return times[-1] - times[1]  # the first token is the context's


CONTENDERS: dict[str, Callable[..., Contender]] = {
    kind.__name__: kind for kind in (Russet, Transformers, Mlx, LlamaCpp, OpenVino, CTranslate2)
}


def peaks() -> dict[str, int]:
    """The most bytes so far: of this process, mapped files included, and of MLX's arrays where it is loaded."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"process": most if sys.platform == "darwin" else most * 1024}
    if mx := sys.modules.get("mlx.core"):
        found["MLX"] = mx.get_peak_memory()
    return found


def serve(kind: str, options: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        contender = CONTENDERS[kind](**options)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"version": contender.version, "weight_bytes": contender.weight_bytes}), file=answers)
    since, cpu = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        waited, waited_cpu = time.perf_counter() - since, time.process_time() - cpu
        task, arguments = json.loads(line)
        took = getattr(contender, task)(*arguments)
        answer = {"seconds": took, "waited": waited, "waited_cpu": waited_cpu, "peaks": peaks()}
        since, cpu = time.perf_counter(), time.process_time()
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    del sys.path[0]  # benchmarks/kernels.py is not the package of that name, which transformers looks for
    serve(sys.argv[1], json.loads(sys.argv[2]))
