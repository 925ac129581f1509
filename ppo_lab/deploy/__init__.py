"""What is done with a trained policy: evaluated, filmed, viewed, exported. Nothing here trains."""
