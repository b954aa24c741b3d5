"""Checkpoints that other code has written: read without running anything that is in them, and put into our names.

`read` turns a file's bytes into named tensors, one module a format; `published` and `gan_settings` know the names of the code of
Huang et al. 2020, and are pure; `archive` finds what there is in a zip or a folder of it; `fit` makes a decoder's weights of it.
"""
