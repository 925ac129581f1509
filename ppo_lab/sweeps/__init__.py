"""Many runs from one command. Knows words, processes and files, not learners; loads neither torch nor the simulator."""
