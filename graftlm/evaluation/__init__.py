"""How good an adapter is and how sure that is: statistics of scores, and the report of a run."""
