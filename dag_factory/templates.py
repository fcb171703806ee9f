"""A template's text to what it names, each with its place; what there is to name is no matter here.

Jinja's own parser reads the text, in the environment that renders prompts. A template is read once
for all steps that have it, so what it reads of a name is kept as a way: ``steps.plan.output`` is
``("steps", "plan", "output")``. A variable of the template stands for the way that it was set to,
and where that depends on the run, for nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from airflow.sdk import DAG
from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.lexer import Lexer, Token, TokenStream
from jinja2.visitor import NodeVisitor

from dag_factory.composer import line_and_column, line_starts, plain_lines
from dag_factory.errors import Spot, nearest, one_line, show

#: In a way, any element of a list.
ELEMENT = 0

Way = tuple[str | int, ...]

# Names that Jinja itself gives to parts of templates.
_JINJAS_OWN = frozenset(("loop", "self", "super", "caller", "varargs", "kwargs"))


class Reference(NamedTuple):
    """What a template reads.

    :param way: the name, and then what is read of it.
    :param spots: where the last parts of the way stand; the first parts of a variable's way stand
        where it was set, and are a reference of their own.
    """

    way: Way
    spots: tuple[Spot, ...]


@dataclass
class Link:
    """Another template that a template includes, imports or extends.

    :param names: the names of templates, the first of which that there is counts.
    :param spot: where they stand.
    :param optional: whether none of them need be.
    :param context: whether the other template has the names that this one has.
    :param macros: of an import, the macros that are used; None where it is no import.
    """

    names: tuple[str, ...]
    spot: Spot
    optional: bool = False
    context: bool = True
    macros: set[str] | None = None


@dataclass
class Part:
    """What is rendered as a whole: a template's body, a block or a macro.

    :param references: what it reads.
    :param faults: what is wrong with it for everybody, and where.
    :param links: the templates that it includes and imports.
    :param macros: macros of its template that it uses.
    :param blocks: blocks that stand in it.
    :param above: whether it is a block that renders the one that it overrides.
    """

    references: list[Reference] = field(default_factory=list)
    faults: list[tuple[str, Spot]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    macros: set[str] = field(default_factory=set)
    blocks: list[str] = field(default_factory=list)
    above: bool = False


@dataclass(frozen=True)
class Template:
    """What a template says.

    :param body: what is rendered of it; of one that extends another, what sets names for its
        blocks.
    :param macros: its macros by name.
    :param blocks: its blocks by name.
    :param extends: the template that it extends, if any.
    :param guards: ways that it asks for before it reads them, as by ``is defined``.
    :param names: the names that it sets itself.
    """

    body: Part = field(default_factory=Part)
    macros: dict[str, Part] = field(default_factory=dict)
    blocks: dict[str, Part] = field(default_factory=dict)
    extends: Link | None = None
    guards: frozenset[Way] = frozenset()
    names: frozenset[str] = frozenset()

    @property
    def says_nothing(self) -> bool:
        """Whether it is text alone."""
        return self is _PLAIN


@lru_cache(maxsize=4096)
def read_template(text: str) -> Template:
    """Return what a template says; what its syntax forbids is a fault of its body."""
    if "{" not in text:
        return _PLAIN
    # As Jinja's lexer takes it, so that positions in it are right.
    text = plain_lines(text)
    try:
        tree = _environment().parse(text)
        return _Reader(text, tree).template()
    except TemplateSyntaxError as error:
        said, spot = _syntax_error(error), _spot(text, error.lineno)
    except RecursionError:
        said, spot = "the template is nested too deeply; make it flatter", Spot(1, 1)
    except Exception as error:  # as of numbers of too many digits
        said, spot = f"not a Jinja template: {one_line(error)}; mend it", Spot(1, 1)
    return Template(Part(faults=[(said, spot)]))


def global_names() -> frozenset[str]:
    """Return the names that every template has from Jinja."""
    return frozenset(_environment().globals)


_PLAIN = Template()


@cache
def _environment() -> Environment:
    # The one that a DAG of ours renders prompts in, with the places of the tokens added.
    environment = DAG("templates").get_template_env(force_sandboxed=True)
    return environment.overlay(extensions=[_Places], keep_trailing_newline=False)


class _At(int):
    """A line that knows its position in the text: nodes take over their token's line."""

    position: int

    def __new__(cls, line: int, position: int) -> _At:
        at = super().__new__(cls, line)
        at.position = position
        return at


