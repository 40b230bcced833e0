"""What plugins import from `headrace` is there, though it is imported only when asked for."""

import importlib

import pytest

import headrace


@pytest.mark.parametrize("name", headrace.__all__)
def test_public_name_is_importable(name):
    assert getattr(headrace, name) is not None


def test_every_public_name_has_exactly_one_home():
    homes = [name for names in headrace._HOMES.values() for name in names]
    assert sorted(homes) == sorted(headrace.__all__)
    for home, names in headrace._HOMES.items():
        assert [name for name in names if not hasattr(importlib.import_module(home), name)] == []


def test_unknown_names_are_refused():
    with pytest.raises(ImportError, match="cannot import name 'Sinc'"):
        exec("from headrace import Sinc")
