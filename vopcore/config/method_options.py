"""The options of every method, read from the text of its file: importing that file takes seconds of torch.

In the class of a method stand the names, types and defaults of its options. Here they become a dataclass of
the same fields, without the method. Which values are in range is for the method itself to say.
"""

import ast
import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

METHODS_FOLDER = Path(__file__).parents[1] / "methods"
PACKAGE = "vopcore.methods"

# What the types of options are made of, beside Python's own.
TYPING = {"ClassVar": ClassVar, "Literal": Literal}

# A default that is not written as a plain value.
NOT_READ = object()


def arguments_of(options: Any) -> dict[str, Any]:  # noqa: ANN401 - any of these classes
    """What the method itself is to be made with: all options but those whose default was not read."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in given.items() if value is not NOT_READ}


@lru_cache
def option_classes() -> dict[str, type]:
    """A dataclass of options for each method, by its name in METHODS."""
    package = _parsed(PACKAGE)
    module_of = _imports(package)

    classes = {}
    for name, class_name in _listed(package).items():
        classes[name] = _options_class(class_name, module_of[class_name])
    return classes


def _listed(package: ast.Module) -> dict[str, str]:
    """METHODS as it is written: names of methods, and of their classes."""
    for statement in package.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id="METHODS"), value=ast.Dict(keys=keys, values=values)):
                names = [ast.literal_eval(key) for key in keys if key is not None]
                class_names = [ast.unparse(value) for value in values]
                return dict(zip(names, class_names, strict=True))
    raise AssertionError(f"{PACKAGE} lists no METHODS")


# Cached, as classes that share a base must share one object for it.
@lru_cache
def _options_class(class_name: str, module: str) -> type:
    """The fields of a class and of its bases, which may be imported from other files of methods."""
    tree = _parsed(module)
    definitions = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if class_name not in definitions:
        return _options_class(class_name, _imports(tree)[class_name])

    definition = definitions[class_name]
    bases = tuple(_options_class(ast.unparse(base), module) for base in definition.bases)
    fields = [_field(node) for node in definition.body if isinstance(node, ast.AnnAssign)]
    return dataclasses.make_dataclass(
        class_name,
        fields,
        bases=bases,
        frozen=True,
        kw_only=True,
    )


def _field(node: ast.AnnAssign) -> tuple[str, Any, Any]:
    """Name, type and default of a field, as `make_dataclass` takes them."""
    name = ast.unparse(node.target)
    try:
        annotation = eval(ast.unparse(node.annotation), dict(TYPING))
    except NameError:
        # A type of the file's own: the method checks its values itself.
        annotation = Any

    if node.value is None:
        return name, annotation, dataclasses.field()
    try:
        default = ast.literal_eval(node.value)
    except ValueError:
        # A constant of the file's own: here it only counts that the option may be left out.
        annotation = Any
        default = NOT_READ
    return name, annotation, default


def _imports(tree: ast.Module) -> dict[str, str]:
    """The module of each name that a file imports from another file of methods."""
    module_of = {}
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                module_of[alias.name] = statement.module or ""
    return module_of


def _parsed(module: str) -> ast.Module:
    path = METHODS_FOLDER / "__init__.py"
    if module != PACKAGE:
        path = METHODS_FOLDER / f"{module.removeprefix(PACKAGE + '.')}.py"
    return ast.parse(path.read_text())
