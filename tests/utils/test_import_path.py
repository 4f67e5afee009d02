"""Import paths: what they name is found, and what names nothing is one sentence of one form."""

import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_lightning.types.prompt import EnvironmentSpec
from pact_lightning.utils.imports import import_module, import_path, make_object, new_path


class Environment:
    def reset(self, seed):
        pass

    def call(self, name, arguments):
        pass


MADE = Environment()
"""Has an environment's methods, and is none that could be made for a rollout."""


def test_an_environment_is_a_class():
    assert isinstance(EnvironmentSpec(f"{__name__}.Environment").build(), Environment)
    with pytest.raises(
        ImportError, match=r"test_import_path.MADE' is not a class; environment.class_path names a class"
    ):
        EnvironmentSpec(f"{__name__}.MADE").build()


def test_what_a_path_names_is_found():
    assert import_path("fractions.Fraction", "number") is Fraction
    assert import_path("os.path", "module") is import_module("os.path")
    assert make_object("fractions.Fraction", "number", {"numerator": 1, "denominator": 2}) == Fraction(1, 2)
    assert make_object("fractions.Fraction", "number") == 0


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("Fraction", "give its module too, such as `my_module.Fraction`"),
        ("", "it has an empty part; give module and name, such as `my_module.MyClass`"),
        (".fractions.Fraction", "it has an empty part"),
        ("..fractions.Fraction", "it has an empty part"),
        ("fractions.", "it has an empty part"),
        ("no_such_package.Fraction", "No module named 'no_such_package'"),
        ("fractions.Fractoin", "module 'fractions' has no attribute 'Fractoin'"),
        ("fractions.Fraction.numerator", "No module named 'fractions.Fraction'"),
    ],
)
def test_what_names_nothing_is_told_with_its_purpose_its_path_and_why(path, why):
    with pytest.raises(ImportError) as caught:
        import_path(path, "number")
    assert str(caught.value).startswith(f"the number {path!r} cannot be imported: {why}")


@pytest.mark.parametrize(
    ("path", "now"),
    [
        ("pact_lightning.module.PACTModule", "; pact_lightning.module.PACTModule is now pact_lightning.PACTModule"),
        (
            "pact_lightning.tasks.nowhere.JsonlTasks",
            "; pact_lightning.tasks.nowhere.JsonlTasks is now pact_lightning.JsonlTasks",
        ),
        ("pact_lightning.module.NoSuchName", ""),
        ("pact_lightning.NoSuchName", ""),
        ("my_module.PACTModule", ""),
    ],
)
def test_a_public_name_at_a_place_it_has_left_is_told_with_its_short_path(path, now):
    with pytest.raises(ImportError) as caught:
        import_path(path, "model")
    assert str(caught.value).partition("; ")[2] == now.removeprefix("; ")


def test_a_public_name_whose_home_cannot_be_imported_has_not_moved():
    assert new_path("pact_lightning.VLLMEngine") == ""
    assert new_path("pact_lightning.rollout.samplers.vllm.engine.VLLMEngine") == ""


@pytest.mark.parametrize("path", ["", "os..path", ".os", "no_such_module", "json.nothing"])
def test_a_module_that_is_none(path):
    with pytest.raises(ImportError, match=r"the module '.*' cannot be imported: "):
        import_module(path)


def test_a_module_that_cannot_import_its_own_needs_is_told_with_them(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n\n\nclass Shop:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"'needs_more\.Shop' cannot be imported: No module named 'no_such_package'"):
        import_path("needs_more.Shop", "environment class")
    assert "needs_more" not in sys.modules


def test_arguments_that_a_class_does_not_take():
    with pytest.raises(ValueError, match=r"the number 'fractions\.Fraction' cannot be created: .*colour"):
        make_object("fractions.Fraction", "number", {"colour": "red"})


@given(st.text(st.sampled_from("ab._ 1\0/é"), max_size=8))
def test_any_path_that_names_nothing_is_an_import_error(path):
    with pytest.raises(ImportError, match="cannot be imported"):
        import_path(f"{path}.no_such_name", "thing")
