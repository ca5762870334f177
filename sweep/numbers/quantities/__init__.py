"""Declares every quantity: each module in this package is one subject, and is found automatically."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
