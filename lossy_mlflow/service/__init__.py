"""What whoever keeps a server runs, and what tells a client how it stands."""
