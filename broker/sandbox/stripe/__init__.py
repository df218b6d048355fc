"""A stand-in for Stripe: Connect OAuth, Stripe Apps OAuth and the account resource."""
