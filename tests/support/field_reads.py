"""Which fields of the engine's models its code reads, found in the source: a small inference of types by annotation.

Every expression has a set of models, those that the annotations of its names, attributes and functions name; containers
count as their items. A read on a model counts for its subclasses and bases that have the field.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

Models = frozenset[str]
NONE: Models = frozenset()
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = Function | ast.Lambda


@dataclass
class Reads:
    """The source of a package and the models whose fields are looked for."""

    models: Mapping[str, type[BaseModel]]
    classes: dict[str, Models] = field(default_factory=dict)
    """Every class of the source -> its bases. A name of two classes counts as both."""
    attributes: dict[tuple[str, str], Models] = field(default_factory=lambda: defaultdict(frozenset))
    """(class, attribute or method) -> classes in its annotation."""
    returned: dict[str, Models] = field(default_factory=lambda: defaultdict(frozenset))
    """Name of any function -> classes in the annotation of what it returns."""
    lambdas: dict[str, Models] = field(default_factory=dict)
    """Name of an argument of the module's lambdas -> models that functions of the module annotate it with."""
    found: set[tuple[str, str]] = field(default_factory=set)
    """(model, field) that is read."""

    def scan(self, files: Iterable[Path]) -> None:
        """Read the source: first what attributes and functions are, then who reads what."""
        trees = [ast.parse(path.read_text()) for path in files]
        self.classes |= dict.fromkeys(self.models, NONE)
        definitions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self.classes |= dict.fromkeys((node.name for node in definitions if node.name not in self.models), NONE)
        for definition in definitions:
            self._declare(definition)
        for function in (node for tree in trees for node in ast.walk(tree) if isinstance(node, Function)):
            self.returned[function.name] |= self._named(function.returns)
        for tree in trees:
            self.lambdas = self._arguments(tree)
            self._visit(tree, {}, NONE)

    def _arguments(self, tree: ast.AST) -> dict[str, Models]:
        """Return the models of a module's arguments by name: a lambda cannot annotate its own."""
        found: dict[str, Models] = defaultdict(frozenset)
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                found[node.arg] |= self._named(node.annotation)
        return found

    def is_read(self, model: type[BaseModel], name: str) -> bool:
        """Whether a field is read on the model, a base that has it, or a subclass."""
        return any(
            read == name and (issubclass(model, self.models[owner]) or issubclass(self.models[owner], model))
            for owner, read in self.found
            if owner in self.models
        )

    def _named(self, annotation: ast.AST | None) -> Models:
        if annotation is None:
            return NONE
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}
        return frozenset(names & self.classes.keys())

    def _declare(self, definition: ast.ClassDef) -> None:
        name = definition.name
        self.classes[name] |= NONE.union(*(self._named(base) for base in definition.bases))
        for item in definition.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                self.attributes[name, item.target.id] |= self._named(item.annotation)
            elif isinstance(item, Function):
                self.attributes[name, item.name] |= self._named(item.returns)
                self._declare_own(name, item)

    def _declare_own(self, name: str, method: Function) -> None:
        """Take what a method assigns from its arguments to `self`."""
        arguments = {arg.arg: self._named(arg.annotation) for arg in (*method.args.args, *method.args.kwonlyargs)}
        for node in ast.walk(method):
            match node:
                case ast.Assign(
                    targets=[ast.Attribute(value=ast.Name(id="self"), attr=attr)], value=ast.Name(id=argument)
                ):
                    self.attributes[name, attr] |= arguments.get(argument, NONE)

    def _visit(self, node: ast.AST, outer: dict[str, Models], owner: Models) -> None:
        """Look through a module, class or function; names of the functions around it are known in it.

        `owner` is the class that `self` is of.
        """
        names = dict(outer)
        if isinstance(node, Scope):
            arguments = node.args
            for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                known = self.lambdas[arg.arg] if isinstance(node, ast.Lambda) else self._named(arg.annotation)
                names[arg.arg] = owner if arg.arg == "self" else known
        own = list(_own_nodes(node))
        for _ in range(2):  # a name may be bound below its first use, by a loop or comprehension
            for item in own:
                self._bind(item, names)
        for item in own:
            if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Load):
                self.found |= {(model, item.attr) for model in self._type(item.value, names)}
            if isinstance(item, Scope | ast.ClassDef):
                self._visit(item, names, frozenset({item.name}) if isinstance(item, ast.ClassDef) else owner)

    def _bind(self, node: ast.AST, names: dict[str, Models]) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._assign(target, value, names)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                names[name] = self._named(annotation)
            case ast.NamedExpr(target=target, value=value):
                self._assign(target, value, names)
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                for found in ast.walk(target):
                    if isinstance(found, ast.Name):
                        names[found.id] = names.get(found.id, NONE) | self._type(value, names)
            case ast.Assert(test=ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), kinds])):
                names[name] = self._named(kinds)

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, Models]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for pair in zip(target.elts, value.elts, strict=True):
                self._assign(*pair, names)
        elif isinstance(target, ast.Name) and (found := self._type(value, names)):
            known = names.get(target.id, NONE)
            names[target.id] = known & found or found

    def _type(self, node: ast.AST, names: Mapping[str, Models]) -> Models:
        match node:
            case ast.Name(id=name):
                return names.get(name, NONE)
            case ast.Attribute(value=value, attr=attr):
                return self._type_of_attribute(self._type(value, names), attr)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args):
                copied = self._type(node.func.value, names) if name == "model_copy" else NONE  # type: ignore[attr-defined]
                made = self._named(node.func) if isinstance(node.func, ast.Name) else NONE
                passed = (self._type(arg, names) for arg in args if name in {"enumerate", "zip", "tuple", "list"})
                return (self._returned(node.func, name, names) | copied | made).union(*passed)
            case ast.Subscript(value=value) | ast.Starred(value=value) | ast.NamedExpr(value=value):
                return self._type(value, names)
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
                return NONE.union(*(self._type(part, names) for part in parts))
            case ast.IfExp(body=body, orelse=orelse):
                return self._type(body, names) | self._type(orelse, names)
        return NONE

    def _returned(self, function: ast.expr, name: str, names: Mapping[str, Models]) -> Models:
        owners = self._type(function.value, names) if isinstance(function, ast.Attribute) else NONE
        return self._type_of_attribute(owners, name) if owners else self.returned[name]

    def _type_of_attribute(self, owners: Models, attr: str) -> Models:
        found = NONE
        for owner in owners:
            if owner in self.models:
                info = self.models[owner].model_fields.get(attr)
                words = re.findall(r"\w+", str(info.annotation)) if info else ()
                found |= frozenset(words) & self.models.keys()
            else:
                found |= self.attributes[owner, attr] | self._type_of_attribute(self.classes[owner], attr)
        return found


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a scope in the order of the source, without what is inside the functions and classes in it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, Scope | ast.ClassDef):
            yield from _own_nodes(child)
