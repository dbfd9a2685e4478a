"""LNB in the trainers of others: a module for each, whose docstring is the recipe.

No module here is imported by ``import lnb``, and none needs its trainer before it is used: ``from lnb.integrations import timm``
works where timm is installed and where it is not. (``torchtitan`` alone extends a class of its trainer, and imports it at once.)
"""
