"""The whole broker in its own processes, over real sockets, against the sandbox."""
