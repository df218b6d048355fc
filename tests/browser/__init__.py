"""People in a real browser: the demo by clicks, the Connect button under the real headers, every page looked at."""
