"""The options of methods as they are read from the methods' files, compared with the methods themselves."""

import dataclasses

import pytest
from pydantic import TypeAdapter

from vopcore.config import method_options
from vopcore.methods import METHODS


def test_the_same_methods_are_listed():
    assert list(method_options.option_classes()) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_options_have_the_names_types_and_defaults_of_the_method(name):
    read = dataclasses.fields(method_options.option_classes()[name])
    true = dataclasses.fields(METHODS[name])
    assert [(field.name, field.type, field.default) for field in read] == [
        (field.name, field.type, field.default) for field in true
    ]


METHOD = """
from dataclasses import dataclass
from mine.base import Base

HALF = 0.5

@dataclass(frozen=True, kw_only=True)
class Mine(Base):
    share: float = HALF
    shape: Shape = "square"
    num: int = 3
"""


@pytest.fixture
def own_methods(tmp_path, monkeypatch):
    """A folder of methods whose one method has a base in another file, a default and a type of its own."""
    (tmp_path / "__init__.py").write_text(
        'from vopcore.methods.mine import Mine\n\nMETHODS: dict[str, type[Method]] = {"mine": Mine}\n'
    )
    (tmp_path / "mine.py").write_text(METHOD.replace("mine.base", "vopcore.methods.base"))
    (tmp_path / "base.py").write_text("class Base:\n    layers: int\n")
    monkeypatch.setattr(method_options, "METHODS_FOLDER", tmp_path)
    caches = (method_options.option_classes, method_options._options_class)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_what_a_file_computes_is_left_to_the_method(own_methods):
    options = TypeAdapter(method_options.option_classes()["mine"])
    given = options.validate_python({"layers": 2, "shape": ["any"]})
    assert method_options.arguments_of(given) == {"layers": 2, "shape": ["any"], "num": 3}
    assert method_options.arguments_of(options.validate_python({"layers": 2, "share": 0.1}))["share"] == 0.1
    with pytest.raises(ValueError, match="layers"):
        options.validate_python({})
