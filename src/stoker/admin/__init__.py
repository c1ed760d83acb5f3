"""The operator's HTTP interface under `/admin`: always by token, JSON only, described by its own OpenAPI document."""
