"""A stand-in for GitHub: a GitHub App with its installations, and an OAuth App, with their API."""