class _Places(Extension):
    """Gives each token its position, since Jinja keeps the line alone."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        self._text = source
        return source

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        lexer = self.environment.lexer
        return lexer.wrap(_with_positions(lexer, self._text), stream.name, stream.filename)


def _with_positions(lexer: Lexer, text: str) -> Iterator[tuple[int, str, str]]:
    end = 0
    try:
        for line, kind, value in lexer.tokeniter(text, None):
            # White space that a template asks to leave out is between the tokens.
            start = max(text.find(value, end), end)
            end = start + len(value)
            yield _At(line, start), kind, value
    except TemplateSyntaxError as error:
        error.lineno = _At(error.lineno, end)
        raise


def _spot(text: str, at: int) -> Spot:
    if not isinstance(at, _At):
        return Spot(max(at, 1), 1)
    line, column = line_and_column(line_starts(text), at.position)
    return Spot(line + 1, column + 1)


_ADVICE = "mend it, or put text that is no template between {% raw %} and {% endraw %}"


def _syntax_error(error: TemplateSyntaxError) -> str:
    said = re.sub(r" at \d+$", "", one_line(error.message))
    if tag := re.match("Encountered unknown tag '(.*?)'", said):
        return f"unknown tag {show(tag[1])}; {_tag_hint(said, tag[1])}"
    return f"not a Jinja template: {said[:1].lower()}{said[1:]}; {_ADVICE}"


_TAGS = (
    *("for", "endfor", "else", "if", "elif", "endif", "block", "endblock", "extends", "macro"),
    *("endmacro", "include", "from", "import", "set", "endset", "with", "endwith", "call"),
    *("endcall", "filter", "endfilter", "raw", "endraw", "print", "do"),
)


def _tag_hint(said: str, tag: str) -> str:
    if wanted := re.search("looking for (?:the following tags: )?(.*?)(?:[.]|$)", said):
        return f"{wanted[1]} has to come first" if tag in _TAGS else nearest(tag, _TAGS)
    return "nothing is open here that it could close" if tag in _TAGS else nearest(tag, _TAGS)


# What a name or an expression stands for: a way; an import, of which macros are read; or nothing
# that is known before a run.
_Value = Way | Link | None
# What is read of a value, None if the run decides, and where it stands.
_Key = tuple[str | int | None, int]


class _Reader(NodeVisitor):
    """Reads a template's tree; a visit to an expression returns what it stands for."""

    def __init__(self, text: str, tree: nodes.Template) -> None:
        self._text = text
        self._tree = tree
        self._part = self._body = Part()
        survey = _Survey(tree)
        self._macros: dict[str, Part] = {name: Part() for name in survey.macros}
        self._blocks: dict[str, Part] = {}
        self._extends: Link | None = None
        self._is_child = survey.is_child
        self._guards: set[Way] = set()
        self._scope: dict[str, _Value] = {}
        self._stored = survey.stored
        self._ambiguous = survey.ambiguous

    def template(self) -> Template:
        """Return what the template says."""
        self.visit(self._tree)
        return Template(
            self._body,
            self._macros,
            self._blocks,
            self._extends,
            frozenset(self._guards),
            self._stored,
        )

    # --- names and what is read of them ----------------------------------------------------

    def visit_Name(self, node: nodes.Name) -> _Value:
        return self._access(node) if node.ctx == "load" else None

    def visit_Getattr(self, node: nodes.Getattr) -> _Value:
        return self._access(node)

    def visit_Getitem(self, node: nodes.Getitem) -> _Value:
        return self._access(node)

    def _access(self, node: nodes.Expr, *, asked: bool = False) -> _Value:
        """Note what is read; return its way.

        :param asked: whether it is asked for only, and need not be; what it is read of must be.
        """
        keys: list[_Key] = []
        while isinstance(node, nodes.Getattr | nodes.Getitem):
            keys.insert(0, self._key(node))
            node = node.node
        base: _Value
        if isinstance(node, nodes.Name):
            base = self._lookup(node.name)
            if base == (node.name,) and node.name not in self._scope:
                base = ()
                keys.insert(0, (node.name, node.lineno))
        else:
            base = self.visit(node)
        if isinstance(base, Link):
            _use_macro(base, keys)
        if not isinstance(base, tuple):
            return None
        known = list(takewhile(lambda key: key[0] is not None, keys))
        whole = len(known) == len(keys)
        way = (*base, *(key for key, _ in known if key is not None))
        noted = len(known) - (asked and whole)
        if noted > 0:
            spots = tuple(_spot(self._text, at) for _, at in known[:noted])
            self._part.references.append(Reference(way[: len(base) + noted], spots))
        return way if whole else None

    def _key(self, node: nodes.Getattr | nodes.Getitem) -> _Key:
        if isinstance(node, nodes.Getattr):
            return node.attr, self._after(node.lineno, r"\.\s*")
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
        if isinstance(key, str):
            return key, node.arg.lineno
        self.visit(node.arg)
        return (ELEMENT if type(key) is int else None), node.arg.lineno

    def _after(self, at: int, pattern: str) -> int:
        """Return the place of what comes after the pattern, which matches at a place."""
        if not isinstance(at, _At):
            return at
        match = re.compile(pattern).match(self._text, at.position)
        return _At(at, match.end()) if match else at

    def _lookup(self, name: str) -> _Value:
        if name in self._scope:
            return self._scope[name]
        if name in self._macros:
            self._part.macros.add(name)
        if name == "super":
            self._part.above = True
        return None if name in self._stored or name in _JINJAS_OWN else (name,)

    def _bind(self, target: nodes.Node, value: _Value) -> None:
        if not isinstance(target, nodes.Name):
            self._scope.update(dict.fromkeys(_names_in(target)))
        else:
            self._scope[target.name] = None if target.name in self._ambiguous else value

    @contextmanager
    def _inner(self, part: Part | None = None) -> Iterator[None]:
        """Read into an inner scope, and into another part if one is given."""
        scope, outer = self._scope, self._part
        self._scope = dict(scope)
        self._part = part or outer
        yield
        self._scope, self._part = scope, outer

    # --- what need not be ------------------------------------------------------------------

    def _ask(self, node: nodes.Node | None) -> _Value:
        """Read what is asked for; return its way."""
        if isinstance(node, nodes.Name | nodes.Getattr | nodes.Getitem):
            return self._access(node, asked=True)
        if node is not None:
            self.visit(node)
        return None

    def visit_Test(self, node: nodes.Test) -> None:
        at = self._after(node.lineno, r"is\s+(?:not\s+)?")
        self._check_word("test", node.name, _environment().tests, at)
        if node.name not in ("defined", "undefined"):
            self.generic_visit(node)
        elif isinstance(way := self._ask(node.node), tuple):
            self._guards.add(way)

    def visit_Filter(self, node: nodes.Filter) -> None:
        self._check_word("filter", node.name, _environment().filters, node.lineno)
        if node.name not in ("default", "d"):
            self.generic_visit(node)
            return
        self._ask(node.node)
        for argument in (*node.args, *node.kwargs):
            self.visit(argument)

    def _check_word(self, kind: str, name: str, known: dict[str, Any], at: int) -> None:
        if name not in known:
            said = f"unknown {kind} {show(name)}; {nearest(name, known)}"
            self._part.faults.append((said, _spot(self._text, at)))

    def visit_Compare(self, node: nodes.Compare) -> None:
        self.visit(node.expr)
        for operand in node.ops:
            container = self.visit(operand.expr)
            if operand.op in ("in", "notin") and isinstance(node.expr, nodes.Const):
                key = node.expr.value
                if isinstance(container, tuple) and isinstance(key, str):
                    self._guards.add((*container, key))

    def visit_Operand(self, node: nodes.Operand) -> _Value:
        value: _Value = self.visit(node.expr)
        return value

    def visit_If(self, node: nodes.If) -> None:
        self.visit(node.test)
        tests = [node.test, *(other.test for other in node.elif_)]
        with self._inner(Part()) if any(map(_asks_which, tests)) else _same():
            for each in (*node.body, *node.elif_, *node.else_):
                self.visit(each)

    def visit_CondExpr(self, node: nodes.CondExpr) -> None:
        self.visit(node.test)
        with self._inner(Part()) if _asks_which(node.test) else _same():
            for each in (node.expr1, node.expr2):
                if each is not None:
                    self.visit(each)

    # --- what sets names -------------------------------------------------------------------

    def visit_For(self, node: nodes.For) -> None:
        iterated = self.visit(node.iter)
        with self._inner():
            element = (*iterated, ELEMENT) if isinstance(iterated, tuple) else None
            self._bind(node.target, element)
            for each in (node.test, *node.body):
                if each is not None:
                    self.visit(each)
        for each in node.else_:
            self.visit(each)

    def visit_With(self, node: nodes.With) -> None:
        values = [self.visit(value) for value in node.values]
        with self._inner():
            for target, value in zip(node.targets, values, strict=True):
                self._bind(target, value)
            for each in node.body:
                self.visit(each)

    def visit_Assign(self, node: nodes.Assign) -> None:
        self._bind(node.target, self.visit(node.node))

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> None:
        with self._inner():
            for each in (node.filter, *node.body):
                if each is not None:
                    self.visit(each)
        self._bind(node.target, None)

    def visit_Macro(self, node: nodes.Macro) -> None:
        with self._inner(self._macros[node.name]):
            for argument in node.args:
                self._scope[argument.name] = None
            for each in (*node.defaults, *node.body):
                self.visit(each)

    def visit_CallBlock(self, node: nodes.CallBlock) -> None:
        self.visit(node.call)
        with self._inner():
            for argument in node.args:
                self._scope[argument.name] = None
            for each in (*node.defaults, *node.body):
                self.visit(each)

    # --- what is rendered, and other templates ---------------------------------------------

    def visit_Output(self, node: nodes.Output) -> None:
        # What a child says beside its blocks is not rendered.
        if not (self._is_child and self._part is self._body):
            self.generic_visit(node)

    def visit_Block(self, node: nodes.Block) -> None:
        if node.name in self._blocks:
            said = f"the block {show(node.name)} is defined twice; rename one"
            self._part.faults.append((said, _spot(self._text, node.lineno)))
        self._part.blocks.append(node.name)
        part = self._blocks[node.name] = Part()
        with self._inner(part):
            self.generic_visit(node)

    def visit_Include(self, node: nodes.Include) -> None:
        if (link := self._link(node)) is not None:
            link.optional, link.context = node.ignore_missing, node.with_context
            self._part.links.append(link)

    def visit_Extends(self, node: nodes.Extends) -> None:
        self._extends = self._link(node)

    def visit_Import(self, node: nodes.Import) -> None:
        link = self._import(node)
        self._scope[node.target] = link

    def visit_FromImport(self, node: nodes.FromImport) -> None:
        link = self._import(node)
        for name in node.names:
            if link is not None and link.macros is not None:
                link.macros.add(name if isinstance(name, str) else name[0])

    def _import(self, node: nodes.Import | nodes.FromImport) -> Link | None:
        if (link := self._link(node)) is not None:
            link.context, link.macros = node.with_context, set()
            self._part.links.append(link)
        return link

    def _link(
        self, node: nodes.Include | nodes.Extends | nodes.Import | nodes.FromImport
    ) -> Link | None:
        """Return the templates that are named, None if the run decides."""
        named = node.template
        given = named.items if isinstance(named, nodes.List | nodes.Tuple) else [named]
        names = [item.value for item in given if isinstance(item, nodes.Const)]
        if len(names) < len(given) or not all(isinstance(name, str) for name in names):
            self.visit(named)
            return None
        return Link(tuple(names), _spot(self._text, named.lineno))


