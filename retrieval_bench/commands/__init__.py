"""The arguments of every command, and what it calls. Each imports what it needs when it runs, so that ``--help`` answers at once."""
