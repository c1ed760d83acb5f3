"""What the ledger's rows mean: prices, intervals and reports. Pure."""
