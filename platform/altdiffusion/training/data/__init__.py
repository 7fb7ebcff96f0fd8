"""From the rows of datasets to the tensors of a batch, read ahead of the loop."""
