"""Metal text to C++ text: what C++ has no words for is put in words that the shim (cxx/metal/) defines.

The text is preprocessed first, because kernels may be written by macros. Then five things are rewritten, and nothing
else is touched; lines stay where they are, so every message of the compiler names the Metal file and line:

- a kernel says its name when it is asked (METAL_SIM_KERNEL_BEGINS), and its parameters lose their attributes;
- explicit instantiations go away: the kernel table behind the text names what is wanted;
- a variable in threadgroup memory becomes static, with a record of its address and size;
- a function constant becomes a global that a launch sets;
- a constant that is computed from function constants is computed at every use.

Address spaces need no rewriting: `device`, `constant`, `threadgroup` and `thread` are macros.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from russet.errors import ShaderError
from russet.metal_sim import toolchain

_ATTRIBUTE = r"\[\[(?:[^\[\]]|\[[^\[\]]*\])*\]\]"
_KERNEL = re.compile(rf"(?P<head>(?:(?:{_ATTRIBUTE}|\b(?:kernel|static|inline)\b)\s*)+)void\s+(?P<name>\w+)\s*\(")
_HOST_NAME = re.compile(r"\bhost_name\s*\(\s*((?:\"[^\"]*\"\s*)+)\)")
_INSTANTIATION = re.compile(rf"\btemplate\s*(?={_ATTRIBUTE})(?P<statement>[^;{{}}]*);")
_FUNCTION_CONSTANT = re.compile(
    r"(?:\bconst\s+)?\bconstant\s+(?:const\s+|constexpr\s+)?(?P<type>[\w:]+)\s+(?P<name>\w+)\s*"
    r"\[\[\s*function_constant\s*\(\s*(?P<index>[^\]]*?)\s*\)\s*\]\]\s*;"
)
_PROGRAM_CONSTANT = re.compile(
    r"(?:\bconst\s+)?\bconstant\s+(?:const\s+)?(?P<type>[\w:]+)\s+(?P<name>\w+)\s*=\s*(?P<value>[^;{}]*);"
)
_THREADGROUP_VARIABLE = re.compile(
    r"(?<=[;{}])\s*(?:alignas\s*\([^()]*\)\s*)?\bthreadgroup\b"
    r"(?P<declared>(?:[^;={()\[]|\[[^\[\];]*\])*);"
)
_MAX_THREADS = re.compile(r"\bmax_total_threads_per_threadgroup\s*\(")
_PLACES = frozenset(
    [
        "thread_position_in_grid",
        "thread_position_in_threadgroup",
        "threadgroup_position_in_grid",
        "threads_per_threadgroup",
        "dispatch_threads_per_threadgroup",
        "threads_per_grid",
        "threadgroups_per_grid",
        "thread_index_in_threadgroup",
        "thread_index_in_simdgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "dispatch_simdgroups_per_threadgroup",
        "threads_per_simdgroup",
        "thread_execution_width",
        "thread_index_in_quadgroup",
        "quadgroup_index_in_threadgroup",
        "quadgroup_index_in_simdgroup",
    ]
)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `device const half* x [[buffer(0)]]`."""

    type: str  #: as it was written, in one line
    name: str
    attribute: str  #: a type of cxx/metal/kernel.h, Buffer<0>
    optional: bool  #: has a [[function_constant(...)]], so it may be left unbound


@dataclass(frozen=True)
class Kernel:
    """A kernel function, or a template of them."""

    function: str
    parameters: tuple[Parameter, ...]
    host_name: str | None
    is_template: bool


@dataclass(frozen=True)
class Translation:
    """C++ text without its kernel table, and what that would hold."""

    text: str
    instances: dict[str, tuple[str, Kernel]]  #: name -> the C++ expression, rms_norm<half>, and its function
    constants: tuple[tuple[str, str, str], ...]  #: type, name, index of each function constant

    def with_table(self, kernels: Collection[str] | None = None) -> str:
        """The text that is compiled for running: the shim, the kernels, the table of those named, or of all."""
        instances = self.instances
        if kernels is not None:
            instances = {name: instance for name, instance in instances.items() if name in set(kernels)}
        return "\n".join(
            ['#include "metal.h"', '#include "metal/words.h"', self.text, *_table(instances, self.constants), ""]
        )


