"""The ground floor: load and freeze a base, find its places, fingerprint it."""
