"""Models: load and freeze, adapters over one base, scoring engine, sampling."""
