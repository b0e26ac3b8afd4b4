"""Imports without collections, after which all is as it was."""

from __future__ import annotations

import gc

import pytest

from pipeline.frozen_imports import frozen_imports


def test_nothing_is_collected_within_and_what_there_is_lasts() -> None:
    try:
        with frozen_imports():
            assert not gc.isenabled()
            made = [[] for _ in range(1000)]
        assert gc.isenabled()
        lasting = {id(each) for each in gc.get_objects()}
        assert gc.get_freeze_count() >= 1000
        assert not lasting & {id(each) for each in made}
    finally:
        gc.unfreeze()


def test_collections_go_on_where_an_import_fails() -> None:
    try:
        with pytest.raises(ImportError), frozen_imports():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
