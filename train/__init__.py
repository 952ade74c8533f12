"""Training of the fusion network; requires torch.

Belongs here: losses, crops, the training loop. Does not belong here: inference back ends and export.
"""
