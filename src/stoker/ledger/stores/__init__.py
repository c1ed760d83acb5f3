"""Where the ledger is kept: one module a database, and what they share."""
