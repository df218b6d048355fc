"""A stand-in for Sequin's management API: credentials and OAuth apps."""
