"""The optimiser: parameter groups, AdamW and Muon, the learning-rate schedule, and the outlier detector."""
