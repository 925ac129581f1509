"""Old runs, made with rsl-rl-lib 2.2.4, become run folders of today. docs/import_run.md has the map."""
