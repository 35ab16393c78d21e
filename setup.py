"""For pip versions that cannot install an editable project from pyproject.toml alone."""

from setuptools import setup

setup()
