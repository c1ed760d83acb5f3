"""The ledger: what was asked, what happened, what it took, and what it cost; append-only and durable."""
