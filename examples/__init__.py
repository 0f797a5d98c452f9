"""Networks to try the audit on, each trained on 16 digits; see docs/audit.md."""
