"""What is learned: metrics and floors, data sets, tokenised splits, length-bucketed batches."""
