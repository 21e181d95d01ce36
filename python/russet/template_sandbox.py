"""Runs a chat template that nobody has vetted: it cannot reach Python, run for ever or fill the memory.

jinja2's sandbox keeps templates from Python's insides and from changing what they are given. Beyond that,
here every value a template makes is weighed in words of 8 bytes, before it is made where it could be far
larger than its parts; and the clock is read at every call, filter and turn of a loop. What happens in between
is bounded by the size of the values.
"""

from __future__ import annotations

import json
import re
import string
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from russet.errors import TemplateError

MAX_SECONDS = 10.0  #: for one rendering; templates in use take milliseconds
MAX_WORDS = 1 << 26  #: for all the values one rendering makes: 512 MiB
MAX_SOURCE = 1 << 20  #: characters of a template
MAX_WIDTH = 10_000  #: for an integer that sets the width, count or precision of a result
MAX_BITS = 1 << 12  #: for an integer

T = TypeVar("T")


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Raises TemplateError for a template that is broken, refuses its input or wants too much."""
    meter = Meter()
    before = _METER.set(meter)
    try:
        template = _compile(source)
        return meter.join(template.root_render_func(template.new_context(dict(variables))))
    except Refused as cause:
        raise TemplateError(f"the chat template refuses the messages: {cause}") from cause
    except jinja2.TemplateSyntaxError as cause:
        raise TemplateError(f"chat template, line {cause.lineno}: {cause.message}") from cause
    except TooMuch as cause:
        raise TemplateError(
            f"chat template{_line(cause)}: {cause}; pass another one as chat_template"
        ) from cause
    except Exception as cause:
        raise TemplateError(f"chat template{_line(cause)}: {type(cause).__name__}: {cause}") from cause
    finally:
        _METER.reset(before)


class TooMuch(Exception):
    """A template wants more than its share."""


class Refused(Exception):
    """A template called raise_exception()."""


class Meter:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + MAX_SECONDS
        self._words = MAX_WORDS
        self._weights: dict[int, tuple[object, int]] = {}  # by id(); holding the object keeps the id its own

    def spend(self, words: int) -> None:
        self.expect(words)
        self._words -= words
        if time.monotonic() > self._ends:
            raise TooMuch(f"ran for more than {MAX_SECONDS:g} s")

    def expect(self, words: int) -> None:
        """Something of this size is about to be made."""
        if words > self._words:
            raise TooMuch(f"wants more than {MAX_WORDS * 8 >> 20} MiB of text and lists")

    def made(self, value: T, weight: int | None = None) -> T:
        """Something was made: a value the template has from a call, a filter or an operator."""
        if not isinstance(value, (list, tuple, dict)):
            self.spend(self.weight(value))
        elif id(value) in self._weights:
            self.spend(1)
        else:
            if weight is not None:  # saves looking at every item
                self._weights[id(value)] = value, weight
            self.expect(self.weight(value))
            self.spend(1 + len(value))
        return value

    def weight(self, value: object) -> int:
        """Words of a value written out in full: more than it takes where a list holds another many times."""
        if isinstance(value, (str, bytes)):
            return 1 + len(value) // 8
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TooMuch(f"wants an integer of more than {MAX_BITS} bits")
        if not isinstance(value, (list, tuple, dict)):
            return 1
        if id(value) not in self._weights:
            parts = (*value.keys(), *value.values()) if isinstance(value, dict) else value
            self._weights[id(value)] = value, 1 + sum(map(self.weight, parts))
        return self._weights[id(value)][1]

    def join(self, parts: Iterable[str]) -> str:
        kept = []
        for part in parts:
            self.spend(1 + len(part) // 8)
            kept.append(part)
        return "".join(kept)


_METER: ContextVar[Meter] = ContextVar("_METER")


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2 with what Hugging Face's templates rely on, every value metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
        )
        self.globals |= {
            "dict": _Dict(),
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        del self.globals["lipsum"]  # random text in any amount
        self.filters["tojson"] = _tojson
        self.filters = {name: _metered(name, function) for name, function in self.filters.items()}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """jinja2's hook between parsing and compiling."""
        metered = _Metered().visit(source)
        metered.set_environment(self)
        return super()._generate(metered, *args, **kwargs)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        subject = getattr(obj, "__self__", None)
        if isinstance(subject, (str, bytes, int)):
            _expect_growth(_METHODS, obj.__name__, (subject, *args), kwargs)
        return meter.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        weight = None
        if operator == "+":
            weight = meter.weight(left) + meter.weight(right)
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
                    weight = meter.weight(one) * max(1, other)
                    meter.expect(weight)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_BITS:
                raise TooMuch(f"wants an integer of more than {MAX_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            meter.expect(_percent_growth(left, right))
        return meter.made(super().call_binop(context, operator, left, right), weight)

    def concat(self, parts: Iterable[str]) -> str:
        """The text of a macro, a block or a {% set %}."""
        return _METER.get().join(parts)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format = super().wrap_str_format(value)
        if format is None:
            return None

        @wraps(format)
        def metered(*args: Any, **kwargs: Any) -> str:
            fields = [spec for _, _, spec, _ in string.Formatter().parse(value.__self__) if spec is not None]
            for spec in fields:
                if "{" in spec:
                    raise SecurityError("format() with a field inside a field")
                _check_widths(re.findall(r"\d+", spec))
            meter = _METER.get()
            meter.expect(len(fields) * (MAX_WIDTH // 8 + meter.weight(args) + meter.weight(kwargs)))
            return format(*args, **kwargs)

        return metered

    # What _Metered puts into a template. A call is metered, so these need not be.

    def tick(self) -> bool:
        return True

    def keep(self, value: T) -> T:
        return value

    def concatenate(self, *values: object) -> str:
        meter = _METER.get()
        meter.expect(sum(map(meter.weight, values)))
        return "".join(map(str, values))


class _Metered(NodeTransformer):
    """Rewrites a template so that what jinja2 compiles to plain Python becomes a call."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", [], node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("tick", [], node), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenate", node.nodes, node)

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or any(node.find_all(nodes.Slice)):
            return node  # names that are assigned to, or a subscript
        return _call("keep", [node], node)

    visit_Tuple = visit_Dict = visit_List


def _call(name: str, args: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=at.lineno)
    return nodes.Call(function, args, [], None, None, lineno=at.lineno)


class GenerationTag(Extension):
    """{% generation %} marks the assistant's own words, for training; their text is not changed."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """dict() without the type itself, whose methods would change dicts."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_public(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # it may hold itself


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the private name {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise Refused(message)


def now() -> datetime:
    return datetime.now()


def _strftime_now(format: str) -> str:
    return now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML and sorts keys."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return encoder.encode(value) if indent is None else _METER.get().join(encoder.iterencode(value))


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    n_own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        _expect_growth(_FILTERS, name, args[n_own:], kwargs)
        return _METER.get().made(function(*args, **kwargs))

    return metered


def _expect_growth(
    growths: Mapping[str, Callable[..., int]], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    if growth := growths.get(name):
        try:
            words = growth(*args, **kwargs)
        except TypeError:  # not how it is called: it will say so itself
            return
        _METER.get().expect(words)


# How many words a method or a filter may make of its arguments.


def _padded_growth(value: object, *settings: object, **named: object) -> int:
    meter = _METER.get()
    largest = 1
    for setting in (*settings, *named.values()):
        if isinstance(setting, int):
            _check_widths([setting])
            largest = max(largest, setting)
        elif isinstance(setting, (str, bytes, dict)):
            largest = max(largest, 8 * meter.weight(setting))
    return meter.weight(value) * largest


def _replaced_growth(text: object, old: str, new: str, *_: object, **__: object) -> int:
    text = text if isinstance(text, bytes) else str(text)
    return (len(text) + text.count(old) * len(new)) // 8  # type: ignore[arg-type]


def _joined_growth(parts: object, separator: str = "", *_: object, **__: object) -> int:
    return _count(parts) * (1 + len(separator) // 8)


def _summed_growth(parts: object, attribute: object = None, start: object = 0) -> int:
    return 1 if isinstance(start, (int, float)) else _count(parts) * _METER.get().weight(parts)


def _percent_growth(text: str, *values: object) -> int:
    """printf's widths and precisions; those that values set are refused."""
    fields = re.findall(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?", str(text))
    for field in fields:
        _check_widths(size for size in field if size)
    weight = sum(map(_METER.get().weight, values))
    return len(fields) * (MAX_WIDTH // 8 + weight) if any(map(any, fields)) else (1 + len(fields)) * weight


def _check_widths(widths: Iterable[int | str]) -> None:
    for width in widths:
        if width == "*" or int(width) > MAX_WIDTH:
            raise TooMuch(f"wants a width or count of {width}, above {MAX_WIDTH}")


def _count(parts: object) -> int:
    return len(parts) if isinstance(parts, Sized) else 1 << 20  # a generator


_METHODS: dict[str, Callable[..., int]] = {
    "join": lambda separator, parts: _joined_growth(parts, separator),
    "replace": _replaced_growth,
    **dict.fromkeys(
        ["center", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"], _padded_growth
    ),
}
_FILTERS: dict[str, Callable[..., int]] = {
    "format": _percent_growth,
    "join": _joined_growth,
    "replace": _replaced_growth,
    "sum": _summed_growth,
    **dict.fromkeys(["batch", "center", "indent", "round", "slice", "tojson", "wordwrap"], _padded_growth),
}


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise TooMuch(f"expected at most {MAX_SOURCE} characters, got {len(source)}")
    return _SANDBOX.from_string(source)


_SANDBOX = Sandbox()


def _line(error: BaseException) -> str:
    """Where in the template an error came up: ", line 3"."""
    line = ""
    traceback = error.__traceback__
    while traceback is not None:
        template = traceback.tb_frame.f_globals.get("__jinja_template__")
        if template is not None:
            line = f", line {template.get_corresponding_lineno(traceback.tb_lineno)}"
        traceback = traceback.tb_next
    return line
