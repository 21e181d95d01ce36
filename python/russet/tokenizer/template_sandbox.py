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
from collections.abc import Callable, Iterable, Mapping
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
from russet.tokenizer.template_meter import (
    FILTERS,
    MAX_BITS,
    MAX_WIDTH,
    METER,
    METHODS,
    Meter,
    TooMuch,
    check_widths,
    expect_growth,
    percent_growth,
)

MAX_SOURCE = 1 << 20  #: characters of a template

T = TypeVar("T")


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Raises TemplateError for a template that is broken, refuses its input or wants too much."""
    meter = Meter()
    before = METER.set(meter)
    try:
        template = _compile(source)
        return meter.join(template.root_render_func(template.new_context(dict(variables))))
    except Refused as cause:
        raise TemplateError(f"the chat template refuses the messages: {cause}") from cause
    except jinja2.TemplateSyntaxError as cause:
        raise TemplateError(f"chat template, line {cause.lineno}: {cause.message}") from cause
    except TooMuch as cause:
        raise TemplateError(f"chat template{_line(cause)}: {cause}; pass another one as chat_template") from cause
    except Exception as cause:
        raise TemplateError(f"chat template{_line(cause)}: {type(cause).__name__}: {cause}") from cause
    finally:
        METER.reset(before)


class Refused(Exception):
    """A template called raise_exception()."""


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2 with what Hugging Face's templates rely on, every value metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"])
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
        meter = METER.get()
        subject = getattr(obj, "__self__", None)
        if isinstance(subject, (str, bytes, int)):
            expect_growth(METHODS, obj.__name__, (subject, *args), kwargs)
        return meter.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
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
            meter.expect(percent_growth(left, right))
        return meter.made(super().call_binop(context, operator, left, right), weight)

    def concat(self, parts: Iterable[str]) -> str:
        """The text of a macro, a block or a {% set %}."""
        return METER.get().join(parts)

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
                check_widths(re.findall(r"\d+", spec))
            meter = METER.get()
            meter.expect(len(fields) * (MAX_WIDTH // 8 + meter.weight(args) + meter.weight(kwargs)))
            return format(*args, **kwargs)

        return metered

    # What _Metered puts into a template. A call is metered, so these need not be.

    def tick(self) -> bool:
        return True

    def keep(self, value: T) -> T:
        return value

    def concatenate(self, *values: object) -> str:
        meter = METER.get()
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
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return encoder.encode(value) if indent is None else METER.get().join(encoder.iterencode(value))


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    n_own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        expect_growth(FILTERS, name, args[n_own:], kwargs)
        return METER.get().made(function(*args, **kwargs))

    return metered


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
