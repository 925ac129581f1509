"""The packages of the wheel: pyproject.toml has no way to name conf/ beside those that are found."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["ppo_lab*"]), "ppo_lab.conf"])
