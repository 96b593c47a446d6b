"""Pure: a request and its predicted distribution in, an index table out; ours and the baselines."""