def preprocess(source: str, name: str, defines: Iterable[str] = ()) -> str:
    """The text without macros, comments and <metal_...> includes, with markers that tell file and line."""
    source = re.sub(r"^([ \t]*#[ \t]*include[ \t]*<(?:metal_\w+|simd/simd\.h)>).*$", "", source, flags=re.M)
    flags = (
        "-x c++ -std=c++17 -E -undef -nostdinc -nostdinc++ -D__METAL__=1 -D__METAL_VERSION__=310 -D__HAVE_BFLOAT__=1"
    )
    done = toolchain.find().run(
        [*flags.split(), *(f"-D{define}" for define in defines), "-"], text=f'#line 1 "{name}"\n{source}'
    )
    if done.returncode:
        raise ShaderError(f"{name}: the preprocessor refuses it:\n{done.stderr.strip()}")
    return done.stdout


def translated(source: str, name: str, defines: Iterable[str] = ()) -> Translation:
    """Translate one self-contained Metal text; `name` stands for it in messages. Raises ShaderError."""
    return _Translator(preprocess(source, name, defines), name).translation()


@dataclass
class _Translator:
    text: str
    name: str
    edits: list[tuple[int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # What is searched: markers are blanks of equal length, so that none is mistaken for code.
        self.code = re.sub(r"^#.*$", lambda m: " " * len(m[0]), self.text, flags=re.M)

    def translation(self) -> Translation:
        functions = {kernel.function: kernel for kernel in self.kernels()}
        instances = dict(self.instantiations(functions))
        for kernel in functions.values():
            if not kernel.is_template:
                instances[kernel.host_name or kernel.function] = (kernel.function, kernel)
        if not instances:
            raise ShaderError(f"{self.name}: no kernel is in it")
        self.threadgroup_variables()
        constants = tuple(self.function_constants())
        # On parameters of other functions [[threadgroup(n)]] means nothing, and is no C++ without its first word.
        text = re.sub(r"\[\[\s*threadgroup\s*\([^()]*\)\s*\]\]", "", self.edited())
        return Translation(text, instances, constants)

    def replace(self, start: int, end: int, by: str) -> None:
        """Line ends and markers between start and end stay."""
        kept = "".join("\n" + marker for marker in re.findall(r"\n((?:#.*)?)", self.text[start:end]))
        self.edits.append((start, end, by + kept))

    def edited(self) -> str:
        pieces, at = [], 0
        for start, end, by in sorted(self.edits):
            pieces += [self.text[at:start], by]
            at = end
        return "".join(pieces) + self.text[at:]

    def kernels(self) -> Iterator[Kernel]:
        for match in _KERNEL.finditer(self.code):
            if not re.search(r"\bkernel\b", match["head"]):
                continue
            start = match.end() - 1
            end = closing(self.code, start)
            behind = re.compile(rf"\s*(?P<attributes>(?:{_ATTRIBUTE}\s*)*){{").match(self.code, end)
            if behind is None:
                continue  # declared here, defined elsewhere; or an explicit instantiation
            parameters = tuple(self.parameters(start + 1, end - 1, match["name"]))
            attributes = match["head"] + behind["attributes"]
            limit = _MAX_THREADS.search(attributes)
            max_threads = attributes[limit.end() - 1 : closing(attributes, limit.end() - 1)] if limit else "1024"
            self.replace(behind.end(), behind.end(), f" METAL_SIM_KERNEL_BEGINS({' '.join(max_threads.split())})")
            before = self.code[: match.start()]
            before = before[max(before.rfind(";"), before.rfind("}")) + 1 :]
            yield Kernel(match["name"], parameters, _host_name(attributes), bool(re.search(r"\btemplate\s*<", before)))

    def parameters(self, start: int, end: int, kernel: str) -> Iterator[Parameter]:
        next_buffer = 0  # where a buffer without an attribute goes
        for first, last in split(self.code, start, end):
            written = self.code[first:last]
            bare = re.sub(_ATTRIBUTE, "", written)
            declared = re.search(r"(\w+)\s*(?:\[[^\[\]]*\]\s*)?$", bare)
            if declared is None:
                raise ShaderError(f"{self.name}: {kernel}: a parameter without a name: {' '.join(written.split())}")
            attribute, optional = None, False
            for match in re.finditer(_ATTRIBUTE, written):
                inside = match[0][2:-2]
                for a, b in split(inside, 0, len(inside)):
                    one = inside[a:b].strip().removeprefix("metal::")
                    optional |= one.startswith("function_constant")
                    attribute = _attribute(one) or attribute
                self.replace(first + match.start(), first + match.end(), " " * len(match[0].split("\n")[0]))
            if attribute is None and re.search(r"\b(?:device|constant)\b", bare):
                attribute = f"Buffer<({next_buffer})>"
            if attribute is None:
                raise ShaderError(
                    f"{self.name}: {kernel}: parameter {declared[1]}: expected [[buffer(n)]], [[threadgroup(n)]] or a "
                    f"thread's place, got {' '.join(written.split())}"
                )
            index = re.fullmatch(r"\w+<\((\d+)\)>", attribute)
            if index and attribute.startswith("Buffer"):
                next_buffer = int(index[1]) + 1
            if index and int(index[1]) > 30:
                raise ShaderError(f"{self.name}: {kernel}: {declared[1]}: index {index[1]}, and Metal has 0 to 30")
            yield Parameter(" ".join(bare[: declared.start()].split()), declared[1], attribute, optional)

    def instantiations(self, functions: dict[str, Kernel]) -> Iterator[tuple[str, tuple[str, Kernel]]]:
        for match in _INSTANTIATION.finditer(self.code):
            host_name = _host_name(match["statement"])
            if host_name is None:
                continue
            expression = _instantiated(match["statement"])
            function = expression.split("<")[0].split("::")[-1].strip()
            if function not in functions:
                raise ShaderError(f"{self.name}: {host_name}: no kernel {function} is in this text")
            self.replace(match.start(), match.end(), "")
            yield host_name, (expression, functions[function])

    def threadgroup_variables(self) -> None:
        for match in _THREADGROUP_VARIABLE.finditer(self.code):
            names = []
            for start, end in split(match["declared"], 0, len(match["declared"])):
                bare = without_brackets(match["declared"][start:end])
                if "*" in bare or "&" in bare:
                    break
                names.append(bare.split()[-1])
            else:
                at = self.code.index("threadgroup", match.start())
                self.replace(at, at + len("threadgroup"), "METAL_SIM_SHARED")
                records = "".join(f" METAL_SIM_THREADGROUP_VARIABLE({name})" for name in names)
                self.replace(match.end(), match.end(), records)

    def function_constants(self) -> Iterator[tuple[str, str, str]]:
        dependent = set()
        for match in _FUNCTION_CONSTANT.finditer(self.code):
            self.replace(
                *match.span(), "METAL_SIM_FUNCTION_CONSTANT({type}, {name}, {index})".format(**match.groupdict())
            )
            dependent.add(match["name"])
            yield match["type"], match["name"], match["index"]
        for match in _PROGRAM_CONSTANT.finditer(self.code):
            if dependent & set(re.findall(r"\w+", match["value"])):
                value = " ".join(match["value"].split())
                self.replace(*match.span(), f"METAL_SIM_DERIVED_CONSTANT({match['type']}, {match['name']}, {value})")
                dependent.add(match["name"])


def _attribute(written: str) -> str | None:
    """The type in cxx/metal/kernel.h that stands for an attribute; None for one that binds to nothing."""
    for word, kind in (("buffer", "Buffer"), ("threadgroup", "ThreadgroupMemory")):
        match = re.fullmatch(rf"{word}\s*\((.*)\)", written, re.S)
        if match:
            return f"{kind}<({' '.join(match[1].split())})>"
    return written if written in _PLACES else None


def _host_name(attributes: str) -> str | None:
    match = _HOST_NAME.search(attributes)
    return "".join(re.findall(r'"([^"]*)"', match[1])) if match else None


def _instantiated(statement: str) -> str:
    """`rms_norm<half>` of `[[...]] [[kernel]] decltype(rms_norm<half>) rms_norm<half>`, or of one with parameters."""
    rest = re.sub(_ATTRIBUTE, "", statement).strip()
    if rest.endswith(")"):
        rest = rest[: opening(rest, len(rest) - 1)].strip()
    start = opening(rest, len(rest) - 1) if rest.endswith(">") else len(rest)
    name = re.search(r"[\w:]+\s*$", rest[:start])
    return " ".join(((name[0] if name else "") + rest[start:]).split())


def _table(instances: dict[str, tuple[str, Kernel]], constants: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """The kernel table, as C++ text."""
    yield '#line 1 "kernel table"'
    yield "namespace metal_sim {"
    entries = []
    for number, (host_name, (expression, kernel)) in enumerate(instances.items()):
        arguments, attributed = f"arguments_{number}", f"Attributed_{number}"
        described = ", ".join(
            f'{{.optional = {int(p.optional)}, .type = "{p.type}", .name = "{p.name}"}}' for p in kernel.parameters
        )
        yield f"using {attributed} = Attributed<{', '.join(p.attribute for p in kernel.parameters)}>;"
        yield f"static MetalSimArgument {arguments}[] = {{{described or '{}'}}};"
        yield f"static const uint32_t n_{arguments} = {attributed}::describe(&{expression}, {arguments});"
        run = f"[](const Bindings& bindings) {{ {attributed}::call(&{expression}, bindings); }}"
        entries.append(f'{{{{"{host_name}", {arguments}, {len(kernel.parameters)}, 0, 0}}, {run}}}')
    yield f"Kernel kernels[] = {{{', '.join(entries)}}};"
    yield f"extern const uint32_t n_kernels = {len(entries)};"
    values = [
        f'{{{{"{name}", "{type_}", {index}, sizeof({name}.value)}}, &{name}.value, &{name}.defined}}'
        for type_, name, index in constants
    ]
    yield f"FunctionConstant function_constants[] = {{{', '.join(values) or '{}'}}};"
    yield f"extern const uint32_t n_function_constants = {len(values)};"
    yield "}  // namespace metal_sim"


# ---- brackets

_PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def closing(text: str, start: int) -> int:
    """Just behind the bracket that closes the one at `start`."""
    opens, closes, depth = text[start], _PAIRS[text[start]], 0
    for at in range(start, len(text)):
        depth += (text[at] == opens) - (text[at] == closes)
        if depth == 0:
            return at + 1
    raise ShaderError(f"a bracket is never closed: {text[start : start + 60]!r}")


def opening(text: str, end: int) -> int:
    """The bracket that is closed by the one at `end`."""
    closes = text[end]
    opens = next(o for o, c in _PAIRS.items() if c == closes)
    depth = 0
    for at in range(end, -1, -1):
        depth += (text[at] == closes) - (text[at] == opens)
        if depth == 0:
            return at
    raise ShaderError(f"a bracket is never opened: {text[:60]!r}")


def split(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The pieces between commas that are in no bracket."""
    depth, first = 0, start
    for at in range(start, end):
        depth += (text[at] in "([{<") - (text[at] in ")]}>")
        if text[at] == "," and depth == 0:
            yield first, at
            first = at + 1
    if text[first:end].strip():
        yield first, end


def without_brackets(declarator: str) -> str:
    """`float As` of `vec<float, 4> As[8][8]`: what is left outside of all brackets."""
    depth, kept = 0, []
    for character in declarator:
        if character in "[<(":
            depth += 1
        elif character in "]>)":
            depth -= 1
        elif depth == 0:
            kept.append(character)
    return "".join(kept)
