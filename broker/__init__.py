"""A self-hosted OAuth broker that hands tokens to Sequin and can prove that it did."""

__version__ = "0.1.0"
