"""One update of the weights: gradients over ranks, optimizers, averages."""
