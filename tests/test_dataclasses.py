"""Dataclasses that hold arrays have no generated `__eq__`, because `==` of two arrays has no truth value."""

import dataclasses
import importlib
import pkgutil
import typing
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import kp_ray

ARRAYS = (np.ndarray, torch.Tensor, pd.DataFrame, pd.Series)


def find_dataclasses() -> dict[str, type[Any]]:
    """Import every module of kp_ray; return its dataclasses by dotted name."""
    names = [module.name for module in pkgutil.walk_packages(kp_ray.__path__, "kp_ray.")]
    classes = {}
    for module in (importlib.import_module(name) for name in names if name != "kp_ray.__main__"):
        for name, value in vars(module).items():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                classes[f"{module.__name__}.{name}"] = value
    return classes


def holds_array(annotation: Any) -> bool:
    """Return True if a type is an array, or a container or union of arrays."""
    candidates = (annotation, typing.get_origin(annotation))
    if any(isinstance(candidate, type) and issubclass(candidate, ARRAYS) for candidate in candidates):
        return True
    return any(holds_array(argument) for argument in typing.get_args(annotation))


def compares_arrays(cls: type[Any], names: dict[str, Any]) -> bool:
    """Return True if the generated `__eq__` of a dataclass compares arrays; `names` resolve its quoted annotations."""
    if not cls.__dataclass_params__.eq:
        return False
    return any(holds_array(annotation) for annotation in typing.get_type_hints(cls, localns=names).values())


def test_no_dataclass_compares_or_hashes_arrays() -> None:
    classes = find_dataclasses()
    assert "kp_ray.augmentation.sampling.VariantParameters" in classes
    names = {cls.__name__: cls for cls in classes.values()}
    assert [name for name, cls in classes.items() if compares_arrays(cls, names)] == []


@pytest.mark.parametrize("annotation", [np.ndarray, "torch.Tensor | None", "dict[str, torch.Tensor]"])
def test_a_dataclass_that_compares_arrays_is_detected(annotation: Any) -> None:
    names = {"torch": torch}
    assert compares_arrays(dataclasses.make_dataclass("Compared", [("array", annotation)]), names)
    assert not compares_arrays(dataclasses.make_dataclass("Identical", [("array", annotation)], eq=False), names)
