"""One update: losses, gradients, precision, the step, and the validation of what it has made."""
