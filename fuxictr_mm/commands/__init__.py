"""The commands of ``fuxictr-mm``, one module each: its arguments, the call, and the output of its result.

``scripts`` runs three of them as the scripts of FuxiCTR's names.
"""
