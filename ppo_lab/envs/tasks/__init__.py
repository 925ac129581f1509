"""The envs that ship: a package each, with settings in `__init__.py` and the env in `env.py`."""
