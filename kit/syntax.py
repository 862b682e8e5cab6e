"""Syntax as text, and the global names in it: the same on every version of Python.

Standard library alone, so that any interpreter can run it.
"""

import ast
from functools import cache

# What differs between versions of Python, or says nothing about the result.
IGNORED = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def definitions_of(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    """What a file defines at its top, by name."""
    found: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _names_bound(node):
            found.setdefault(name, []).append(node)
    return found


def _names_bound(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return _stored_names(node.targets)
    if isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        return _stored_names([node.target])
    return []


def _stored_names(targets: list[ast.expr]) -> list[str]:
    """The names that an assignment binds. `TABLE["x"] = 1` binds none, but changes
    TABLE, and counts as a part of its definition.
    """
    parts = [part for target in targets for part in ast.walk(target)]
    bound = [p for p in parts if isinstance(getattr(p, "ctx", None), ast.Store)]
    changed = [p.value for p in bound if isinstance(p, ast.Subscript)]
    return [p.id for p in [*bound, *changed] if isinstance(p, ast.Name)]


@cache
def text_of(node: ast.stmt) -> str:
    """A statement as text: layout, comments, docstrings and annotations left out."""
    return _text(node)


def _text(node) -> str:
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({', '.join(_joined(node))})"
    parts = []
    for field in node._fields:
        value = getattr(node, field, None)
        if field == "body" and value and _is_docstring(value):
            value = value[1:]
        if field not in IGNORED and value is not None and value != []:
            parts.append(f"{field}={_text(value)}")
    return f"{type(node).__name__}({', '.join(parts)})"


def _joined(node: ast.JoinedStr) -> list[str]:
    """The parts of an f-string; where its text is cut differs between versions."""
    parts: list[str] = []
    text = ""
    for value in node.values:
        if isinstance(value, ast.Constant):
            text += value.value
            continue
        parts += [ascii(text)] if text else []
        parts, text = [*parts, _text(value)], ""
    return [*parts, ascii(text)] if text else parts


def _is_docstring(body) -> bool:
    first = body[0] if isinstance(body, list) else None
    value = first.value if isinstance(first, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@cache
def globals_of(node: ast.AST) -> tuple[set[str], set[tuple[str, str]], list]:
    """Global names that some syntax uses, attributes of such names, and imports in it.

    A name that a function binds itself (an argument, a variable) is none. Annotations
    count: they name the classes whose methods a function calls.
    """
    names: set[str] = set()
    attributes: set[tuple[str, str]] = set()
    imports: list[ast.ImportFrom] = []

    def visit(part, local: frozenset) -> None:
        if isinstance(part, ast.ImportFrom):
            imports.append(part)
        elif isinstance(part, ast.Name):
            if part.id not in local and isinstance(part.ctx, ast.Load):
                names.add(part.id)
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            if part.value.id not in local:
                attributes.add((part.value.id, part.attr))
                names.add(part.value.id)
        elif isinstance(part, SCOPES):
            for child in [part.args, *getattr(part, "decorator_list", [])]:
                visit(child, local)
            body = part.body if isinstance(part.body, list) else [part.body]
            for child in body:
                visit(child, local | _bound_inside(part))
        else:
            for field, value in ast.iter_fields(part):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST) and field != "ctx":
                        visit(child, local)

    visit(node, frozenset())
    return names, attributes, imports


def _bound_inside(function) -> frozenset:
    """Arguments and variables of a function, those of what is nested in it excepted."""
    arguments = function.args
    bound = {a.arg for a in [*arguments.posonlyargs, *arguments.args]}
    bound |= {a.arg for a in arguments.kwonlyargs}
    bound |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    declared: set[str] = set()
    waiting = (
        list(function.body) if isinstance(function.body, list) else [function.body]
    )
    while waiting:
        part = waiting.pop()
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(part.name)
            continue
        if isinstance(part, (ast.Global, ast.Nonlocal)):
            declared |= set(part.names)
        if isinstance(part, ast.ExceptHandler) and part.name:
            bound.add(part.name)
        if isinstance(part, (ast.Import, ast.ImportFrom)):
            bound |= {(a.asname or a.name).partition(".")[0] for a in part.names}
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            bound.add(part.id)
        if not isinstance(part, ast.Lambda):
            waiting += ast.iter_child_nodes(part)
    return frozenset(bound - declared)
