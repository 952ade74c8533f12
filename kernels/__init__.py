"""Operations of the fusion network, one per file, each with a plain version that anyone can read.

Belongs here: single operations on tensors. Does not belong here: frames, files, configurations.
"""