def _use_macro(imported: Link, keys: list[_Key]) -> None:
    if keys and isinstance(keys[0][0], str) and imported.macros is not None:
        imported.macros.add(keys[0][0])


@contextmanager
def _same() -> Iterator[None]:
    yield


def _asks_which(test: nodes.Node) -> bool:
    """Return whether a condition asks for the workflow or step: not all that share it go there."""
    return any(name.name == "workflow" for name in test.find_all(nodes.Name))


class _Survey:
    """What a template sets, wherever in it.

    :param tree: the template's tree.
    """

    def __init__(self, tree: nodes.Template) -> None:
        self.macros: list[str] = []
        self.is_child = False
        self._stored: Counter[str] = Counter()
        self._assigned: set[str] = set()
        waiting: list[nodes.Node] = [tree]
        while waiting:
            node = waiting.pop()
            self._take(node)
            waiting.extend(node.iter_child_nodes())

    @property
    def stored(self) -> frozenset[str]:
        """The names that it sets."""
        return frozenset(self._stored)

    @property
    def ambiguous(self) -> frozenset[str]:
        """The names that it sets more than once: which value each has depends on the run."""
        return frozenset(name for name in self._assigned if self._stored[name] > 1)

    def _take(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Name):
            if node.ctx != "load":
                self._stored[node.name] += 1
        elif isinstance(node, nodes.Assign | nodes.AssignBlock):
            self._assigned.update(_names_in(node.target))
        elif isinstance(node, nodes.Macro):
            self.macros.append(node.name)
            self._stored[node.name] += 1
        elif isinstance(node, nodes.Import):
            self._stored[node.target] += 1
        elif isinstance(node, nodes.FromImport):
            self._stored.update(name if isinstance(name, str) else name[1] for name in node.names)
        elif isinstance(node, nodes.Extends):
            self.is_child = True


def _names_in(target: nodes.Node) -> Iterator[str]:
    if isinstance(target, nodes.Name):
        yield target.name
    yield from (name.name for name in target.find_all(nodes.Name))
