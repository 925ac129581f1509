"""What this machine has: packages, cards, standard streams, and how its commands are typed."""
