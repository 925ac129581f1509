"""Many runs from one command. It knows overrides, processes and files; it loads neither torch nor the simulator."""
