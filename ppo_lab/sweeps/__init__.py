"""Many runs from one command. It knows overrides, processes and files, not learners; it loads neither torch nor the simulator."""
