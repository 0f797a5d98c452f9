"""Small scripts on the public API; `make_*` make what docs/audit.md audits."""
