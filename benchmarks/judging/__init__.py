"""The judge stage against a bare loop of its HTTP client: verdicts a second from one server on the loopback."""
