"""Operations of the fusion network, one per file, each with a readable reference.

Belongs here: single operations on tensors. Does not belong here: frames, files, configurations.
"""
